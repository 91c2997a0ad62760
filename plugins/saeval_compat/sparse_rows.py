"""Pooled features of texts, stored without their zeros."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np
from jaxtyping import Float, Int

from saeval.plugin import Evidence, Stamp

if TYPE_CHECKING:
    from scipy.sparse import csr_array
    from torch import Tensor


class Part(NamedTuple):
    """The entries of some rows that are not 0, row after row."""

    ids: Int[np.ndarray, "n"]
    """Index of each row in the stream; until the engine stamps it, in the batch."""
    counts: Int[np.ndarray, "n"]
    """Number of entries of each row."""
    columns: Int[np.ndarray, "entries"]
    values: Float[np.ndarray, "entries"]


@dataclasses.dataclass(frozen=True, eq=False)
class SparseRows(Evidence):
    """Numbers of rows of the stream: `rows[ids]` is `[ids, width]`, float32, with all zeros.

    Parts are joined only when they have similar sizes, so that n batches cost n log n.
    """

    parts: tuple[Part, ...]
    width: int

    @classmethod
    def of(cls, rows: Int[np.ndarray, "n"], z: Float[Tensor, "n d"]) -> Self:
        """Return the numbers `z` of some rows of a batch."""
        values = z.detach().float().cpu().numpy()
        row, column = values.nonzero()
        counts = np.bincount(row, minlength=len(rows))
        return cls((Part(rows, counts, column.astype(np.int32), values[row, column]),), z.shape[1])

    def stamp(self, stamp: Stamp) -> Self:
        (part,) = self.parts
        return type(self)((part._replace(ids=np.asarray(stamp.sequence_ids)[part.ids]),), self.width)

    def __add__(self, other: Self) -> Self:
        parts = [*self.parts, *other.parts]
        while len(parts) > 1 and len(parts[-2].ids) <= len(parts[-1].ids):
            last, before = parts.pop(), parts.pop()
            parts.append(_joined([before, last]))
        return type(self)(tuple(parts), self.width)

    def state(self) -> dict[str, np.ndarray[Any, Any]]:
        return {"width": np.asarray(self.width), **_joined(self.parts)._asdict()}

    @classmethod
    def from_state(cls, state: Mapping[str, np.ndarray[Any, Any]]) -> Self:
        return cls((Part(**{name: state[name] for name in Part._fields}),), int(state["width"]))

    @cached_property
    def _matrix(self) -> tuple[Int[np.ndarray, "n"], csr_array]:
        """The ids, ascending, and the rows in this order."""
        from scipy.sparse import csr_array  # late: it takes a quarter of a second, and few verbs fit probes

        whole = _joined(self.parts)
        starts = np.concatenate([[0], np.cumsum(whole.counts)])
        matrix = csr_array((whole.values, whole.columns, starts), shape=(len(whole.ids), self.width))
        order = np.argsort(whole.ids, kind="stable")
        return whole.ids[order], matrix[order]

    def __getitem__(self, ids: Int[np.ndarray, "rows"]) -> Float[np.ndarray, "rows width"]:
        known, matrix = self._matrix
        return np.asarray(matrix[np.searchsorted(known, ids)].toarray())


def _joined(parts: tuple[Part, ...] | list[Part]) -> Part:
    return Part(*(np.concatenate(fields) for fields in zip(*parts, strict=True)))
