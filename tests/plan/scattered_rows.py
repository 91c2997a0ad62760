"""Rows of many documents and two SAEs."""

from __future__ import annotations

from saeval.testing import TinySAE, tiny_tokens


def documents(shuffled=True):
    """Documents of one to five rows, in an order of rows that scatters them, or one document after the other."""
    return tiny_tokens(rows=700, documents=400, order_seed=3 if shuffled else None)


def saes():
    return {"a": TinySAE(), "b": TinySAE(seed=1)}
