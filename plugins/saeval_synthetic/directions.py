"""Unit directions with a chosen coherence: the root mean square of the cosine between two of them."""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float, Float32

from saeval.plugin import SaevalError, hashed, normal, torch

_TOLERANCE = 1e-4
"""Relative distance from the chosen coherence at which the search ends."""
_STRONGEST = 60.0
"""Decay of the singular values, over all of them, beyond which the directions are nearly one."""


def coherence(directions: Float[np.ndarray, "n d"]) -> float:
    """Return the root mean square of the cosine between two different directions, which have unit norm."""
    n, wide = len(directions), directions.astype(np.float64)
    gram = wide.T @ wide if n > wide.shape[1] else wide @ wide.T
    return math.sqrt(max(float(np.square(gram).sum()) - n, 0.0) / (n * (n - 1)))


def least_coherence(n: int, d: int) -> float:
    """Return the smallest coherence of n directions in d dimensions (Welch 1974): √((n − d) / (d (n − 1))), or 0."""
    return math.sqrt((n - d) / (d * (n - 1))) if n > d else 0.0


def directions(n: int, d: int, chosen: float | None, seed: int) -> Float32[np.ndarray, "n d"]:
    """Return `n` unit directions in `d` dimensions, random ones of coherence about 1/√d if none is `chosen`.

    A smaller coherence spreads the singular values of random directions more evenly, a larger one less evenly.
    `SaevalError` if no directions have the chosen one.
    """
    drawn = normal(hashed(seed, "direction", np.arange(n)), d)
    random: np.ndarray = (drawn / drawn.norm(dim=1, keepdim=True)).numpy()
    if chosen is None:
        return random.astype(np.float32)
    least = least_coherence(n, d)
    if not least - 1e-9 <= chosen < 1:
        raise SaevalError(
            f"'coherence: {chosen:g}' is out of reach: {n} directions in {d} dimensions have one from {least:.4g} to 1"
        )
    u, singular, v = (part.numpy() for part in torch.linalg.svd(torch.from_numpy(random), full_matrices=False))
    place = np.linspace(0, 1, len(singular))

    def bent(bend: float) -> Float[np.ndarray, "n d"]:
        """Return directions whose singular values are evened out by `bend` below 0, or decay for one above."""
        spectrum = singular ** (1 + bend) if bend < 0 else singular * np.exp(-_STRONGEST * bend * place)
        rows = (u * spectrum) @ v
        for _ in range(8 if bend <= -1 else 0):  # unit norms undo a little of it
            rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
            left, _, right = np.linalg.svd(rows, full_matrices=False)
            rows = left @ right
        scaled: np.ndarray = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        return scaled

    low, high = -1.0, 1.0
    if chosen <= coherence(bent(low)) * (1 + _TOLERANCE):
        return bent(low).astype(np.float32)
    for _ in range(60):
        middle = (low + high) / 2
        rows = bent(middle)
        reached = coherence(rows)
        if abs(reached - chosen) <= _TOLERANCE * chosen:
            return rows.astype(np.float32)
        low, high = (middle, high) if reached < chosen else (low, middle)
    raise SaevalError(f"'coherence: {chosen:g}' is out of reach for {n} directions in {d} dimensions; choose another")
