"""Measuring FBGEMM's table-batched embeddings on the local device."""
