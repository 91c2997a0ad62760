"""Quantities of data with a ground truth: the true features, and the matching of a dictionary with them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int

from saeval.plugin import Undefined, torch

if TYPE_CHECKING:
    from torch import Tensor

    from saeval_synthetic.world import TrueFeatures, World

MISSING = "the data have no ground truth; use data such as {use: synthetic, preset: small}"


def truth() -> World:
    """The world behind the data, a `World`: true directions, hierarchy, correlations; only if the data supply it."""
    raise Undefined(MISSING)


def true_features() -> TrueFeatures:
    """The true features that fire on each token, a `TrueFeatures`; only if the data supply them."""
    raise Undefined(MISSING)


@dataclass(frozen=True, eq=False)
class TrueMatch:
    """A one-to-one matching of true features with latents that maximises the sum of signed cosines."""

    latent: Int[np.ndarray, "n"]
    """Latent of each true feature; -1 if there are fewer latents than features and it has none."""
    cosine: Float[np.ndarray, "n"]
    """Cosine between the true direction and the latent's decoder row; NaN without a latent."""
    latents: int
    """Number of latents."""
    nearest: Int[np.ndarray, "m"]
    """Nearest true feature of each latent, not one-to-one."""
    nearest_cosine: Float[np.ndarray, "m"]

    @property
    def matched(self) -> Int[np.ndarray, "k"]:
        """The true features that have a latent, ascending."""
        return np.flatnonzero(self.latent >= 0)

    @property
    def mcc(self) -> float:
        """Sum of the matched cosines over the larger of the numbers of features and latents."""
        return float(self.cosine[self.matched].sum()) / max(len(self.latent), self.latents)


def matched(W_dec: Float[Tensor, "m d"], directions: Float[np.ndarray, "n d"]) -> TrueMatch:
    """Return the best matching of a dictionary with true directions; `Undefined` if their widths differ."""
    from saeval_stability import match  # late: it loads numba, which only a run needs

    if W_dec.shape[1] != directions.shape[1]:
        raise Undefined(f"its decoder is {W_dec.shape[1]} wide, the true directions {directions.shape[1]}")
    found = match(torch.from_numpy(directions).to(W_dec.device), W_dec.detach())
    return TrueMatch(found.indices, found.cosines, len(W_dec), found.b_to_a.indices, found.b_to_a.cosines)


def true_match(W_dec: Float[Tensor, "d_sae d_out"], truth: World) -> TrueMatch:
    """The one-to-one matching of the SAE's latents with the true features, by signed cosines, exact."""
    return matched(W_dec, truth.directions)


def chance_matches(
    W_dec: Float[Tensor, "d_sae d_out"], truth: World, draws: int, seed: int
) -> list[tuple[Any, TrueMatch]]:
    """The decoder after `draws` random rotations, each with its matching: what unrelated latents would reach."""
    from saeval_stability.floors import rotations  # late: it imports torch

    turned = (spaces["decoder"] for spaces in rotations({"decoder": W_dec.detach()}, seed, draws))
    return [(rotated, matched(rotated, truth.directions)) for rotated in turned]
