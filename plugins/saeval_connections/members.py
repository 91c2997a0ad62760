"""Requests for one of the two SAEs of a group, the earlier or the later, and the folds that both need."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float, Int

from saeval.plugin import Batch, Evidence, Fired, Resume, fit_split, fold, rebound, resuming
from saeval_stability.firing import Activity, activity

if TYPE_CHECKING:
    from torch import Tensor


@fold
@fit_split
def fit_activity(
    batch: Batch,
    feature_acts: Float[Tensor, "batch seq d_sae"],
    fired: Fired,
    mask: Bool[Tensor, "batch seq"],
    token_ranks: Int[Tensor, "batch seq"],
    fit_tokens: int,
) -> Activity:
    """Fold: the activations that are not 0 on the first `fit_tokens` tokens of the fit split."""
    part: Activity = activity(batch, feature_acts, fired, mask, token_ranks, fit_tokens)
    return part


@rebound(member=0)
def earlier_activity(fit_activity: Activity) -> Any:  # a function annotated with evidence would be a fold
    """`fit_activity` of a group's first SAE."""
    return fit_activity


@rebound(member=1)
def later_activity(fit_activity: Activity) -> Any:  # as above
    """`fit_activity` of a group's second SAE."""
    return fit_activity


@rebound(member=0)
def earlier_activations(activations: Float[Tensor, "batch seq d"]) -> Float[Tensor, "batch seq d"]:
    """Activations at the hook of a group's first SAE."""
    return activations


@rebound(member=1)
def later_input(sae_input: Float[Tensor, "batch seq d"]) -> Float[Tensor, "batch seq d"]:
    """Activations that a group's second SAE encodes."""
    return sae_input


@rebound(member=0)
def earlier_decoder(W_dec: Float[Tensor, "d_sae d_out"]) -> Float[Tensor, "d_sae d_out"]:
    """Decoder of a group's first SAE."""
    return W_dec


@rebound(member=1)
def later_encoder(W_enc: Float[Tensor, "d_in d_sae"]) -> Float[Tensor, "d_in d_sae"]:
    """Encoder of a group's second SAE."""
    return W_enc


@rebound(member=0)
@resuming("ablated")
def earlier_resume(resume: Resume) -> Resume:
    """`resume` from the hook of a group's first SAE, once for each of `ablated` features."""
    return resume


@dataclasses.dataclass(frozen=True, eq=False)
class CrossMoments(Evidence):
    """Sums of vectors x and y over the same tokens, of x xᵀ and of y xᵀ."""

    n: int
    x: Float[np.ndarray, "d_x"]
    y: Float[np.ndarray, "d_y"]
    xx: Float[np.ndarray, "d_x d_x"]
    yx: Float[np.ndarray, "d_y d_x"]

    def components(self) -> dict[str, Any]:
        return {"n": self.n}

    def linear_map(self) -> Float[np.ndarray, "d_y d_x"]:
        """A of the least-squares fit y ≈ A x + c, with a ridge of 1e-6 of the mean variance of x."""
        n = max(self.n, 1)
        mean = self.x / n
        covariance = self.xx / n - np.outer(mean, mean)
        ridge = 1e-6 * np.trace(covariance) / len(mean)
        across = self.yx / n - np.outer(self.y / n, mean)
        return np.asarray(np.linalg.lstsq(covariance + ridge * np.eye(len(mean)), across.T, rcond=None)[0].T)


@fold
@fit_split
def block_moments(
    earlier_activations: Float[Tensor, "batch seq d_x"],
    later_input: Float[Tensor, "batch seq d_y"],
    mask: Bool[Tensor, "batch seq"],
    token_ranks: Int[Tensor, "batch seq"],
    fit_tokens: int,
) -> CrossMoments:
    """Fold: sums of the activations at the two hooks and of their products on the first `fit_tokens` tokens."""
    taken = mask & (token_ranks < fit_tokens)
    x, y = (values.detach()[taken].double() for values in (earlier_activations, later_input))
    sums = [t.cpu().numpy() for t in (x.sum(0), y.sum(0), x.T @ x, y.T @ x)]
    return CrossMoments(len(x), *sums)
