"""How text becomes rows of tokens."""
