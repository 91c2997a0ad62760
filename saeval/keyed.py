"""Keyed randomness: every draw depends on what it is for, never on a batch row."""

from __future__ import annotations

import numpy as np
from jaxtyping import Int


def hashed(*keys: int | Int[np.ndarray, "n"]) -> np.ndarray:
    """A 64-bit hash of integer keys, elementwise (splitmix64): the source of everything keyed, never a batch row."""
    arrays = np.broadcast_arrays(*(np.asarray(key).astype(np.uint64) for key in keys))
    state = np.full(arrays[0].shape, 0x9E3779B97F4A7C15, dtype=np.uint64)
    with np.errstate(over="ignore"):
        for array in arrays:
            state = (state ^ array) + np.uint64(0x9E3779B97F4A7C15)
            state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            state = state ^ (state >> np.uint64(31))
    return state
