"""`TokenScores`: what a final hidden state predicts, token by token, against the clean one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from saeval.data import Batch
from saeval.model import Model

CHUNK_ELEMENTS = 2**24
"""Logits alive at once for each state, in elements: the chunk of tokens is this over the vocabulary."""
TILE_ELEMENTS = 2**20
"""Logits that are looked at together on a CPU, in elements: few enough to stay in its cache."""


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

        def logits(final: Tensor, where: tuple[Tensor, Tensor] = where, part: Batch | None = part) -> Tensor:
            if part is None:
                found = model.unembed(final[where])
            else:
                row = where[0][0]
                found = model.head(final[row : row + 1], part)[0, where[1]]
            # Half-precision logits are widened: their log-softmax would lose the small differences that KL is made of.
            return found.to(torch.promote_types(found.dtype, torch.float32))

        reference = _Reference(logits(clean), targets)
        for final, score in zip(finals, scores, strict=True):
            nll, kl, top = reference.itself if final is clean else reference.scored(logits(final))
            score.nll[where] = nll.to(score.nll.dtype)
            score.kl[where] = kl.to(score.kl.dtype)
            score.top1_agreement[where] = top == reference.top
            score.top1_correct[where] = top == targets
    return scores


class _Reference:
    """The clean distribution of a chunk of tokens, and how others compare with it.

    Logits become log-probabilities in place, a few rows at a time: what is read again is still in the cache.
    """

    def __init__(self, logits: Float[Tensor, "n vocab"], targets: Int[Tensor, "n"]) -> None:
        self.targets = targets
        self.p = torch.empty_like(logits)
        rows = max(1, TILE_ELEMENTS // logits.shape[-1]) if logits.device.type == "cpu" else len(logits)
        self.tiles = [slice(start, start + rows) for start in range(0, len(logits), rows)]
        self.logp = logits if logits.is_contiguous() else logits.contiguous()
        nll, tops = [], []
        for tile in self.tiles:
            top, total = _to_log_probabilities(self.logp[tile], self.p[tile])
            self.p[tile] /= total
            nll.append(-self.logp[tile].gather(-1, targets[tile, None])[:, 0])
            tops.append(top)
        self.top = torch.cat(tops)
        self.itself = torch.cat(nll), torch.zeros_like(self.p[:, 0]), self.top
        self._possible = bool(torch.isfinite(self.logp.amin()))
        """Whether every token has some probability; 0 · log 0 is 0 where not."""

    def scored(self, logits: Float[Tensor, "n vocab"]) -> tuple[Tensor, Tensor, Tensor]:
        """NLL of the targets, KL(clean || this) and the most likely token, each `[n]`. Overwrites `logits`."""
        nll, kl, tops = [], [], []
        room = torch.empty_like(self.p[self.tiles[0]])
        for tile in self.tiles:
            logq, p = logits[tile], self.p[tile]
            difference = room[: len(p)]
            tops.append(_to_log_probabilities(logq, difference)[0])
            nll.append(-logq.gather(-1, self.targets[tile, None])[:, 0])
            torch.sub(self.logp[tile], logq, out=difference)
            if not self._possible:
                difference.masked_fill_(p == 0, 0)
            kl.append(torch.linalg.vecdot(p, difference))
        return torch.cat(nll), torch.cat(kl), torch.cat(tops)


def _to_log_probabilities(logits: Tensor, room: Tensor) -> tuple[Int[Tensor, "n"], Float[Tensor, "n 1"]]:
    """Turn logits into log-probabilities in place; the most likely tokens, and what divides `room` to probabilities."""
    highest, top = logits.max(-1, keepdim=True)
    total = torch.sub(logits, highest, out=room).exp_().sum(-1, keepdim=True)
    logits -= highest + total.log()
    return top[:, 0], total


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
    if bool(own.isnan().any()):
        raise ValueError("the model gives NaN logits on the first batch")
    tolerance = 1e-4 if torch.finfo(clean.dtype).bits >= 32 else 1e-2
    return bool(torch.allclose(own, chunked, rtol=tolerance, atol=tolerance * float(own.abs().max())))


__all__ = ["TokenScores", "head_is_exact", "score_tokens"]
