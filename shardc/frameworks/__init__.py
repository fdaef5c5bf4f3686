"""Frameworks that plans run in."""
