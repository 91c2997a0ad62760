"""`Spread`: squared distances from a point that is known only at the end, such as the mean."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from jaxtyping import Bool, Float, Int

from saeval.evidence import Evidence, Mean, Ratio, Stamp
from saeval.late import torch

if TYPE_CHECKING:
    from torch import Tensor


@dataclasses.dataclass(frozen=True, eq=False)
class Spread(Evidence):
    """Sums of vectors and of their squared norms over the mask, for each cluster.

    Since Σ‖x − μ‖² = Σ‖x‖² − 2 μ·Σx + n‖μ‖², one pass gives each cluster's share of the variance, though
    the mean is not known before its end. Sums are float64.
    """

    sum: Float[np.ndarray, "clusters d"]
    """Σ x of each cluster, in units of x."""
    squares: Float[np.ndarray, "clusters"]
    """Σ ‖x‖² of each cluster."""
    n: Int[np.ndarray, "clusters"]
    """Tokens of each cluster."""

    @classmethod
    def of(cls, x: Float[Tensor, "batch seq d"], mask: Bool[Tensor, "batch seq"]) -> Self:
        """Sums over `mask`; values outside it are never read."""
        x = x.detach().double()
        sums = Mean.of(torch.cat([x, x.square().sum(-1, keepdim=True)], -1), mask)
        return cls(sums.numerator[:, :-1], sums.numerator[:, -1], sums.n)

    def stamp(self, stamp: Stamp) -> Self:
        joined = Ratio(np.column_stack([self.sum, self.squares]), np.zeros(len(self.n)), self.n).stamp(stamp)
        return dataclasses.replace(self, sum=joined.numerator[:, :-1], squares=joined.numerator[:, -1], n=joined.n)

    @property
    def mean(self) -> Float[np.ndarray, "d"]:
        """Mean vector; zeros where nothing was counted."""
        found: np.ndarray = self.sum.sum(0) / max(int(self.n.sum()), 1)
        return found

    def around(self, point: Float[np.ndarray, "d"]) -> Float[np.ndarray, "clusters"]:
        """Each cluster's sum of squared distances from `point`; zeros where all of them are lost in rounding."""
        found: np.ndarray = self.squares - 2 * self.sum @ point + self.n * (point @ point)
        return found if found.sum() > 1e-13 * self.squares.sum() else np.zeros_like(found)

    def components(self) -> dict[str, Any]:
        return {"n": int(self.n.sum())}
