"""The quantities that saeval itself supplies. Whatever a metric names is computed once and shared."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float, Int, UInt64

from saeval.base.errors import Undefined
from saeval.base.lazy_torch import torch
from saeval.interfaces.data import Batch
from saeval.interfaces.fired import Fired
from saeval.interfaces.model import Capture, Model, Resume
from saeval.interfaces.quantity import finite, fold, gathered, planned, rebound
from saeval.interfaces.substitute import Encoding, Substitute
from saeval.interfaces.token_scores import TokenScores, head_is_exact, score_tokens
from saeval.registry.hookspecs import hookimpl
from saeval.stats.evidence import Moments, Spread
from saeval.stats.randomness import hashed

if TYPE_CHECKING:
    from torch import Tensor


def tokens(batch: Batch) -> Int[Tensor, "batch seq"]:
    """Input token ids."""
    return batch.tokens


def targets(batch: Batch) -> Int[Tensor, "batch seq"]:
    """The token after each input."""
    return batch.targets


def mask(batch: Batch) -> Bool[Tensor, "batch seq"]:
    """The one mask: input real and not excluded, target real and of the same document."""
    return batch.mask


def scored(mask: Bool[Tensor, "batch seq"]) -> Bool[Tensor, "batch seq"]:
    """Positions whose targets make a causal model's reward: the mask, unless the data say otherwise."""
    return mask


def labels(batch: Batch) -> dict[str, np.ndarray]:
    """What the data say of each row, by column, as text `[batch]`; nothing, unless they supply it."""
    return {}


def spelling(batch: Batch) -> Callable[[Sequence[int]], list[str]]:
    """Function: token ids of a row -> the text that each adds; numbers, unless the data know their tokenizer."""
    return lambda ids: [f"<{token}>" for token in ids]


def included(batch: Batch) -> Bool[Tensor, "batch seq"]:
    """Inputs that are real and not excluded, whatever their targets: the mask, and each row's or document's last."""
    return batch.mask if batch.included is None else batch.included


def token_keys(batch: Batch) -> UInt64[np.ndarray, "batch seq"]:
    """A hash of each token's (sequence id, position): what randomness about a token is keyed by."""
    return hashed(batch.sequence_ids[:, None], np.arange(batch.tokens.shape[1])[None])


def token_ranks(batch: Batch, mask: Bool[Tensor, "batch seq"]) -> Int[Tensor, "batch seq"]:
    """How many tokens of the mask the stream has before each: `mask & (token_ranks < N)` are its first N."""
    if batch.before is None:
        raise Undefined("these data do not tell where in the stream a row stands")
    before = torch.from_numpy(batch.before).to(mask.device)
    return before[:, None] + mask.cumsum(1) - mask.long()


def encoding(
    sae: Substitute, sae_input: Float[Tensor, "batch seq d_in"], token_keys: UInt64[np.ndarray, "batch seq"]
) -> Encoding | None:
    """Feature activations with the context that decoding needs; None for substitutes without features."""
    return sae.at(token_keys).encode(sae_input.to(sae.device or sae_input.device)) if sae.has_features else None


@finite("feature activations")
def feature_acts(
    sae: Substitute, encoding: Encoding | None, mask: Bool[Tensor, "batch seq"]
) -> Float[Tensor, "batch seq d_sae"]:
    """Feature activations, on the model's device; undefined for substitutes without features."""
    if encoding is None:
        raise Undefined(f"{sae.name} has no features")
    return encoding.feature_acts.to(mask.device)


def fired(feature_acts: Float[Tensor, "batch seq d_sae"]) -> Fired:
    """Which features are not 0 on which tokens."""
    return Fired.of(feature_acts)


@finite("reconstruction")
def reconstruction(
    sae: Substitute,
    encoding: Encoding | None,
    activations: Float[Tensor, "batch seq d_in"],
    token_keys: UInt64[np.ndarray, "batch seq"],
) -> Float[Tensor, "batch seq d_out"]:
    """What the substitute puts in the activations' place, on their device."""
    here = activations.to(sae.device or activations.device)
    return sae.at(token_keys).decode(encoding, here).to(activations.device)


def spliced_activations(
    activations: Float[Tensor, "batch seq d"],
    reconstruction: Float[Tensor, "batch seq d"],
    mask: Bool[Tensor, "batch seq"],
) -> Float[Tensor, "batch seq d"]:
    """The reconstruction inside the mask, the activations themselves outside."""
    if reconstruction.shape != activations.shape:
        raise ValueError(
            f"the reconstruction is {list(reconstruction.shape)}, the activations {list(activations.shape)}"
        )
    return torch.where(mask[..., None], reconstruction.to(activations.dtype), activations)


def spliced_pass(resume: Resume, spliced_activations: Float[Tensor, "batch seq d"]) -> Capture:
    """The rest of the pass with the substitute spliced in, run once for all that is asked of it."""
    return resume.captured(spliced_activations)


@finite("final state with the substitute spliced in")
def spliced_final(spliced_pass: Capture) -> Tensor:
    """Final hidden state (or reward) with the substitute spliced in."""
    assert spliced_pass.final is not None
    return spliced_pass.final


@finite("scores")
@gathered("final")
def token_scores(
    model: Model, batch: Batch, clean_final: Float[Tensor, "batch seq d_model"], final: Sequence[Tensor]
) -> list[TokenScores]:
    """Scores of every final hidden state of the batch, in one chunked call of the unembedding."""
    if model.kind != "causal":
        raise Undefined("a reward model has no next-token scores")
    return score_tokens(model, batch, clean_final, final, full_logits=not _chunked(model, batch, clean_final))


def _chunked(model: Model, batch: Batch, final: Tensor) -> bool:
    if model.chunked_head is None:  # once a model, on 16 tokens of the first batch
        model.chunked_head = head_is_exact(model, batch, final.detach())
    return model.chunked_head


@rebound(final="clean_final")
def clean_scores(token_scores: TokenScores) -> TokenScores:
    """Scores of the clean pass."""
    return token_scores


@rebound(final="spliced_final")
def spliced_scores(token_scores: TokenScores) -> TokenScores:
    """Scores with the substitute spliced in."""
    return token_scores


@rebound(subject="ablation")
def ablated_scores(spliced_scores: TokenScores) -> TokenScores:
    """Scores with the control spliced in that the metric's parameter `ablation` names."""
    return spliced_scores


def clean_logits(model: Model, batch: Batch, clean_final: Tensor) -> Float[Tensor, "batch seq vocab"]:
    """All logits of the clean pass: large, so only for metrics that cannot do with scores."""
    return model.head(clean_final, batch)


def _reward(model: Model, batch: Batch, final: Tensor, scored: Bool[Tensor, "batch seq"]) -> Float[Tensor, "batch"]:
    """Each row's reward: a reward model's own, a causal one's summed log-likelihood of `scored`; differentiable."""
    if model.kind == "reward":
        return final
    states = final[scored]
    logits = model.unembed(states) if _chunked(model, batch, final) else model.head(final, batch)[scored]
    logp = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)
    found = logp.gather(-1, batch.targets[scored][:, None])[:, 0]
    return found.new_zeros(len(final)).index_add(0, scored.nonzero()[:, 0], found)


@finite("reward")
def clean_reward(
    model: Model, batch: Batch, clean_final: Tensor, scored: Bool[Tensor, "batch seq"]
) -> Float[Tensor, "batch"]:
    """Each row's reward: a reward model's own, a causal model's log-likelihood of the scored tokens (nats)."""
    return _reward(model, batch, clean_final, scored)


@finite("reward with the substitute spliced in")
def spliced_reward(
    model: Model, batch: Batch, spliced_final: Tensor, scored: Bool[Tensor, "batch seq"]
) -> Float[Tensor, "batch"]:
    """The reward of each row with the substitute spliced in."""
    return _reward(model, batch, spliced_final, scored)


def reward_of(model: Model, batch: Batch, scored: Bool[Tensor, "batch seq"]) -> Callable[..., Tensor]:
    """Function: `final` (and which rows of the batch it is of, a slice) -> the reward of each row, differentiable."""

    def reward(final: Tensor, rows: slice = slice(None)) -> Tensor:
        return _reward(model, batch.part(rows), final, scored[rows])

    return reward


@finite("gradient")
def gradient(
    reward_of: Callable[[Tensor], Tensor],
    resume: Callable[[Tensor], Tensor],
    activations: Float[Tensor, "batch seq d_in"],
) -> Float[Tensor, "batch seq d_in"]:
    """Gradient at the hook of the reward (causal models: of the scored tokens' log-likelihood).

    It belongs to the hook alone: one backward pass serves every SAE there.
    """
    with torch.enable_grad():
        start = activations.detach().clone().requires_grad_()
        (found,) = torch.autograd.grad(reward_of(resume(start)).sum(), start)
    return found


@fold
@planned
def activation_moments(activations: Float[Tensor, "batch seq d_in"], mask: Bool[Tensor, "batch seq"]) -> Moments:
    """Fold: count and sum of the activations over the mask of the planned tokens."""
    return Moments.of(activations, mask)


@fold
def activation_spread(activations: Float[Tensor, "batch seq d_in"], mask: Bool[Tensor, "batch seq"]) -> Spread:
    """Fold: what the squared distance from any point sums to, document by document: FVU's denominator."""
    return Spread.of(activations, mask)


def activation_mean(activation_moments: Moments) -> Float[Tensor, "d_in"]:
    """Mean activation over the planned tokens, float64: the mean ablation and control."""
    if activation_moments.n == 0:
        raise Undefined("no token is in the mask, so there is no mean activation; look at the data's 'exclude'")
    return torch.from_numpy(activation_moments.mean)


def W_enc(sae: Substitute) -> Float[Tensor, "d_in d_sae"]:  # noqa: N802
    """Encoder weights."""
    return sae.weight("W_enc")


def b_enc(sae: Substitute) -> Float[Tensor, "d_sae"]:
    """Encoder bias."""
    return sae.weight("b_enc")


def W_dec(sae: Substitute) -> Float[Tensor, "d_sae d_out"]:  # noqa: N802
    """Decoder weights: a feature's direction is a row."""
    return sae.weight("W_dec")


def b_dec(sae: Substitute) -> Float[Tensor, "d_out"]:
    """Decoder bias."""
    return sae.weight("b_dec")


@hookimpl
def saeval_quantities() -> list[Callable[..., Any]]:
    return [
        W_dec, W_enc, ablated_scores, activation_mean, activation_moments, activation_spread, b_dec, b_enc,
        clean_logits, clean_reward, clean_scores, encoding, feature_acts, fired, gradient, included, labels, mask,
        reconstruction, reward_of, scored, spelling, spliced_activations, spliced_final, spliced_pass, spliced_reward,
        spliced_scores, targets, token_keys, token_ranks, token_scores, tokens,
    ]  # fmt: skip
