"""Sums over the batches of another harness, which its means of per-batch ratios need."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from jaxtyping import Bool, Float, Int

from saeval.plugin import Evidence, Mean, Spread, Stamp, fold, torch

if TYPE_CHECKING:
    from torch import Tensor


@dataclasses.dataclass(frozen=True, eq=False)
class PerBatch(Evidence):
    """Sums over groups of `size` consecutive sequences of the data, however saeval batches them."""

    groups: Int[np.ndarray, "groups"]
    sums: Float[np.ndarray, "groups k"]
    n: Int[np.ndarray, "groups"]
    """Tokens of each group."""
    size: int

    @classmethod
    def of(cls, x: Float[Tensor, "batch seq k"], mask: Bool[Tensor, "batch seq"], size: int) -> Self:
        """Sums of `x` over `mask`; until the engine stamps it, every sequence is a group of its own."""
        rows = Mean.of(x, mask)
        return cls(np.arange(len(rows.n)), rows.numerator, rows.n, size)

    def stamp(self, stamp: Stamp) -> Self:
        return dataclasses.replace(self, groups=np.asarray(stamp.sequence_ids) // self.size)._merged()

    def __add__(self, other: Self) -> Self:
        return dataclasses.replace(
            self,
            groups=np.concatenate([self.groups, other.groups]),
            sums=np.concatenate([self.sums, other.sums]),
            n=np.concatenate([self.n, other.n]),
        )._merged()

    def _merged(self) -> Self:
        groups, place = np.unique(self.groups, return_inverse=True)
        sums, n = np.zeros((len(groups), self.sums.shape[1])), np.zeros(len(groups), dtype=np.int64)
        np.add.at(sums, place, self.sums)
        np.add.at(n, place, self.n)
        return dataclasses.replace(self, groups=groups, sums=sums, n=n)

    @property
    def means(self) -> Float[np.ndarray, "groups k"]:
        """Mean of each group over its tokens; groups without tokens are left out."""
        some = self.n > 0
        return np.asarray(self.sums[some] / self.n[some, None])

    def of_sequences(self, sequence_ids: Int[np.ndarray, "batch"]) -> Float[np.ndarray, "batch k"]:
        """Mean of the group that each sequence belongs to."""
        place = np.searchsorted(self.groups, np.asarray(sequence_ids) // self.size)
        return np.asarray((self.sums / np.maximum(self.n, 1)[:, None])[place])

    def components(self) -> dict[str, Any]:
        return {"groups": len(self.groups), "size": self.size, "n": int(self.n.sum())}


@fold
def batch_sums(
    activations: Float[Tensor, "batch seq d_in"], included: Bool[Tensor, "batch seq"], batch_size: int
) -> PerBatch:
    """Fold: sums of the activations over each batch of `batch_size` sequences (a parameter of the metric)."""
    return PerBatch.of(activations.double(), included, batch_size)


@fold
def included_spread(activations: Float[Tensor, "batch seq d_in"], included: Bool[Tensor, "batch seq"]) -> Spread:
    """Fold: sums of the activations and of their squares over all tokens that are not excluded."""
    return Spread.of(activations, included)


def columns(*values: Float[Tensor, "batch seq"]) -> Float[Tensor, "batch seq k"]:
    """Stack per-token numbers as columns, in float64."""
    return torch.stack([value.double() for value in values], -1)
