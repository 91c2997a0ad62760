"""Conversion of text to rows of tokens."""
