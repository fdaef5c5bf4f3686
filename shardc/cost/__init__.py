"""Cost models: encode shards, sum by device, score placements."""
