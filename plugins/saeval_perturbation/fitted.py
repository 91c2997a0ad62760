"""What noise is drawn from: covariances and errors of documents that are not evaluated."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jaxtyping import Bool, Float

from saeval.plugin import Moments, Sample, Undefined, fit_split, fold, torch

if TYPE_CHECKING:
    from torch import Tensor

SAMPLE = 8192
"""Errors kept of each SAE."""


@fold
@fit_split
def fit_covariance(activations: Float[Tensor, "batch seq d_in"], mask: Bool[Tensor, "batch seq"]) -> Moments:
    """Fold over the fit split: count, sum and second moment of the activations."""
    return Moments.of(activations, mask, covariance=True)


def fit_covariance_root(fit_covariance: Moments) -> Float[Tensor, "d_in d_in"]:
    """The symmetric square root of Σ_x, the centred covariance of the activations on the fit split, float64."""
    if fit_covariance.n == 0:
        raise Undefined(
            "the fit split has no token in its mask; change 'exclude', or leave 'cosine_matched_covariance' out"
        )
    values, vectors = torch.linalg.eigh(torch.from_numpy(fit_covariance.covariance))
    return torch.matmul(vectors * values.clamp_min(0).sqrt(), vectors.T)


@fold
@fit_split
def fit_errors(
    activations: Float[Tensor, "batch seq d_in"],
    reconstruction: Float[Tensor, "batch seq d_in"],
    mask: Bool[Tensor, "batch seq"],
) -> Sample:
    """Fold over the fit split: δ = x̂ − x of up to 8192 tokens, chosen by hash."""
    return Sample.of(reconstruction.to(activations.dtype) - activations, mask, SAMPLE)


def fit_displacements(fit_errors: Sample) -> Float[Tensor, "n d_in"]:
    """The sampled δ of the fit split."""
    if len(fit_errors.rows) == 0:
        raise Undefined("the fit split has no token in its mask; change 'exclude', or leave 'shuffled_error' out")
    return torch.from_numpy(fit_errors.rows)
