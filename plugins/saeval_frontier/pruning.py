"""Pruned SAEs: the order in which features are dropped, where to stop for a given L0, and the pruned reconstruction."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, UInt64

from saeval.plugin import Encoding, Fired, Moments, Substitute, Undefined, fit_split, fold, hashed, torch

if TYPE_CHECKING:
    from torch import Tensor

ORDERS = ("most_frequent", "least_frequent", "least_contribution", "random")
FILLS = ("zero", "mean")
ROUNDING = 1e-12
"""Relative difference of two numbers of features that counts as float64 rounding."""


class Target(NamedTuple):
    """The L0 at which a prune curve has a point: a number of features, or a fraction of the SAE's own L0."""

    amount: float
    fraction: bool

    def __str__(self) -> str:
        return f"{self.amount:.12g}" if self.fraction else f"L0={self.amount:.12g}"


@fold
@fit_split
def fit_features(
    feature_acts: Float[Tensor, "batch seq d_sae"], fired: Fired, mask: Bool[Tensor, "batch seq"]
) -> dict[str, Moments]:
    """Fold over the fit split: sum of each feature's activations, and number of tokens on which it fires."""
    counts = fired.per_feature(mask).double().cpu().numpy()
    return {"acts": Moments.of(feature_acts, mask), "fired": Moments(int(mask.sum()), counts)}


@dataclass(frozen=True)
class PruneOrders:
    """The features of an SAE in each order of dropping them, and the L0 that is left on the fit split."""

    mean: Float[np.ndarray, "d_sae"]
    """Mean activation of each feature, over all tokens."""
    orders: Mapping[str, Int[np.ndarray, "d_sae"]]
    left: Mapping[str, Float[np.ndarray, "d_sae+1"]]
    """L0 on the fit split after the first 0, 1, ... d_sae features of an order are dropped."""

    @property
    def l0(self) -> float:
        """L0 of the whole SAE on the fit split."""
        return float(next(iter(self.left.values()))[0])

    def reaches(self, target: Target) -> bool:
        """True if the target is not above the SAE's own L0."""
        return target.fraction or target.amount <= self.l0

    def dropped(self, order: str, target: Target) -> Bool[np.ndarray, "d_sae"]:
        """True for the fewest features, in this order, without which the L0 is at most the target."""
        limit = target.amount * (self.l0 if target.fraction else 1.0) * (1 + ROUNDING)  # 0.57 · 100 is below 57
        count = int(np.argmax(self.left[order] <= limit)) if limit < self.l0 else 0
        dropped = np.zeros(len(self.mean), dtype=bool)
        dropped[self.orders[order][:count]] = True
        return dropped


def prune_orders(fit_features: dict[str, Moments], W_dec: Float[Tensor, "d_sae d_out"], seed: int) -> PruneOrders:
    """Orders of dropping features, from their frequency f̄ ≠ 0 and mean contribution |E f|·‖d‖ on the fit split."""
    fired, acts = fit_features["fired"], fit_features["acts"]
    if fired.n == 0:
        raise Undefined("the fit split has no token in its mask, so no feature has a frequency; change 'exclude'")
    norms = W_dec.double().norm(dim=-1).cpu().numpy()
    keys = {
        "most_frequent": -fired.sum,
        "least_frequent": fired.sum,
        "least_contribution": np.abs(acts.mean) * norms,
        "random": hashed(seed, "prune order", np.arange(len(fired.sum))),
    }
    orders = {name: np.argsort(key, kind="stable") for name, key in keys.items()}
    left = {
        name: (fired.sum.sum() - np.concatenate([[0.0], np.cumsum(fired.sum[order])])) / fired.n
        for name, order in orders.items()
    }
    return PruneOrders(acts.mean, orders, left)


def pruned(
    sae: Substitute,
    encoding: Encoding | None,
    activations: Float[Tensor, "batch seq d_in"],
    token_keys: UInt64[np.ndarray, "batch seq"],
    prune_orders: PruneOrders,
    *,
    order: str,
    fill: str,
    target: Target,
) -> Float[Tensor, "batch seq d_in"]:
    """The reconstruction without some features: each is 0, or its mean, which amounts to a change of b_dec."""
    if encoding is None:
        raise Undefined(f"{sae.name} has no features to prune")
    acts = encoding.feature_acts
    dropped = torch.from_numpy(prune_orders.dropped(order, target)).to(acts.device)
    constant = torch.from_numpy(prune_orders.mean).to(acts) if fill == "mean" else acts.new_zeros(())
    part: Any = encoding._replace(feature_acts=torch.where(dropped, constant, acts))
    return sae.at(token_keys).decode(part, activations.to(sae.device or activations.device)).to(activations.device)
