"""Keyed random numbers: each draw depends on its key alone, never on its row in a batch."""

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
    """Return a 64-bit hash of the keys, elementwise and with broadcasting (splitmix64), as uint64.

    A word, such as a hook's name, stands for the integer of its blake2b hash.
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
    """Return `d` independent standard normal numbers per key, float64; they depend on the key alone.

    The method is Box-Muller on splitmix64, on `device`. Numbers of different devices agree up to rounding.
    """
    start = torch.from_numpy(np.ascontiguousarray(keys).view(np.int64)).to(device)[..., None]
    counter = torch.arange(1, (d + 1) // 2 + 1, device=device)
    state = start + _signed(0x9E3779B97F4A7C15) * counter  # wraps around, like the products below
    state = (state ^ _shifted(state, 30)) * _signed(0xBF58476D1CE4E5B9)
    state = (state ^ _shifted(state, 27)) * _signed(0x94D049BB133111EB)
    state = state ^ _shifted(state, 31)
    first, second = (((half & 0xFFFFFFFF).double() + 0.5) / 2**32 for half in (_shifted(state, 32), state))
    radius, angle = (-2 * first.log()).sqrt(), 2 * math.pi * second
    return torch.cat([radius * angle.cos(), radius * angle.sin()], -1)[..., :d]


def _signed(bits: int) -> int:
    return bits - 2**64 if bits >= 2**63 else bits


def _shifted(state: Tensor, by: int) -> Tensor:
    """Return a logical right shift; torch's is arithmetic."""
    return (state >> by) & ((1 << (64 - by)) - 1)
