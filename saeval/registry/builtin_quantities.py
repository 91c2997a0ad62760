"""The quantities that saeval itself supplies. A quantity is computed once and shared by all that request it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float, Int, Int8, UInt64

from saeval.base.errors import Undefined
from saeval.base.lazy_torch import torch
from saeval.interfaces.data import Batch, numbered
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
    """Input token ids; meaningless in padding."""
    return batch.tokens


def targets(batch: Batch) -> Int[Tensor, "batch seq"]:
    """Target token ids: the token after each input."""
    return batch.targets


def mask(batch: Batch) -> Bool[Tensor, "batch seq"]:
    """Tokens that count: the input is real and not excluded, the target is real and of the same document."""
    return batch.mask


def scored(mask: Bool[Tensor, "batch seq"]) -> Bool[Tensor, "batch seq"]:
    """Positions whose target log-likelihoods sum to a causal model's reward; the mask, unless the data supply them."""
    return mask


def labels(batch: Batch) -> dict[str, np.ndarray]:
    """Labels of each row by task or column: text arrays `[batch]`; empty unless the data supply them."""
    return {}


def token_labels(batch: Batch) -> dict[str, Int8[Tensor, "batch seq"]]:
    """Labels of tokens by task: 1, 0, or -1 if the document is not in the task; empty unless the data supply them."""
    return {}


def validation(batch: Batch) -> Bool[np.ndarray, "batch"]:
    """Rows of the fit split on which choices are made, and nothing is fitted; none unless the data supply them."""
    return np.zeros(len(batch.sequence_ids), dtype=bool)


def spelling(batch: Batch) -> Callable[[Sequence[int]], list[str]]:
    """Function: token ids of a row -> the text of each token, or its number if the data have no tokenizer."""
    return numbered


def included(batch: Batch) -> Bool[Tensor, "batch seq"]:
    """Inputs that are real and not excluded: the mask, plus the last token of each row and document."""
    return batch.mask if batch.included is None else batch.included


def token_keys(batch: Batch) -> UInt64[np.ndarray, "batch seq"]:
    """Hash of each token's (sequence id, position): the seed for random numbers that belong to a token."""
    return hashed(batch.sequence_ids[:, None], np.arange(batch.tokens.shape[1])[None])


def token_ranks(batch: Batch, mask: Bool[Tensor, "batch seq"]) -> Int[Tensor, "batch seq"]:
    """Number of mask tokens before each token in the stream; `mask & (token_ranks < N)` selects the first N."""
    if batch.before is None:
        raise Undefined("this data source does not supply the position of its rows in the stream")
    before = torch.from_numpy(batch.before).to(mask.device)
    return before[:, None] + mask.cumsum(1) - mask.long()


def encoding(
    sae: Substitute, sae_input: Float[Tensor, "batch seq d_in"], token_keys: UInt64[np.ndarray, "batch seq"]
) -> Encoding | None:
    """The encoder's output: feature activations and the decoding context; None for a substitute without features."""
    return sae.at(token_keys).encode(sae_input.to(sae.device or sae_input.device)) if sae.has_features else None


@finite("feature activations")
def feature_acts(
    sae: Substitute, encoding: Encoding | None, mask: Bool[Tensor, "batch seq"]
) -> Float[Tensor, "batch seq d_sae"]:
    """Feature activations on the model's device, 0 where a feature does not fire; undefined without features."""
    if encoding is None:
        raise Undefined(f"{sae.name} has no features")
    return encoding.feature_acts.to(mask.device)


def fired(feature_acts: Float[Tensor, "batch seq d_sae"]) -> Fired:
    """Sparse list of the feature activations that are not 0, by token and feature."""
    return Fired.of(feature_acts)


@finite("reconstruction")
def reconstruction(
    sae: Substitute,
    encoding: Encoding | None,
    activations: Float[Tensor, "batch seq d_in"],
    token_keys: UInt64[np.ndarray, "batch seq"],
) -> Float[Tensor, "batch seq d_out"]:
    """The substitute's output, which replaces the activations; on their device, in their unit."""
    moved = activations.to(sae.device or activations.device)
    return sae.at(token_keys).decode(encoding, moved).to(activations.device)


def spliced_activations(
    activations: Float[Tensor, "batch seq d"],
    reconstruction: Float[Tensor, "batch seq d"],
    mask: Bool[Tensor, "batch seq"],
) -> Float[Tensor, "batch seq d"]:
    """The reconstruction inside the mask, the original activations outside it."""
    if reconstruction.shape != activations.shape:
        raise ValueError(
            f"the reconstruction has shape {list(reconstruction.shape)}, the activations {list(activations.shape)}"
        )
    return torch.where(mask[..., None], reconstruction.to(activations.dtype), activations)


def spliced_pass(resume: Resume, spliced_activations: Float[Tensor, "batch seq d"]) -> Capture:
    """The forward pass resumed from the hook with the substitute spliced in; run once and shared."""
    return resume.captured(spliced_activations)


@finite("final state with the substitute spliced in")
def spliced_final(spliced_pass: Capture) -> Tensor:
    """Final hidden state `[batch, seq, d_model]`, or reward `[batch]`, with the substitute spliced in."""
    assert spliced_pass.final is not None
    return spliced_pass.final


@finite("scores")
@gathered("final")
def token_scores(
    model: Model, batch: Batch, clean_final: Float[Tensor, "batch seq d_model"], final: Sequence[Tensor]
) -> list[TokenScores]:
    """Per-token scores (NLL, KL, top-1) of all final hidden states of a batch, from one chunked unembedding."""
    if model.kind != "causal":
        raise Undefined("a reward model has no next-token scores")
    return score_tokens(model, batch, clean_final, final, full_logits=not _chunked(model, batch, clean_final))


def _chunked(model: Model, batch: Batch, final: Tensor) -> bool:
    if model.chunked_head is None:  # once per model, on 16 tokens of the first batch
        model.chunked_head = head_is_exact(model, batch, final.detach())
    return model.chunked_head


@rebound(final="clean_final")
def clean_scores(token_scores: TokenScores) -> TokenScores:
    """Per-token scores (NLL, KL, top-1) of the clean pass; undefined for reward models."""
    return token_scores


@rebound(final="spliced_final")
def spliced_scores(token_scores: TokenScores) -> TokenScores:
    """Per-token scores with the substitute spliced in; undefined for reward models."""
    return token_scores


@rebound(subject="ablation")
def ablated_scores(spliced_scores: TokenScores) -> TokenScores:
    """Per-token scores with a control spliced in: the one that the metric's parameter `ablation` names."""
    return spliced_scores


def clean_logits(model: Model, batch: Batch, clean_final: Tensor) -> Float[Tensor, "batch seq vocab"]:
    """All logits of the clean pass. They are large: request them only if `clean_scores` are not enough."""
    return model.head(clean_final, batch)


def _reward(model: Model, batch: Batch, final: Tensor, scored: Bool[Tensor, "batch seq"]) -> Float[Tensor, "batch"]:
    """Reward of each row; for a causal model the summed log-likelihood of the `scored` tokens. Differentiable."""
    if model.kind == "reward":
        return final
    states = final[scored]
    logits = model.unembed(states) if _chunked(model, batch, final) else model.head(final, batch)[scored]
    logp = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)
    target_logp = logp.gather(-1, batch.targets[scored][:, None])[:, 0]
    return target_logp.new_zeros(len(final)).index_add(0, scored.nonzero()[:, 0], target_logp)


@finite("reward")
def clean_reward(
    model: Model, batch: Batch, clean_final: Tensor, scored: Bool[Tensor, "batch seq"]
) -> Float[Tensor, "batch"]:
    """Reward of each row in the clean pass; for a causal model the log-likelihood of the scored tokens, in nats."""
    return _reward(model, batch, clean_final, scored)


@finite("reward with the substitute spliced in")
def spliced_reward(
    model: Model, batch: Batch, spliced_final: Tensor, scored: Bool[Tensor, "batch seq"]
) -> Float[Tensor, "batch"]:
    """Reward of each row with the substitute spliced in; in nats for a causal model."""
    return _reward(model, batch, spliced_final, scored)


def reward_of(model: Model, batch: Batch, scored: Bool[Tensor, "batch seq"]) -> Callable[..., Tensor]:
    """Function: `final` (and optionally its rows of the batch, a slice) -> the reward of each row; differentiable."""

    def reward(final: Tensor, rows: slice = slice(None)) -> Tensor:
        return _reward(model, batch.part(rows), final, scored[rows])

    return reward


def logits_at(model: Model, batch: Batch, clean_final: Tensor) -> Callable[..., Tensor]:
    """Function: `final`, its rows of the batch and a position in each -> the logits there, [n, vocab]."""
    if model.kind != "causal":
        raise Undefined("a reward model has no next-token logits")
    chunked = _chunked(model, batch, clean_final)

    def logits(
        final: Float[Tensor, "n seq d_model"], rows: Sequence[int], places: Sequence[int]
    ) -> Float[Tensor, "n vocab"]:
        if chunked:
            values = model.unembed(final[torch.arange(len(final)), torch.as_tensor(places, dtype=torch.long)])
        else:
            each = [
                model.head(final[index : index + 1], batch.part([row]))[0, place]
                for index, (row, place) in enumerate(zip(rows, places, strict=True))
            ]
            values = torch.stack(each) if each else model.unembed(final[:, 0])
        return values.to(torch.promote_types(values.dtype, torch.float32))

    return logits


@finite("gradient")
def gradient(
    reward_of: Callable[[Tensor], Tensor],
    resume: Callable[[Tensor], Tensor],
    activations: Float[Tensor, "batch seq d_in"],
) -> Float[Tensor, "batch seq d_in"]:
    """Gradient of the reward with respect to the activations (causal models: of the scored tokens' log-likelihood).

    It depends on the hook alone: one backward pass serves all SAEs there.
    """
    with torch.enable_grad():
        start = activations.detach().clone().requires_grad_()
        return torch.autograd.grad(reward_of(resume(start)).sum(), start)[0]


@fold
@planned
def activation_moments(activations: Float[Tensor, "batch seq d_in"], mask: Bool[Tensor, "batch seq"]) -> Moments:
    """Fold: number and sum of the activations over the mask of all planned tokens."""
    return Moments.of(activations, mask)


@fold
def activation_spread(activations: Float[Tensor, "batch seq d_in"], mask: Bool[Tensor, "batch seq"]) -> Spread:
    """Fold: sums of x and ‖x‖² per document. They give the squared distance from any point: the denominator of FVU."""
    return Spread.of(activations, mask)


def activation_mean(activation_moments: Moments) -> Float[Tensor, "d_in"]:
    """Mean activation over all planned tokens, float64: the output of the `mean` control."""
    if activation_moments.n == 0:
        raise Undefined("no token is in the mask, so there is no mean activation; check the data's 'exclude'")
    return torch.from_numpy(activation_moments.mean)


def W_enc(sae: Substitute) -> Float[Tensor, "d_in d_sae"]:  # noqa: N802
    """Encoder weights; undefined if the substitute has none."""
    return sae.weight("W_enc")


def b_enc(sae: Substitute) -> Float[Tensor, "d_sae"]:
    """Encoder bias; undefined if the substitute has none."""
    return sae.weight("b_enc")


def W_dec(sae: Substitute) -> Float[Tensor, "d_sae d_out"]:  # noqa: N802
    """Decoder weights, one row per feature: its direction; undefined if the substitute has none."""
    return sae.weight("W_dec")


def b_dec(sae: Substitute) -> Float[Tensor, "d_out"]:
    """Decoder bias; undefined if the substitute has none."""
    return sae.weight("b_dec")


@hookimpl
def saeval_quantities() -> list[Callable[..., Any]]:
    return [
        W_dec, W_enc, ablated_scores, activation_mean, activation_moments, activation_spread, b_dec, b_enc,
        clean_logits, clean_reward, clean_scores, encoding, feature_acts, fired, gradient, included, labels, logits_at,
        mask, reconstruction, reward_of, scored, spelling, spliced_activations, spliced_final, spliced_pass,
        spliced_reward, spliced_scores, targets, token_keys, token_labels, token_ranks, token_scores, tokens,
        validation,
    ]  # fmt: skip
