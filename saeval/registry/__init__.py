"""How plugins are found, and what everything is called."""
