"""`Fired`: a sparse list of the features that fire on each token."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from saeval.base.lazy_torch import torch

if TYPE_CHECKING:
    from torch import Tensor


class Fired(NamedTuple):
    """The nonzero feature activations of a batch, as pairs of token and feature, ordered by token."""

    token: Int[Tensor, "k"]
    """Token of each nonzero activation: row · seq + position, ascending."""
    feature: Int[Tensor, "k"]
    """Feature of each nonzero activation, 0 .. d_sae - 1."""
    shape: tuple[int, int, int]
    """(batch, seq, d_sae)"""

    @classmethod
    def of(cls, feature_acts: Float[Tensor, "batch seq d_sae"]) -> Fired:
        """Return the nonzero activations of a batch."""
        fires = (feature_acts != 0).flatten()
        on_cpu = fires.device.type == "cpu"  # numpy's search is five times faster than torch's
        index = torch.from_numpy(np.flatnonzero(fires.numpy())) if on_cpu else fires.nonzero()[:, 0]
        batch, seq, d_sae = feature_acts.shape
        return cls(index // d_sae, index % d_sae, (batch, seq, d_sae))

    def per_token(self) -> Int[Tensor, "batch seq"]:
        """Return the number of features that fire on each token (L0)."""
        batch, seq, _ = self.shape
        return torch.bincount(self.token, minlength=batch * seq).view(batch, seq)

    def per_feature(self, mask: Bool[Tensor, "batch seq"]) -> Int[Tensor, "d_sae"]:
        """Return the number of tokens of the mask on which each feature fires."""
        inside = self.feature[mask.to(self.feature.device).flatten()[self.token]]
        return torch.bincount(inside, minlength=self.shape[-1])
