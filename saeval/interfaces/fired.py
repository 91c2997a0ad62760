"""`Fired`: which features fire on which tokens, as a list: few do, and all that counts them reads the list."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from saeval.base.lazy_torch import torch

if TYPE_CHECKING:
    from torch import Tensor


class Fired(NamedTuple):
    """The activations of a batch that are not 0, token by token: of which token (row · seq + position) and feature."""

    token: Int[Tensor, "k"]
    """Token of each activation that is not 0: row · seq + position, ascending."""
    feature: Int[Tensor, "k"]
    """Its feature, 0 .. d_sae - 1."""
    shape: tuple[int, int, int]
    """(batch, seq, d_sae)"""

    @classmethod
    def of(cls, feature_acts: Float[Tensor, "batch seq d_sae"]) -> Fired:
        """The activations of a batch that are not 0."""
        fires = (feature_acts != 0).flatten()
        here = fires.device.type == "cpu"  # numpy's search is five times faster than torch's
        index = torch.from_numpy(np.flatnonzero(fires.numpy())) if here else fires.nonzero()[:, 0]
        batch, seq, d_sae = feature_acts.shape
        return cls(index // d_sae, index % d_sae, (batch, seq, d_sae))

    def per_token(self) -> Int[Tensor, "batch seq"]:
        """How many features fire on each token: its L0."""
        batch, seq, _ = self.shape
        return torch.bincount(self.token, minlength=batch * seq).view(batch, seq)

    def per_feature(self, mask: Bool[Tensor, "batch seq"]) -> Int[Tensor, "d_sae"]:
        """On how many tokens of the mask each feature fires."""
        inside = self.feature[mask.to(self.feature.device).flatten()[self.token]]
        return torch.bincount(inside, minlength=self.shape[-1])
