"""Checks that guard a committed plan."""
