"""Evidence with entries per pair: `PerPair` for numbers and labels, `Top` for the few best texts."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from jaxtyping import Bool, Float, Int

from saeval.plugin import Estimate, Evidence, Ratio, Stamp, is_tensor

if TYPE_CHECKING:
    from torch import Tensor

_ID, _CLUSTER = "_id", "_cluster"


@dataclasses.dataclass(frozen=True, eq=False)
class PerPair(Evidence):
    """Columns with one entry per pair, so that results can be split by any column afterwards.

    Parts are joined only when they have similar sizes, so that n batches cost n log n.
    """

    parts: tuple[Mapping[str, np.ndarray], ...]
    n_clusters: int = 0

    @classmethod
    def of(cls, **columns: Tensor | np.ndarray) -> Self:
        """Columns `[batch]`: tensors, or arrays of text."""
        return cls(({name: _array(column) for name, column in columns.items()},))

    def stamp(self, stamp: Stamp) -> Self:
        (part,) = self.parts
        return type(self)(({**part, _ID: stamp.sequence_ids, _CLUSTER: stamp.clusters},), stamp.n_clusters)

    def __add__(self, other: Self) -> Self:
        parts = [*self.parts, *other.parts]
        while len(parts) > 1 and len(parts[-2][_ID]) <= len(parts[-1][_ID]):
            last, before = parts.pop(), parts.pop()
            parts.append({name: np.concatenate([before[name], last[name]]) for name in before})
        return type(self)(tuple(parts), self.n_clusters)

    def state(self) -> dict[str, np.ndarray]:
        return {"n_clusters": np.asarray(self.n_clusters), **self._whole}

    @classmethod
    def from_state(cls, state: Mapping[str, np.ndarray]) -> Self:
        return cls(({k: v for k, v in state.items() if k != "n_clusters"},), int(state["n_clusters"]))

    @cached_property
    def _whole(self) -> dict[str, np.ndarray]:
        """All rows, sorted by id."""
        whole = {name: np.concatenate([part[name] for part in self.parts]) for name in self.parts[0]}
        order = np.argsort(whole[_ID], kind="stable") if _ID in whole else slice(None)
        return {name: column[order] for name, column in whole.items()}

    def __getitem__(self, name: str) -> np.ndarray:
        return self._whole[name]

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def ids(self) -> Int[np.ndarray, "n"]:
        return self._whole[_ID]

    @property
    def clusters(self) -> Int[np.ndarray, "n"]:
        return self._whole[_CLUSTER]

    @property
    def names(self) -> list[str]:
        return [name for name in self._whole if name not in (_ID, _CLUSTER)]

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


def _array(column: Tensor | np.ndarray) -> np.ndarray:
    return column.detach().cpu().numpy() if is_tensor(column) else np.asarray(column)


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
