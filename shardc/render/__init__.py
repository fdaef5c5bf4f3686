"""Renderings for people: one file a format."""
