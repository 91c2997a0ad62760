"""Compiled loops of a world: uniform numbers by key, features that fire, sums of directions.

Each result depends on its own row alone and is summed in a fixed order, so that batches of any size give equal bits.
"""

from __future__ import annotations

import math

import numba
import numpy as np
from jaxtyping import Bool, Float, Float32, Int, UInt32, UInt64

_STEPS, _REACH = 32, 8
"""Grid of `_TAIL`: steps per standard deviation, and its largest deviation."""
_TAIL = np.array([0.5 * math.erfc((k / _STEPS - _REACH) / math.sqrt(2)) for k in range(2 * _STEPS * _REACH + 1)])
"""P(N > z) on a grid of z. Most draws are decided by the two neighbouring values, without an error function."""


@numba.njit(cache=True, nogil=True)
def _mixed(x):  # type: ignore[no-untyped-def]
    """Mix 32 bits (Wellons' lowbias32)."""
    x = np.uint32(x ^ (x >> np.uint32(16)))
    x = np.uint32(x * np.uint32(0x7FEB352D))
    x = np.uint32(x ^ (x >> np.uint32(15)))
    x = np.uint32(x * np.uint32(0x846CA68B))
    return np.uint32(x ^ (x >> np.uint32(16)))


@numba.njit(cache=True, nogil=True)
def _number(key, j):  # type: ignore[no-untyped-def]
    step = np.uint32(np.uint32(j) * np.uint32(0x9E3779B9))
    low, high = np.uint32(key & np.uint64(0xFFFFFFFF)), np.uint32(key >> np.uint64(32))
    return _mixed(np.uint32(_mixed(np.uint32(step + low)) ^ high))


@numba.njit(cache=True, nogil=True)
def uniform(keys: UInt64[np.ndarray, "rows"], features: Int[np.ndarray, "count"]) -> UInt32[np.ndarray, "rows count"]:
    """Return a number per key and feature, uniform on 0 .. 2^32 - 1; it depends on these two alone."""
    out = np.empty((len(keys), len(features)), np.uint32)
    for row in range(len(keys)):
        for place in range(len(features)):
            out[row, place] = _number(keys[row], features[place])
    return out


@numba.njit(cache=True, nogil=True)
def uniform_at(keys: UInt64[np.ndarray, "k"], features: Int[np.ndarray, "k"]) -> UInt32[np.ndarray, "k"]:
    """Return the same for pairs of key and feature."""
    out = np.empty(len(keys), np.uint32)
    for e in range(len(keys)):
        out[e] = _number(keys[e], features[e])
    return out


@numba.njit(cache=True, nogil=True)
def _exceeds(uniform, z, tail):  # type: ignore[no-untyped-def]
    """True if the normal number N with P(N > its value) = `uniform` / 2^32 is above z."""
    p = (float(uniform) + 0.5) / 4294967296.0
    z = min(max(float(z), -_REACH), _REACH - 1e-6)
    cell = int((z + _REACH) * _STEPS)
    return p < tail[cell + 1] or (p < tail[cell] and p < 0.5 * math.erfc(z / math.sqrt(2.0)))


@numba.njit(cache=True, nogil=True)
def _fired(latent, uniform, factor, threshold, spread, tail):  # type: ignore[no-untyped-def]
    rows, n = uniform.shape
    shared = np.empty(n, np.float32)
    fires = np.zeros((rows, n), np.bool_)
    for row in range(rows):
        shared[:] = np.float32(0)
        for k in range(latent.shape[1]):
            weight = latent[row, k]
            for j in range(n):
                shared[j] += weight * factor[k, j]
        for j in range(n):
            shared[j] = (threshold[j] - shared[j]) / spread[j]
        for j in range(n):
            fires[row, j] = _exceeds(uniform[row, j], shared[j], tail)
    return fires


def fired(
    latent: Float32[np.ndarray, "rows rank"],
    uniform: UInt32[np.ndarray, "rows n"],
    factor: Float32[np.ndarray, "rank n"],
    threshold: Float32[np.ndarray, "n"],
    spread: Float32[np.ndarray, "n"],
) -> Bool[np.ndarray, "rows n"]:
    """Return the pairs of row and feature with factorᵀ latent + spread · N > threshold.

    `uniform` has P(N > its value) of each standard normal number N, as a share of 2^32.
    """
    fires: np.ndarray = _fired(latent, uniform, factor, threshold, spread, _TAIL)
    return fires


@numba.njit(cache=True, nogil=True)
def _fired_at(row, feature, latent, uniform, factor, threshold, spread, tail):  # type: ignore[no-untyped-def]
    fires = np.zeros(len(row), np.bool_)
    for e in range(len(row)):
        j, shared = feature[e], np.float32(0)
        for k in range(latent.shape[1]):
            shared += latent[row[e], k] * factor[k, j]
        fires[e] = _exceeds(uniform[e], np.float32((threshold[j] - shared) / spread[j]), tail)
    return fires


def fired_at(
    row: Int[np.ndarray, "k"], feature: Int[np.ndarray, "k"], latent: Float32[np.ndarray, "rows rank"],
    uniform: UInt32[np.ndarray, "k"], factor: Float32[np.ndarray, "rank n"], threshold: Float32[np.ndarray, "n"],
    spread: Float32[np.ndarray, "n"],
) -> Bool[np.ndarray, "k"]:  # fmt: skip
    """Return which of the listed pairs of row and feature fire, by the rule of `fired`."""
    fires: np.ndarray = _fired_at(row, feature, latent, uniform, factor, threshold, spread, _TAIL)
    return fires


@numba.njit(cache=True, nogil=True)
def superpose(
    starts: Int[np.ndarray, "rows+1"], feature: Int[np.ndarray, "k"], value: Float32[np.ndarray, "k"],
    directions: Float32[np.ndarray, "n d"], bias: Float32[np.ndarray, "d"], out: Float[np.ndarray, "rows d"],
) -> None:  # fmt: skip
    """Write the sum of each row's directions, times their values, plus the bias, into `out`."""
    for row in range(len(starts) - 1):
        for q in range(len(bias)):
            out[row, q] = bias[q]
        for e in range(starts[row], starts[row + 1]):
            weight, j = value[e], feature[e]
            for q in range(len(bias)):
                out[row, q] += weight * directions[j, q]
