"""Keyed randomness: every draw depends on what it is for, never on a batch row."""

from __future__ import annotations

import hashlib
import math
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int, UInt64

from saeval.base.lazy_torch import torch

if TYPE_CHECKING:
    from torch import Tensor


def hashed(*keys: int | str | Int[np.ndarray, "n"]) -> np.ndarray:
    """A 64-bit hash of keys, elementwise (splitmix64): the source of everything keyed, never a batch row.

    Words, such as a hook's name, count as the integer of their own hash.
    """
    arrays = np.broadcast_arrays(*(np.asarray(_number(key)).astype(np.uint64) for key in keys))
    state = np.full(arrays[0].shape, 0x9E3779B97F4A7C15, dtype=np.uint64)
    with np.errstate(over="ignore"):
        for array in arrays:
            state = (state ^ array) + np.uint64(0x9E3779B97F4A7C15)
            state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            state = state ^ (state >> np.uint64(31))
    return state


def _number(key: int | str | np.ndarray) -> int | np.ndarray:
    if not isinstance(key, str):
        return key
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest())


def normal(keys: UInt64[np.ndarray, "*shape"], d: int, device: torch.device | str = "cpu") -> Float[Tensor, "*shape d"]:
    """`d` independent standard normal numbers for each key, float64: the same for a key wherever it stands.

    Box-Muller on splitmix64, computed on `device`: bits are the same on every one, the numbers to rounding.
    """
    start = torch.from_numpy(np.ascontiguousarray(keys).view(np.int64)).to(device)[..., None]
    counter = torch.arange(1, (d + 1) // 2 + 1, device=device)
    state = start + _signed(0x9E3779B97F4A7C15) * counter  # wraps around, as all that follows
    state = (state ^ _shifted(state, 30)) * _signed(0xBF58476D1CE4E5B9)
    state = (state ^ _shifted(state, 27)) * _signed(0x94D049BB133111EB)
    state = state ^ _shifted(state, 31)
    first, second = (((half & 0xFFFFFFFF).double() + 0.5) / 2**32 for half in (_shifted(state, 32), state))
    radius, angle = (-2 * first.log()).sqrt(), 2 * math.pi * second
    return torch.cat([radius * angle.cos(), radius * angle.sin()], -1)[..., :d]


def _signed(bits: int) -> int:
    return bits - 2**64 if bits >= 2**63 else bits


def _shifted(state: Tensor, by: int) -> Tensor:
    """A logical right shift: torch's keeps the sign."""
    return (state >> by) & ((1 << (64 - by)) - 1)
