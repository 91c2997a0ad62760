"""Evidence with entries per pair: `PerPair` for numbers and labels, `Top` for the few best texts."""

from __future__ import annotations

import dataclasses
from typing import Any, Self

import numpy as np
from jaxtyping import Bool, Float, Int

from saeval.plugin import Estimate, Evidence, PerRow, Ratio, Stamp


@dataclasses.dataclass(frozen=True, eq=False)
class PerPair(PerRow):
    """Columns with one entry per pair, so that results can be split by any column afterwards."""

    def mean(self, values: Float[np.ndarray, "n"], where: Bool[np.ndarray, "n"] | None = None) -> Estimate:
        """Mean of `values` over the rows `where`, with errors clustered by document."""
        return self.ratio(values, np.ones(len(values)), where)

    def ratio(
        self, top: Float[np.ndarray, "n"], below: Float[np.ndarray, "n"], where: Bool[np.ndarray, "n"] | None = None,
        blocks: int | None = None,
    ) -> Estimate:  # fmt: skip
        """Σ top / Σ below over the rows `where`, clustered by document, or by `cluster % blocks` with `blocks`."""
        rows = slice(None) if where is None else where
        clusters = self.clusters[rows] % (blocks or max(self.n_clusters, 1))
        size = blocks or self.n_clusters

        def sums(values: np.ndarray) -> np.ndarray:
            return np.bincount(clusters, values[rows].astype(np.float64), minlength=size)

        return Ratio(sums(top), sums(below), np.bincount(clusters, minlength=size)).value


@dataclasses.dataclass(frozen=True, eq=False)
class Largest(Evidence):
    """The entries with the largest scores along the last axis of `score`; equal scores are ordered by (pair, side)."""

    score: Float[np.ndarray, "*n places"]
    ids: Int[np.ndarray, "*n places"]
    side: Int[np.ndarray, "*n places"]
    size: int
    """Largest number of entries kept."""

    def stamp(self, stamp: Stamp) -> Self:
        return dataclasses.replace(self, ids=stamp.sequence_ids[self.ids])._largest()

    def __add__(self, other: Self) -> Self:
        axis, both = self.score.ndim - 1, zip(self._columns().items(), other._columns().values(), strict=True)
        joined: dict[str, Any] = {name: np.concatenate([mine, theirs], axis) for (name, mine), theirs in both}
        return dataclasses.replace(self, **joined)._largest()

    def _largest(self) -> Self:
        order, axis = np.lexsort((self.side, self.ids, -self.score), axis=-1)[..., : self.size], self.score.ndim - 1
        largest: dict[str, Any] = {}
        for name, column in self._columns().items():
            index = order.reshape(*order.shape, *([1] * (column.ndim - order.ndim)))
            largest[name] = np.take_along_axis(column, index, axis)
        return dataclasses.replace(self, **largest)

    def _columns(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "size"}


@dataclasses.dataclass(frozen=True, eq=False)
class Top(Largest):
    """The `size` texts with the largest scores."""

    text: np.ndarray
