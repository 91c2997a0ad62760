"""Finds plugins and registers everything that they supply by name."""
