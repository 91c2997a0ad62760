"""What is matched: similarities of rows with columns, in blocks and pair by pair."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numba
import numpy as np
from numpy.typing import NDArray

from saeval.plugin import SaevalError, torch

if TYPE_CHECKING:
    from torch import Tensor

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

CHUNK = 512  # rows taken at a time where a float64 copy of all of them would be large


class Similarity(ABC):
    """A matrix `[n, m]` of similarities that is never held whole."""

    shape: tuple[int, int]
    device: torch.device
    coarse: torch.dtype = torch.float32  # what the first pass over all pairs is computed in

    @abstractmethod
    def block(
        self, rows: slice | Tensor, columns: Tensor | None, dtype: torch.dtype, out: Tensor | None = None
    ) -> Tensor:
        """The submatrix of these rows and columns (None: all), which the caller may write into.

        `dtype` is float32, float64 or `coarse`. `out`, of the right shape and type, may be used for the result: pages
        of memory that are new each time cost a pass half as much again.
        """

    @abstractmethod
    def values(self, rows: Ints, columns: Ints) -> Floats:
        """The similarities of single pairs, float64."""

    @abstractmethod
    def error(self, dtype: torch.dtype) -> float:
        """How far an entry of `block` may be from the exact similarity, at most, before it is rounded to `dtype`."""

    def at_most(self, found: Tensor) -> Tensor:
        """The largest exact similarities, float64, that entries of a block can stand for."""
        entry = found.double()
        return entry + entry.abs() * torch.finfo(found.dtype).eps + self.error(found.dtype)

    @property
    @abstractmethod
    def T(self) -> Similarity:  # noqa: N802 - as in numpy and torch
        """Rows and columns exchanged."""


class Cosines(Similarity):
    """Cosines of the rows of A with the rows of B, or their absolute values; a row of zeros has cosine 0 with all."""

    def __init__(self, a: Vectors, b: Vectors, absolute: bool) -> None:
        self.a, self.b, self.absolute = a, b, absolute
        self.shape = (len(a.norms), len(b.norms))
        self.device = a.raw.device
        self.coarse = fastest(self.device)

    @property
    def T(self) -> Cosines:  # noqa: N802
        return Cosines(self.b, self.a, self.absolute)

    def block(
        self, rows: slice | Tensor, columns: Tensor | None, dtype: torch.dtype, out: Tensor | None = None
    ) -> Tensor:
        every = slice(None) if columns is None else columns
        with _full_precision(self.device):
            found = torch.mm(self.a.units(rows, dtype), self.b.units(every, dtype).T, out=out)
        return found.abs_() if self.absolute else found

    def values(self, rows: Ints, columns: Ints) -> Floats:
        found, a, b = np.empty(len(rows)), self.a.numbers, self.b.numbers
        step = max(-(-len(rows) // torch.get_num_threads()), CHUNK)
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:  # the compiled code lets go of the interpreter
            parts = [slice(first, first + step) for first in range(0, len(rows), step)]
            list(pool.map(lambda k: _dots(a, b, rows[k], columns[k], found[k]), parts))
        found /= self.a.lengths[rows] * self.b.lengths[columns]
        np.clip(found, -1.0, 1.0, out=found)
        return np.abs(found) if self.absolute else found

    def error(self, dtype: torch.dtype) -> float:
        # A sum of d rounded products of unit vectors, and the rounding of the vectors themselves (Higham 2002, 3.1).
        if dtype != torch.bfloat16:
            return (self.a.raw.shape[1] + 4) * torch.finfo(dtype).eps / 2
        # Sums of bfloat16 products are kept in float32; by Cauchy and Schwarz, each vector's rounding adds its length.
        a, b = self.a.rounded_off, self.b.rounded_off
        return 2 * self.error(torch.float32) + a + b + a * b


class Vectors:
    """Rows `[n, d]` as they were given, their float64 norms (1 for a row of zeros) and a float32 unit copy."""

    def __init__(self, given: Any, name: str) -> None:
        raw = _tensor(given, name)
        if raw.ndim != 2 or 0 in raw.shape:
            raise SaevalError(f"{name} must have the shape [n, d] with n, d >= 1, found {list(raw.shape)}")
        if raw.dtype == torch.float64:  # so large or so small that the squares leave float64
            largest = raw.abs().amax(1, keepdim=True)
            raw = raw / torch.where(largest > 0, largest, 1.0)
        self.raw = raw
        self.norms = torch.empty(len(raw), dtype=torch.float64, device=raw.device)
        self.unit = torch.empty(raw.shape, dtype=torch.float32, device=raw.device)
        for first in range(0, len(raw), CHUNK):
            part = slice(first, first + CHUNK)
            rows = raw[part].double()
            norms = rows.norm(dim=1)
            if not bool(torch.isfinite(norms).all()):  # no sum of squares of float32 leaves float64
                bad = first + int((~torch.isfinite(norms)).nonzero()[0])
                raise SaevalError(f"{name} has a value that is not finite, in row {bad}; leave such rows out")
            self.norms[part] = torch.where(norms > 0, norms, 1.0)
            self.unit[part] = rows / self.norms[part, None]

    @property
    def numbers(self) -> NDArray[Any]:
        """The rows where compiled code can read them; no copy on the CPU."""
        return self.raw.cpu().contiguous().numpy()

    @property
    def lengths(self) -> Floats:
        return self.norms.cpu().numpy()

    @cached_property
    def rounded(self) -> Tensor:
        """The unit rows in bfloat16."""
        return self.unit.bfloat16()

    @cached_property
    def rounded_off(self) -> float:
        """The length of what a row has lost by that, at most."""
        parts = zip(self.unit.split(CHUNK), self.rounded.split(CHUNK))
        return max(float((unit.double() - rounded.double()).norm(dim=1).max()) for unit, rounded in parts)

    def to(self, device: torch.device) -> Vectors:
        self.raw, self.norms, self.unit = (x.to(device) for x in (self.raw, self.norms, self.unit))
        return self

    def units(self, rows: slice | Tensor, dtype: torch.dtype) -> Tensor:
        if dtype == torch.bfloat16:
            return self.rounded[rows]
        if dtype == torch.float32:
            return self.unit[rows]
        return torch.div(self.raw[rows], self.norms[rows, None])  # float64, without a float64 copy first


class Listed(Similarity):
    """Similarities listed pair by pair; a pair not listed has the default `of_row[i] · of_column[j]`."""

    def __init__(self, keys: Tensor, listed: Tensor, of_row: Tensor, of_column: Tensor) -> None:
        """`keys` are i·m + j, sorted and unique; `listed` their values, float64."""
        self.keys, self.listed, self.of_row, self.of_column = keys, listed, of_row, of_column
        self.shape = (len(of_row), len(of_column))
        self.device = keys.device
        self.starts = torch.searchsorted(keys, torch.arange(self.shape[0] + 1, device=keys.device) * self.shape[1])
        largest = float(of_row.abs().max() * of_column.abs().max())
        self.largest = max(largest, float(listed.abs().max()) if len(listed) else 0.0)

    @property
    def T(self) -> Listed:  # noqa: N802
        n, m = self.shape
        keys, order = (self.keys % m * n + self.keys // m).sort()
        return Listed(keys, self.listed[order], self.of_column, self.of_row)

    def block(
        self, rows: slice | Tensor, columns: Tensor | None, dtype: torch.dtype, out: Tensor | None = None
    ) -> Tensor:
        m = self.shape[1]
        which = torch.arange(self.shape[0], device=self.device)[rows]
        every = slice(None) if columns is None else columns
        found = torch.outer(self.of_row[which], self.of_column[every]).to(dtype)
        lengths = self.starts[which + 1] - self.starts[which]
        line = torch.repeat_interleave(torch.arange(len(which), device=self.device), lengths)
        before = torch.repeat_interleave(self.starts[which] - (lengths.cumsum(0) - lengths), lengths)
        entry = before + torch.arange(len(line), device=self.device)
        place = self.keys[entry] % m
        if columns is not None:
            index = torch.full((m,), -1, device=self.device)
            index[columns] = torch.arange(len(columns), device=self.device)
            place = index[place]
            line, entry, place = line[place >= 0], entry[place >= 0], place[place >= 0]
        found[line, place] = self.listed[entry].to(dtype)
        return found

    def values(self, rows: Ints, columns: Ints) -> Floats:
        i, j = (torch.as_tensor(x, device=self.device) for x in (rows, columns))
        found = self.of_row[i] * self.of_column[j]
        if len(self.keys):
            keys = i * self.shape[1] + j
            at = torch.searchsorted(self.keys, keys).clamp_(max=len(self.keys) - 1)
            found = torch.where(self.keys[at] == keys, self.listed[at], found)
        return found.cpu().numpy()

    def error(self, dtype: torch.dtype) -> float:
        return 2 * self.largest * torch.finfo(dtype).eps


def listed(rows: Any, columns: Any, values: Any, shape: tuple[int, int], default: Any) -> Listed:
    """Check what a user listed, and sort it."""
    n, m = shape
    if n < 1 or m < 1:
        raise SaevalError(f"shape must be [n, m] with n, m >= 1, found {list(shape)}")
    i, j = (_tensor(x, name, whole=True) for x, name in ((rows, "rows"), (columns, "cols")))
    value = _tensor(values, "values").double()
    if not (i.ndim == j.ndim == value.ndim == 1 and len(i) == len(j) == len(value)):
        found = ", ".join(str(list(x.shape)) for x in (i, j, value))
        raise SaevalError(f"rows, cols and values must be three lists of one length, found the shapes {found}")
    factors = default if isinstance(default, tuple) else (np.full(n, float(default)), np.ones(m))
    of_row, of_column = (_tensor(f, "default").double().to(i.device) for f in factors)
    if of_row.shape != (n,) or of_column.shape != (m,):
        raise SaevalError(f"default must be a number or a pair of vectors of lengths {n} and {m}, one factor each")
    for name, x in (("values", value), ("default", of_row), ("default", of_column)):
        if not bool(torch.isfinite(x).all()):
            raise SaevalError(f"{name} must be finite; leave out rows that have no similarity")
    for name, x, length in (("rows", i, n), ("cols", j, m)):
        if len(x) and not 0 <= int(x.min()) <= int(x.max()) < length:
            raise SaevalError(f"{name} must lie in 0..{length - 1}, found {int(x.min())}..{int(x.max())}")
    keys, order = (i * m + j.to(i.device)).sort()
    twice = torch.nonzero(keys[1:] == keys[:-1])
    if len(twice):
        pair = divmod(int(keys[int(twice[0])]), m)
        raise SaevalError(f"the pair {pair} is listed twice; add up or choose before matching")
    return Listed(keys, value.to(i.device)[order], of_row, of_column)


def _tensor(given: Any, name: str, whole: bool = False) -> Tensor:
    """As a tensor in a type that keeps every value: float32 or float64, int64 for indices."""
    try:
        found = (
            given.detach() if isinstance(given, torch.Tensor) else torch.from_numpy(np.require(given, None, ["C", "W"]))
        )
    except (TypeError, ValueError) as error:
        raise SaevalError(f"{name} must be a tensor or an array of numbers: {error}") from error
    if found.is_complex() or (whole and found.is_floating_point() and found.numel()):
        raise SaevalError(f"{name} must hold {'whole' if whole else 'real'} numbers, found {found.dtype}")
    if found.device.type not in ("cpu", "cuda"):  # others lack float64
        found = found.cpu()
    if whole:
        return found.long()
    small = found.dtype in (torch.float32, torch.float16, torch.bfloat16)
    return found.float() if small else found.double()


@numba.njit(cache=True, nogil=True, fastmath={"reassoc", "contract"})
def _dots(a, b, rows, columns, found):  # type: ignore[no-untyped-def]
    """Float64 products of single pairs of rows; gathering them first would cost twenty times as much."""
    for k in range(len(rows)):
        left, right, total = a[rows[k]], b[columns[k]], 0.0
        for q in range(a.shape[1]):
            total += np.float64(left[q]) * np.float64(right[q])
        found[k] = total


def fastest(device: torch.device) -> torch.dtype:
    """bfloat16 on CPUs that multiply it natively, at twice the speed of float32 or more; else float32."""
    if device.type != "cpu" or not hasattr(torch.cpu, "get_capabilities"):
        return torch.float32
    able = torch.cpu.get_capabilities()
    return torch.bfloat16 if able.get("avx512_bf16") or able.get("amx_bf16") else torch.float32


@contextmanager
def _full_precision(device: torch.device) -> Iterator[None]:
    """float32 products in float32, whatever the caller allows elsewhere: TF32 and bfloat16 break the error bound."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before)
