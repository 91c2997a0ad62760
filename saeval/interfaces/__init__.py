"""Interfaces of plugins: models, data, SAEs, substitutes, metrics and quantities."""
