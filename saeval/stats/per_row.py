"""`PerRow`: evidence that keeps columns of numbers or text with one entry per row of the stream."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from jaxtyping import Int

from saeval.base.lazy_torch import is_tensor
from saeval.stats.evidence import Evidence, Stamp

if TYPE_CHECKING:
    from torch import Tensor

_ID, _CLUSTER, _ROW = "_id", "_cluster", "_row"


@dataclasses.dataclass(frozen=True, eq=False)
class PerRow(Evidence):
    """Columns with one entry per row (or pair) of the stream, in its order.

    Parts are joined only when they have similar sizes, so that n batches cost n log n.
    """

    parts: tuple[Mapping[str, np.ndarray[Any, Any]], ...]
    n_clusters: int = 0
    """Number of documents in the stream."""

    @classmethod
    def of(cls, rows: Int[np.ndarray, "n"] | None = None, /, **columns: Tensor | np.ndarray[Any, Any]) -> Self:
        """Return columns `[n, ...]` of the batch's rows `rows`, or of all of them."""
        chosen = {} if rows is None else {_ROW: rows}
        return cls(({**chosen, **{name: _array(column) for name, column in columns.items()}},))

    def stamp(self, stamp: Stamp) -> Self:
        (part,) = self.parts
        rows = part.get(_ROW, slice(None))
        columns = {name: column for name, column in part.items() if name != _ROW}
        origin = {_ID: stamp.sequence_ids[rows], _CLUSTER: stamp.clusters[rows]}
        return type(self)(({**columns, **origin},), stamp.n_clusters)

    def __add__(self, other: Self) -> Self:
        parts = [*self.parts, *other.parts]
        while len(parts) > 1 and len(parts[-2][_ID]) <= len(parts[-1][_ID]):
            last, before = parts.pop(), parts.pop()
            parts.append({name: np.concatenate([before[name], last[name]]) for name in before})
        return type(self)(tuple(parts), self.n_clusters)

    def state(self) -> dict[str, np.ndarray[Any, Any]]:
        return {"n_clusters": np.asarray(self.n_clusters), **self._whole}

    @classmethod
    def from_state(cls, state: Mapping[str, np.ndarray[Any, Any]]) -> Self:
        return cls(({k: v for k, v in state.items() if k != "n_clusters"},), int(state["n_clusters"]))

    @cached_property
    def _whole(self) -> dict[str, np.ndarray[Any, Any]]:
        """All rows, sorted by id."""
        whole = {name: np.concatenate([part[name] for part in self.parts]) for name in self.parts[0]}
        order = np.argsort(whole[_ID], kind="stable") if _ID in whole else slice(None)
        return {name: column[order] for name, column in whole.items()}

    def __getitem__(self, name: str) -> np.ndarray[Any, Any]:
        return self._whole[name]

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def ids(self) -> Int[np.ndarray, "n"]:
        """Index of each row in the stream."""
        return self._whole[_ID]

    @property
    def clusters(self) -> Int[np.ndarray, "n"]:
        """Document of each row."""
        return self._whole[_CLUSTER]

    @property
    def names(self) -> list[str]:
        """Names of the columns."""
        return [name for name in self._whole if name not in (_ID, _CLUSTER)]


def _array(column: Tensor | np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return column.detach().cpu().numpy() if is_tensor(column) else np.asarray(column)
