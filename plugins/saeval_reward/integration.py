"""Integrated gradients along a straight line, computed at the hook so that one backward pass serves all its SAEs."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, UInt64

from saeval.plugin import (
    Encoding,
    Moments,
    Resume,
    Substitute,
    Undefined,
    finite,
    fit_split,
    fold,
    rebound,
    resuming,
    torch,
)

if TYPE_CHECKING:
    from torch import Tensor

TOKENS = 2048
"""Most tokens in one backward pass, which limits memory."""


@rebound(subject="baseline")
def baseline_activations(reconstruction: Float[Tensor, "batch seq d"]) -> Float[Tensor, "batch seq d"]:
    """The start of the line of integration: the reconstruction of the control that `baseline` names."""
    return reconstruction


@rebound(subject="baseline")
def baseline_reward(spliced_reward: Float[Tensor, "batch"]) -> Float[Tensor, "batch"]:
    """The reward of each row at the start of the line."""
    return spliced_reward


@finite("gradient")
@resuming("steps")
def path_gradient(
    reward_of: Callable[..., Tensor],
    resume: Resume,
    activations: Float[Tensor, "batch seq d"],
    baseline_activations: Float[Tensor, "batch seq d"],
    mask: Bool[Tensor, "batch seq"],
    steps: int,
) -> Float[Tensor, "batch seq d"]:
    """Mean gradient of the reward along the line from the baseline b to x, at all positions of the mask together.

    (1/K) Σ_k ∇m(b + α_k (x − b)) at the midpoints α_k = (k − ½)/K, K = `steps`; 0 outside the mask. With
    0 steps, only the gradient at x. The K forward and backward passes run one after the other on 2,048 tokens
    at a time, so memory grows with neither K nor the batch. Source: Sundararajan et al. 2017.
    """
    mean = torch.zeros_like(activations)
    alphas = [(k - 0.5) / steps for k in range(1, steps + 1)] or [1.0]
    for rows in _parts(*mask.shape):
        x, start, inside = activations[rows], baseline_activations[rows], mask[rows][..., None]
        resume_rows = resume.part(rows)
        for alpha in alphas:
            with torch.enable_grad():
                point = torch.where(inside, (start + alpha * (x - start)).to(x.dtype), x).detach().requires_grad_()
                (gradient,) = torch.autograd.grad(reward_of(resume_rows(point), rows).sum(), point)
            mean[rows] += torch.where(inside, gradient, torch.zeros_like(gradient)) / len(alphas)
    return mean


def _parts(rows: int, length: int) -> list[slice]:
    """Slices of the rows of similar size, each with at most `TOKENS` tokens or one row."""
    count = min(rows, -(-rows * length // TOKENS))
    ends = [rows * i // count for i in range(count + 1)]
    return [slice(a, b) for a, b in itertools.pairwise(ends)]


class Reference(NamedTuple):
    """Values of features, decode(0) and the error at the baseline; attributions are of deviations from them."""

    features: Float[Tensor, "d_sae"]
    bias: Float[Tensor, "d_out"]
    error: Float[Tensor, "d_out"]


@fold
@fit_split
def fit_parts(
    sae: Substitute,
    encoding: Encoding | None,
    activations: Float[Tensor, "batch seq d_out"],
    mask: Bool[Tensor, "batch seq"],
    token_keys: UInt64[np.ndarray, "batch seq"],
) -> Moments:
    """Fold over the fit split: means of f, of decode(0) and of the error x − x̂, joined in one vector."""
    bound, encoding, here = _featured(sae, encoding, activations, token_keys)
    acts = encoding.feature_acts
    empty = bound.decode(encoding._replace(feature_acts=torch.zeros_like(acts)), here)
    parts = torch.cat([acts, empty, here - bound.decode(encoding, here)], -1)
    return Moments.of(parts, mask.to(parts.device))


def fit_reference(fit_parts: Moments, d_in: int) -> Reference:
    """The mean over the fit split."""
    if fit_parts.n == 0:
        raise Undefined("the fit split has no token in its mask; check 'exclude' in the data")
    means = torch.from_numpy(fit_parts.mean)
    return Reference(*means.split([len(means) - 2 * d_in, d_in, d_in]))


def no_reference() -> Reference:
    """Zero, the reference of the baseline `zero`."""
    return Reference(*torch.zeros(3, 1).double())


def _reference(baseline: str = "mean") -> str:
    return "no_reference" if baseline == "zero" else "fit_reference"


@rebound(reference=_reference)
def baseline_reference(reference: Reference) -> Reference:
    """The mean of features, decode(0) and error over the fit split; zero for the baseline `zero`."""
    return reference


def _featured(
    sae: Substitute, encoding: Encoding | None, activations: Tensor, token_keys: UInt64[np.ndarray, "batch seq"]
) -> tuple[Substitute, Encoding, Tensor]:
    """The SAE for these tokens, its encoding and the activations on its device; `Undefined` without features."""
    if encoding is None:
        raise Undefined(f"{sae.name} has no features")
    return sae.at(token_keys), encoding, activations.to(sae.device or activations.device)


class Attribution(NamedTuple):
    """The reward's change along the line, split into features and the rest, in units of the reward.

    f̄, decode(0)‾ and ε̄ are the `Reference`: the baseline is b = Σ_j f̄_j D_j + decode(0)‾ + ε̄ + a remainder.
    """

    features: Float[Tensor, "batch d_sae"]
    """Σ_t (f_{t,j} − f̄_j) ⟨ḡ_t, D_{t,j}⟩ over the mask."""
    error: Float[Tensor, "batch"]
    """Σ_t ⟨ḡ_t, x_t − x̂_t − ε̄⟩."""
    bias: Float[Tensor, "batch"]
    """Σ_t ⟨ḡ_t, decode(0)_t − decode(0)‾⟩: b_dec if the reference is zero, and a transcoder's skip term."""
    baseline: Float[Tensor, "batch"]
    """−Σ_t ⟨ḡ_t, remainder⟩."""

    @property
    def total(self) -> Float[Tensor, "batch"]:
        """The sum of all rows: m(x) − m(b), up to the error of integration."""
        return self.features.sum(-1) + self.error + self.bias + self.baseline


def attribution(
    sae: Substitute,
    encoding: Encoding | None,
    activations: Float[Tensor, "batch seq d"],
    baseline_activations: Float[Tensor, "batch seq d"],
    baseline_reference: Reference,
    path_gradient: Float[Tensor, "batch seq d"],
    mask: Bool[Tensor, "batch seq"],
    token_keys: UInt64[np.ndarray, "batch seq"],
) -> Attribution:
    """The reward's attribution to features, error, b_dec and baseline, summed over each row's mask.

    D_{t,j} is what one unit of f_j adds to the reconstruction, with norms and scales frozen, so ⟨ḡ_t, D_{t,j}⟩
    is one vector-Jacobian product of `decode`. It is exact for every decoder that is linear in f.
    """
    bound, encoding, here = _featured(sae, encoding, activations, token_keys)
    acts = encoding.feature_acts
    with torch.enable_grad():
        leaf = acts.detach().clone().requires_grad_()
        decoded = bound.decode(encoding._replace(feature_acts=leaf), here)
        (slope,) = torch.autograd.grad(decoded, leaf, path_gradient.to(decoded))
    slope = slope.masked_fill(~mask.to(acts.device)[..., None], 0)
    at_baseline = baseline_reference.features.to(acts)
    empty = bound.decode(encoding._replace(feature_acts=torch.zeros_like(acts)), here)
    decoded = decoded.detach()
    g = path_gradient.double()

    def along(vectors: Tensor) -> Tensor:
        return (g * vectors.to(g)).sum((1, 2))

    features = ((acts - at_baseline) * slope).sum(1, dtype=torch.float64).to(g.device)
    written = (at_baseline * slope).sum((1, 2), dtype=torch.float64).to(g.device)
    bias, error = along(baseline_reference.bias), along(baseline_reference.error)
    return Attribution(
        features,
        along(activations) - along(decoded) - error,
        along(empty) - bias,
        written + bias + error - along(baseline_activations),
    )
