"""Similarity matrices that are never stored whole: entries are computed in blocks or for single pairs."""

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

CHUNK = 512  # rows per step when a float64 copy of all rows would be large


class Similarity(ABC):
    """A matrix `[n, m]` of similarities that is never stored whole."""

    shape: tuple[int, int]
    device: torch.device
    coarse: torch.dtype = torch.float32  # dtype of the first pass over all pairs

    @abstractmethod
    def block(
        self, rows: slice | Tensor, columns: Tensor | None, dtype: torch.dtype, out: Tensor | None = None
    ) -> Tensor:
        """The submatrix of these rows and columns (None: all columns), which the caller may modify.

        `dtype` is float32, float64 or `coarse`. `out`, of matching shape and dtype, may be used for the result:
        allocating memory for every block would make a pass 50% slower.
        """

    @abstractmethod
    def values(self, rows: Ints, columns: Ints) -> Floats:
        """The similarities of the pairs (rows[k], columns[k]), float64."""

    @abstractmethod
    def error(self, dtype: torch.dtype) -> float:
        """Upper bound on the error of an entry of `block`, without its final rounding to `dtype`."""

    def at_most(self, entries: Tensor) -> Tensor:
        """Upper bounds, float64, on the exact similarities of entries of a block."""
        exact = entries.double()
        return exact + exact.abs() * torch.finfo(entries.dtype).eps + self.error(entries.dtype)

    @property
    @abstractmethod
    def T(self) -> Similarity:  # noqa: N802 - as in numpy and torch
        """The transposed matrix."""


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
        selected = slice(None) if columns is None else columns
        with _full_precision(self.device):
            cosines = torch.mm(self.a.units(rows, dtype), self.b.units(selected, dtype).T, out=out)
        return cosines.abs_() if self.absolute else cosines

    def values(self, rows: Ints, columns: Ints) -> Floats:
        cosines, a, b = np.empty(len(rows)), self.a.numbers, self.b.numbers
        step = max(-(-len(rows) // torch.get_num_threads()), CHUNK)
        parts = [slice(first, first + step) for first in range(0, len(rows), step)]
        if len(parts) == 1:  # to start threads takes longer
            _dots(a, b, rows, columns, cosines)
        else:
            with ThreadPoolExecutor(torch.get_num_threads()) as pool:  # the compiled code releases the GIL
                list(pool.map(lambda k: _dots(a, b, rows[k], columns[k], cosines[k]), parts))
        cosines /= self.a.lengths[rows] * self.b.lengths[columns]
        np.clip(cosines, -1.0, 1.0, out=cosines)
        return np.abs(cosines) if self.absolute else cosines

    def error(self, dtype: torch.dtype) -> float:
        # A sum of d rounded products of unit vectors, and the rounding of the vectors themselves (Higham 2002, 3.1).
        if dtype != torch.bfloat16:
            return (self.a.raw.shape[1] + 4) * torch.finfo(dtype).eps / 2
        # Products of bfloat16 are summed in float32. By Cauchy-Schwarz, rounding a vector adds at most its lost length.
        a, b = self.a.rounded_off, self.b.rounded_off
        return 2 * self.error(torch.float32) + a + b + a * b


class Vectors:
    """Rows `[n, d]` as given, their float64 norms (1 for a row of zeros) and a normalised float32 copy."""

    def __init__(self, rows: Any, name: str) -> None:
        raw = _tensor(rows, name)
        if raw.ndim != 2 or 0 in raw.shape:
            raise SaevalError(f"{name} must have the shape [n, d] with n, d >= 1, found {list(raw.shape)}")
        if raw.dtype == torch.float64:  # squares could overflow or underflow
            largest = raw.abs().amax(1, keepdim=True)
            raw = raw / torch.where(largest > 0, largest, 1.0)
        self.raw = raw
        self.norms = torch.empty(len(raw), dtype=torch.float64, device=raw.device)
        self.unit = torch.empty(raw.shape, dtype=torch.float32, device=raw.device)
        for first in range(0, len(raw), CHUNK):
            part = slice(first, first + CHUNK)
            doubles = raw[part].double()
            norms = doubles.norm(dim=1)
            if not bool(torch.isfinite(norms).all()):  # sums of squares of float32 cannot overflow float64
                bad = first + int((~torch.isfinite(norms)).nonzero()[0])
                raise SaevalError(f"{name} has a value that is not finite, in row {bad}; remove such rows")
            self.norms[part] = torch.where(norms > 0, norms, 1.0)
            self.unit[part] = doubles / self.norms[part, None]

    @property
    def numbers(self) -> NDArray[Any]:
        """The rows as a contiguous NumPy array, normally without a copy on the CPU."""
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
        """The largest norm, over rows, of the rounding error in `rounded`."""
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
        return torch.div(self.raw[rows], self.norms[rows, None])  # float64, since the norms are


class Listed(Similarity):
    """Similarities listed pair by pair; pairs not listed have the default `of_row[i] · of_column[j]`."""

    def __init__(self, keys: Tensor, listed: Tensor, of_row: Tensor, of_column: Tensor) -> None:
        """`keys` are i·m + j, sorted and unique; `listed` are their values, float64."""
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
        i = torch.arange(self.shape[0], device=self.device)[rows]
        selected = slice(None) if columns is None else columns
        result = torch.outer(self.of_row[i], self.of_column[selected]).to(dtype)
        lengths = self.starts[i + 1] - self.starts[i]
        line = torch.repeat_interleave(torch.arange(len(i), device=self.device), lengths)
        before = torch.repeat_interleave(self.starts[i] - (lengths.cumsum(0) - lengths), lengths)
        entry = before + torch.arange(len(line), device=self.device)
        place = self.keys[entry] % m
        if columns is not None:
            index = torch.full((m,), -1, device=self.device)
            index[columns] = torch.arange(len(columns), device=self.device)
            place = index[place]
            line, entry, place = line[place >= 0], entry[place >= 0], place[place >= 0]
        result[line, place] = self.listed[entry].to(dtype)
        return result

    def values(self, rows: Ints, columns: Ints) -> Floats:
        i, j = (torch.as_tensor(x, device=self.device) for x in (rows, columns))
        values = self.of_row[i] * self.of_column[j]
        if len(self.keys):
            keys = i * self.shape[1] + j
            at = torch.searchsorted(self.keys, keys).clamp_(max=len(self.keys) - 1)
            values = torch.where(self.keys[at] == keys, self.listed[at], values)
        return values.cpu().numpy()

    def error(self, dtype: torch.dtype) -> float:
        return 2 * self.largest * torch.finfo(dtype).eps


def listed(rows: Any, columns: Any, values: Any, shape: tuple[int, int], default: Any) -> Listed:
    """Check and sort the arguments of `match_sparse`."""
    n, m = shape
    if n < 1 or m < 1:
        raise SaevalError(f"shape must be [n, m] with n, m >= 1, found {list(shape)}")
    i, j = (_tensor(x, name, whole=True) for x, name in ((rows, "rows"), (columns, "cols")))
    value = _tensor(values, "values").double()
    if not (i.ndim == j.ndim == value.ndim == 1 and len(i) == len(j) == len(value)):
        shapes = ", ".join(str(list(x.shape)) for x in (i, j, value))
        raise SaevalError(f"rows, cols and values must be lists of equal length, found the shapes {shapes}")
    factors = default if isinstance(default, tuple) else (np.full(n, float(default)), np.ones(m))
    of_row, of_column = (_tensor(f, "default").double().to(i.device) for f in factors)
    if of_row.shape != (n,) or of_column.shape != (m,):
        raise SaevalError(f"default must be a number or a pair of vectors of lengths {n} and {m}")
    for name, x in (("values", value), ("default", of_row), ("default", of_column)):
        if not bool(torch.isfinite(x).all()):
            raise SaevalError(f"{name} must be finite; remove rows that have no similarity")
    for name, x, length in (("rows", i, n), ("cols", j, m)):
        if len(x) and not 0 <= int(x.min()) <= int(x.max()) < length:
            raise SaevalError(f"{name} must lie in 0..{length - 1}, found {int(x.min())}..{int(x.max())}")
    keys, order = (i * m + j.to(i.device)).sort()
    repeated = torch.nonzero(keys[1:] == keys[:-1])
    if len(repeated):
        pair = divmod(int(keys[int(repeated[0])]), m)
        raise SaevalError(f"the pair {pair} is listed twice; list each pair once")
    return Listed(keys, value.to(i.device)[order], of_row, of_column)


def _tensor(array: Any, name: str, whole: bool = False) -> Tensor:
    """A tensor of the numbers, unrounded: float32 or float64; int64 if `whole`."""
    try:
        x = array.detach() if isinstance(array, torch.Tensor) else torch.from_numpy(np.require(array, None, ["C", "W"]))
    except (TypeError, ValueError) as error:
        raise SaevalError(f"{name} must be a tensor or an array of numbers: {error}") from error
    if x.is_complex() or (whole and x.is_floating_point() and x.numel()):
        raise SaevalError(f"{name} must hold {'whole' if whole else 'real'} numbers, found {x.dtype}")
    if x.device.type not in ("cpu", "cuda"):  # others lack float64
        x = x.cpu()
    if whole:
        return x.long()
    small = x.dtype in (torch.float32, torch.float16, torch.bfloat16)
    return x.float() if small else x.double()


@numba.njit(cache=True, nogil=True, fastmath={"reassoc", "contract"})
def _dots(a, b, rows, columns, products):  # type: ignore[no-untyped-def]
    """Write float64 products of single pairs of rows; gathering the rows first would take twenty times as long."""
    for k in range(len(rows)):
        left, right, total = a[rows[k]], b[columns[k]], 0.0
        for q in range(a.shape[1]):
            total += np.float64(left[q]) * np.float64(right[q])
        products[k] = total


def fastest(device: torch.device) -> torch.dtype:
    """bfloat16 on CPUs with native products (at least twice as fast as float32), else float32."""
    if device.type != "cpu" or not hasattr(torch.cpu, "get_capabilities"):
        return torch.float32
    capabilities = torch.cpu.get_capabilities()
    return torch.bfloat16 if capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") else torch.float32


@contextmanager
def _full_precision(device: torch.device) -> Iterator[None]:
    """Compute float32 products in float32, whatever the global settings; TF32 and bfloat16 break the error bound."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before)
