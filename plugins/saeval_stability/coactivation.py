"""Similarity of two SAEs' features by their activations on the same tokens."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

import numba
import numpy as np
from scipy.sparse import csc_array, csr_array

from saeval.plugin import torch
from saeval_stability.similarity import Floats, Ints, Similarity

if TYPE_CHECKING:
    from torch import Tensor


class Side:
    """Sparse activations `[tokens, n]` of one SAE's features, with their moments."""

    def __init__(self, values: csc_array) -> None:
        self.columns = values
        self.columns.sort_indices()
        n = values.shape[0]
        self.mean: Floats = np.asarray(values.sum(0)).ravel() / n
        self.square: Floats = np.asarray(values.multiply(values).sum(0)).ravel() / n
        self.fired: Ints = np.diff(values.indptr)

    @cached_property
    def rows(self) -> csr_array:
        """The same activations by token, for the right side of a product."""
        return self.columns.tocsr()

    @property
    def deviation(self) -> Floats:
        """Standard deviation over all tokens; exactly 0 if it could be rounding error."""
        variance = self.square - self.mean**2
        deviation: Floats = np.sqrt(np.where(variance > 1e-12 * self.square, variance, 0.0))
        return deviation


SMALL = 1 << 24
"""Most pairs whose sums are stored (128 MB), since the solver requests some of them twice."""


class Coactivation(Similarity):
    """A similarity computed by `_of` from sums over tokens of products of activations; small matrices are stored."""

    device = torch.device("cpu")

    def __init__(self, a: Side, b: Side) -> None:
        self.a, self.b = a, b
        self.shape = (a.columns.shape[1], b.columns.shape[1])

    @property
    def T(self) -> Coactivation:  # noqa: N802
        return type(self)(self.b, self.a)

    def _of(self, sums: Floats, rows: Any, columns: Any) -> Floats:
        """Similarities from sums, for indices `rows` and `columns` that broadcast to the shape of `sums`."""
        raise NotImplementedError

    def block(
        self, rows: slice | Tensor, columns: Tensor | None, dtype: torch.dtype, out: Tensor | None = None
    ) -> Tensor:
        i = np.arange(self.shape[0])[rows if isinstance(rows, slice) else rows.numpy()]
        j = np.arange(self.shape[1]) if columns is None else columns.numpy()
        sums = self._whole[np.ix_(i, j)] if self._small else self.sums(i, j)
        return torch.from_numpy(self._of(sums, i[:, None], j[None])).to(dtype)

    @property
    def _small(self) -> bool:
        return self.shape[0] * self.shape[1] <= SMALL

    @cached_property
    def _whole(self) -> Floats:
        return self.sums(np.arange(self.shape[0]), np.arange(self.shape[1]))

    def sums(self, rows: Ints, columns: Ints) -> Floats:
        """Sums over tokens of the products of columns `rows` of A with columns `columns` of B."""
        a = self.a.columns
        b = self.b.rows if len(columns) == self.shape[1] else self.b.columns[:, columns].tocsr()
        sums: Floats = np.zeros((len(rows), len(columns)))
        features = b.indices.astype(np.uint32)  # twice as fast: numba need not check for negative indices
        _add_products(a.indptr, a.indices, a.data, rows, b.indptr, features, b.data, sums)
        return sums

    def values(self, rows: Ints, columns: Ints) -> Floats:
        if self._small:
            return self._of(self._whole[rows, columns], rows, columns)
        a, b = self.a.columns, self.b.columns
        sums = _products(a.indptr, a.indices, a.data, b.indptr, b.indices, b.data, rows, columns)
        return self._of(sums, rows, columns)

    def error(self, dtype: torch.dtype) -> float:
        return 2 * float(torch.finfo(dtype).eps)


class Pearson(Coactivation):
    """Correlation of activations over all tokens, zeros included; every feature must vary."""

    def _of(self, sums: Floats, rows: Any, columns: Any) -> Floats:
        n = self.a.columns.shape[0]
        covariance = sums / n - self.a.mean[rows] * self.b.mean[columns]
        correlation = covariance / (self.a.deviation[rows] * self.b.deviation[columns])
        return np.asarray(np.clip(correlation, -1.0, 1.0))

    def error(self, dtype: torch.dtype) -> float:
        # Subtracting the means loses precision by the ratio of a feature's mean square to its variance.
        lost = [float(np.sqrt((side.square / side.deviation**2).max())) for side in (self.a, self.b)]
        return super().error(dtype) + 64 * float(np.finfo(np.float64).eps) * lost[0] * lost[1]


class Jaccard(Coactivation):
    """Tokens on which both features fire / tokens on which either fires; the sides' values must be 1 or 0."""

    def _of(self, sums: Floats, rows: Any, columns: Any) -> Floats:
        either = self.a.fired[rows] + self.b.fired[columns] - sums
        return np.asarray(sums / np.maximum(either, 1))


@numba.njit(cache=True, nogil=True)
def _add_products(starts_a, tokens_a, a, rows, starts_b, features_b, b, sums):  # type: ignore[no-untyped-def]
    """Add products of sparse columns of A with all columns of B to `sums`, one row at a time to stay in the cache."""
    for line in range(len(rows)):
        row = sums[line]
        for p in range(starts_a[rows[line]], starts_a[rows[line] + 1]):
            token, value = tokens_a[p], a[p]
            for q in range(starts_b[token], starts_b[token + 1]):
                row[features_b[q]] += value * b[q]


@numba.njit(cache=True, nogil=True)
def _products(starts_a, tokens_a, a, starts_b, tokens_b, b, rows, columns):  # type: ignore[no-untyped-def]
    """Sums of products of single pairs of sparse columns, by merging their sorted tokens."""
    sums = np.empty(len(rows))
    for k in range(len(rows)):
        p, q, total = starts_a[rows[k]], starts_b[columns[k]], 0.0
        end_p, end_q = starts_a[rows[k] + 1], starts_b[columns[k] + 1]
        while p < end_p and q < end_q:
            if tokens_a[p] == tokens_b[q]:
                total += a[p] * b[q]
                p += 1
                q += 1
            elif tokens_a[p] < tokens_b[q]:
                p += 1
            else:
                q += 1
        sums[k] = total
    return sums
