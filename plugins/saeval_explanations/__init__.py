"""Explanations: what a feature means in words or tokens, and how far these can be trusted."""
