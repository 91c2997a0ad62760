"""Comparison of the SAE with noise without the few tokens of the largest KL."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import numpy as np
from jaxtyping import Bool, Float

from saeval.plugin import Evidence

if TYPE_CHECKING:
    from torch import Tensor

SHARES = (0.01, 0.05)
"""Shares of the tokens that are left out."""
EDGES = np.geomspace(1e-12, 100, 701)
"""Edges of the bins of KL, in nats; each is 4.7% above the one before."""


@dataclass(frozen=True, eq=False)
class ByKL(Evidence):
    """Number of tokens, and sums of their KL of the SAE and mean KL of the noise, in bins of a token's mean KL.

    The mean is over the SAE and all draws alike. So the choice of the largest favours neither of them, and a factor
    that is the same at all tokens changes no ratio.
    """

    sums: Float[np.ndarray, "3 bins"]

    @classmethod
    def of(
        cls, kl: Float[Tensor, "batch seq"], drawn: Float[Tensor, "draws batch seq"], mask: Bool[Tensor, "batch seq"]
    ) -> Self:
        """Return the sums of one batch."""
        sae, noise = kl[mask].cpu().numpy(), drawn.mean(0)[mask].cpu().numpy()
        bins = np.searchsorted(EDGES, (sae + len(drawn) * noise) / (1 + len(drawn)))
        return cls(np.stack([np.bincount(bins, w, len(EDGES) + 1) for w in (np.ones(len(bins)), sae, noise)]))

    def without(self, share: float) -> tuple[float, float]:
        """Return the share of the difference, Σ KL_sae − Σ KL of the noise, in this share of the tokens with the
        largest mean KL, and the ratio Σ KL_sae / Σ KL of the noise of all others.

        Inside a bin, sums grow linearly with the number of tokens.
        """
        tokens, sae, noise = np.pad(self.sums[:, ::-1].cumsum(1), ((0, 0), (1, 0)))
        top_sae, top_noise = (np.interp(share * tokens[-1], tokens, sums) for sums in (sae, noise))
        with np.errstate(invalid="ignore", divide="ignore"):  # 0 / 0 if there is no difference, or no KL
            part = (top_sae - top_noise) / (sae[-1] - noise[-1])
            rest = (sae[-1] - top_sae) / (noise[-1] - top_noise)
        return float(part), float(rest)
