"""Training cost models and placement policies."""
