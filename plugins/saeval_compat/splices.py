"""Splices and scores of other harnesses: at every token that is not excluded, or at every position."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

from jaxtyping import Bool, Float

from saeval.plugin import Batch, Model, Resume, TokenScores, gathered, rebound, token_scores, torch

if TYPE_CHECKING:
    from torch import Tensor


def included_final(
    resume: Resume,
    reconstruction: Float[Tensor, "batch seq d"],
    activations: Float[Tensor, "batch seq d"],
    included: Bool[Tensor, "batch seq"],
) -> Tensor:
    """Final hidden state with the reconstruction at every token that is not excluded."""
    return resume(torch.where(included[..., None], reconstruction.to(activations.dtype), activations))


def everywhere_final(
    resume: Resume, reconstruction: Float[Tensor, "batch seq d"], activations: Float[Tensor, "batch seq d"]
) -> Tensor:
    """Final hidden state with the reconstruction at every position, including excluded tokens."""
    return resume(reconstruction.to(activations.dtype))


def zeroed_final(resume: Resume, activations: Float[Tensor, "batch seq d"]) -> Tensor:
    """Final hidden state with the hook zeroed at every position, including excluded tokens."""
    return resume(torch.zeros_like(activations))


@gathered("final")
def included_token_scores(
    model: Model,
    batch: Batch,
    included: Bool[Tensor, "batch seq"],
    clean_final: Float[Tensor, "batch seq d_model"],
    final: Sequence[Tensor],
) -> list[TokenScores]:
    """Scores at every token that is not excluded; the likelihood is meaningful if the row has a next token."""
    return token_scores(model, dataclasses.replace(batch, mask=included), clean_final, final)


@rebound(final="clean_final")
def included_clean_scores(included_token_scores: TokenScores) -> TokenScores:
    """Scores of the clean pass."""
    return included_token_scores


@rebound(final="included_final")
def included_scores(included_token_scores: TokenScores) -> TokenScores:
    """Scores with the reconstruction at every token that is not excluded."""
    return included_token_scores


@rebound(final="everywhere_final")
def everywhere_scores(included_token_scores: TokenScores) -> TokenScores:
    """Scores with the reconstruction at every position."""
    return included_token_scores


def _saebench_final(exclude_special_tokens_from_reconstruction: bool = False) -> str:
    return "included_final" if exclude_special_tokens_from_reconstruction else "everywhere_final"


@rebound(final=_saebench_final)
def saebench_scores(included_token_scores: TokenScores) -> TokenScores:
    """Scores with the reconstruction at every position, or where the metric's parameter says at included tokens."""
    return included_token_scores


@rebound(final="zeroed_final")
def zeroed_scores(included_token_scores: TokenScores) -> TokenScores:
    """Scores with the hook zeroed at every position."""
    return included_token_scores


def predicting(included: Bool[Tensor, "batch seq"], real: Bool[Tensor, "batch seq"]) -> Bool[Tensor, "batch seq"]:
    """Included tokens with a next token in their row: those that other harnesses compute a loss for."""
    has_next = torch.zeros_like(real)
    has_next[:, :-1] = real[:, 1:]
    return included & has_next
