"""Sums over the logits of a token in one pass, compiled: the torch code of `token_scores` reads them a dozen times."""

from __future__ import annotations

import numba
import numpy as np

_F, _I = np.float32, np.int32
_BLOCK = 1024
"""Logits whose sum is in float32; the sums of blocks are added in float64."""
_LOG2_E, _LN2_HIGH, _LN2_LOW, _ROUNDER = _F(1.44269504), _F(0.693359375), _F(-2.12194440e-4), _F(1.5 * 2**23)
_C2, _C3, _C4, _C5, _C6 = (_F(c) for c in (0.5, 0.16666667, 0.041665795, 0.0083334519, 0.0013981999))
_ZERO, _ONE, _HALF, _SIXTH, _24TH, _SLIGHT = (_F(x) for x in (0, 1, 1 / 2, 1 / 6, 1 / 24, 1 / 16))
_LOWEST, _NONE, _BITS, _NO_BITS = _F(-87), _F(-np.inf), _I(23), _I(-1)


@numba.njit(cache=True, fastmath={"contract"})
def exp(x):  # type: ignore[no-untyped-def]
    """exp x of float32 below 88 to 1.2 · 10⁻⁷, without branches, so that it is vectorised; 0 below −87.

    x is n ln 2 + f, |f| <= ln 2 / 2; adding and subtracting 1.5 · 2²³ rounds to n, and its last bits are those of n.
    """
    rounded = _F(x * _LOG2_E + _ROUNDER)
    n = rounded - _ROUNDER
    f = x - n * _LN2_HIGH - n * _LN2_LOW
    y = _F((((((_C6 * f + _C5) * f + _C4) * f + _C3) * f + _C2) * f + _ONE) * f + _ONE)
    scaled = _I(y.view(_I) + (rounded.view(_I) << _BITS)).view(_F)
    return _ZERO if x < _LOWEST else scaled


@numba.njit(cache=True, fastmath={"reassoc"})
def _add(a, b):  # type: ignore[no-untyped-def]
    """a + b, in an order of the compiler's choice: else sums are not vectorised."""
    return a + b


@numba.njit(cache=True, nogil=True)
def totals(old, top, sums):  # type: ignore[no-untyped-def]
    """Write Σ exp(logit − logit of `top`) of each row."""
    for i in range(len(old)):
        old_top, whole = old[i, top[i]], 0.0
        for start in range(0, old.shape[1], _BLOCK):
            block, total = old[i, start : start + _BLOCK], _ZERO
            for j in range(len(block)):
                total = _add(total, exp(_F(block[j] - old_top)))
            whole += float(total)
        sums[i] = whole


@numba.njit(cache=True, nogil=True, fastmath={"contract"})
def compare(old, new, top, sums, highest):  # type: ignore[no-untyped-def]
    """Write `_sums` of `token_scores` for each row, and the first of the highest new logits."""
    for i in range(len(new)):
        old_top, new_top = old[i, top[i]], new[i, top[i]]
        best, where, most = _NONE, 0, _I(0)
        total, mean, excess = 0.0, 0.0, 0.0
        for start in range(0, new.shape[1], _BLOCK):
            before, after = old[i, start : start + _BLOCK], new[i, start : start + _BLOCK]
            block_total, block_mean, block_excess, high = _ZERO, _ZERO, _ZERO, _NO_BITS
            for j in range(len(after)):
                a, b = before[j] - old_top, _F(after[j] - new_top)
                t = _ONE if a == _NONE else b - a
                p, q = exp(a), exp(b)
                pt = p * t
                slight = ((_24TH * t + _SIXTH) * t + _HALF) * t * pt
                block_total = _add(block_total, q)
                block_mean = _add(block_mean, pt)
                block_excess = _add(block_excess, slight if abs(t) < _SLIGHT else q - p - pt)
                high = max(high, b.view(_I))  # the bits of floats >= 0 are in their order, and b of the top is 0
            total += float(block_total)
            mean += float(block_mean)
            excess += float(block_excess)
            if high >= most:
                most = high
                for j in range(len(after)):
                    if after[j] > best:
                        best, where = after[j], start + j
        sums[i, 0], sums[i, 1], sums[i, 2], sums[i, 3] = total, mean, excess, best - new_top
        highest[i] = where
