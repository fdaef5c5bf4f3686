"""Placers: each proposes a placement; none keeps a cost function of its own."""
