"""`TokenScores`: what a final hidden state predicts, token by token, against the clean one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from saeval.data import Batch
from saeval.model import Model

CHUNK_ELEMENTS = 2**22
"""Logits alive at once for each state, in elements: the chunk of tokens is this over the vocabulary."""


@dataclass(frozen=True)
class TokenScores:
    """Per-token scores, zero outside the mask. Nats, float32 or better."""

    nll: Float[Tensor, "batch seq"]
    """Negative log-likelihood of the target."""
    kl: Float[Tensor, "batch seq"]
    """KL(clean || this): of the clean next-token distribution to this one."""
    top1_agreement: Bool[Tensor, "batch seq"]
    """Whether the most likely token is the clean one's."""
    top1_correct: Bool[Tensor, "batch seq"]
    """Whether the most likely token is the target."""


def score_tokens(
    model: Model,
    batch: Batch,
    clean: Float[Tensor, "batch seq d_model"],
    finals: Sequence[Float[Tensor, "batch seq d_model"]],
    full_logits: bool = False,
) -> list[TokenScores]:
    """Score all of a batch's final hidden states in one chunked call of the unembedding.

    The clean distribution is computed once for each chunk of tokens; no `[batch, seq, vocab]`
    tensor exists. With `full_logits` the model's own head is used instead, a row at a time, for
    models whose logits are more than the unembedding of the final state.
    """
    shape, device = batch.tokens.shape, clean.device
    wide = torch.promote_types(clean.dtype, torch.float32)
    scores = [
        TokenScores(
            torch.zeros(shape, dtype=wide, device=device),
            torch.zeros(shape, dtype=wide, device=device),
            torch.zeros(shape, dtype=torch.bool, device=device),
            torch.zeros(shape, dtype=torch.bool, device=device),
        )
        for _ in finals
    ]
    chunks = _rows(batch) if full_logits else _chunks(model, clean, batch)
    for where, part in chunks:
        targets = batch.targets[where]

        def log_probabilities(final: Tensor, where: tuple[Tensor, Tensor] = where, part: Batch | None = part) -> Tensor:
            if part is None:
                logits = model.unembed(final[where])
            else:
                row = where[0][0]
                logits = model.head(final[row : row + 1], part)[0, where[1]]
            # Half-precision logits are widened: their log-softmax would lose the small differences that KL is made of.
            return logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)

        clean_logp = log_probabilities(clean)
        clean_p, clean_top = clean_logp.exp(), clean_logp.argmax(-1)
        for final, score in zip(finals, scores, strict=True):
            logp = clean_logp if final is clean else log_probabilities(final)
            top = logp.argmax(-1)
            score.nll[where] = -logp.gather(-1, targets[:, None])[:, 0].to(score.nll.dtype)
            terms = torch.where(clean_p > 0, clean_p * (clean_logp - logp), 0)  # 0 · log 0 is 0, for masked logits too
            score.kl[where] = terms.sum(-1).to(score.kl.dtype)
            score.top1_agreement[where] = top == clean_top
            score.top1_correct[where] = top == targets
    return scores


def _chunks(model: Model, clean: Tensor, batch: Batch) -> list[tuple[tuple[Tensor, Tensor], None]]:
    rows, positions = batch.mask.nonzero(as_tuple=True)
    if len(rows) == 0:
        return []
    vocabulary = model.unembed(clean[rows[:1], positions[:1]]).shape[-1]
    size = max(1, CHUNK_ELEMENTS // vocabulary)
    return [((r, p), None) for r, p in zip(torch.split(rows, size), torch.split(positions, size), strict=True)]


def _rows(batch: Batch) -> list[tuple[tuple[Tensor, Tensor], Batch]]:
    found = []
    for row in range(len(batch.tokens)):
        positions = batch.mask[row].nonzero(as_tuple=True)[0]
        if len(positions):
            found.append(((torch.full_like(positions, row), positions), _part(batch, row, batch.tokens.shape[1])))
    return found


def _part(batch: Batch, row: int, length: int) -> Batch:
    """One row of a batch, its first `length` positions."""
    one = slice(row, row + 1)
    return Batch(
        batch.tokens[one, :length], batch.targets[one, :length], batch.mask[one, :length], batch.real[one, :length],
        batch.sequence_ids[one], batch.clusters[one],
    )  # fmt: skip


def head_is_exact(model: Model, batch: Batch, clean: Float[Tensor, "batch seq d_model"]) -> bool:
    """Whether the chunked unembedding equals the model's own head on (up to) 16 real tokens.

    False for models that do more to their logits than the adapter knows. No block is run.
    """
    row = int(batch.real.sum(1).argmax())
    part = _part(batch, row, min(16, batch.tokens.shape[1]))
    own = model.head(clean[row : row + 1, : part.tokens.shape[1]], part)[0].double()
    chunked = model.unembed(clean[row, : part.tokens.shape[1]]).double()
    if own.shape != chunked.shape:
        return False
    tolerance = 1e-4 if torch.finfo(clean.dtype).bits >= 32 else 1e-2
    return bool(torch.allclose(own, chunked, rtol=tolerance, atol=tolerance * float(own.abs().max())))


__all__ = ["TokenScores", "head_is_exact", "score_tokens"]
