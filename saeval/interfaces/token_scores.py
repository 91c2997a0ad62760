"""`TokenScores`: what a final hidden state predicts, token by token, against the clean one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from jaxtyping import Bool, Float, Int

from saeval.base.lazy_torch import torch
from saeval.interfaces.data import Batch
from saeval.interfaces.model import Model

if TYPE_CHECKING:
    from torch import Tensor

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
    """The clean distribution p of a chunk of tokens, and how others compare with it.

    With Δ the change of the logits, a distribution q has log Z_q − log Z_p = log E_p[exp Δ], so that
    KL(p‖q) = log E_p[exp Δ] − E_p[Δ]. Δ of nearby logits is exact, where log-probabilities round to 10⁻⁶. A few rows
    are looked at together: what is read again is still in the cache.
    """

    def __init__(self, logits: Float[Tensor, "n vocab"], targets: Int[Tensor, "n"]) -> None:
        self.targets = targets
        self.logits = logits if logits.is_contiguous() else logits.contiguous()
        self.p = torch.empty_like(self.logits)
        rows = max(1, TILE_ELEMENTS // logits.shape[-1]) if logits.device.type == "cpu" else len(logits)
        self.tiles = [slice(start, start + rows) for start in range(0, len(logits), rows)]
        tops, log_z = [], []
        for tile in self.tiles:
            highest, top = self.logits[tile].max(-1, keepdim=True)
            total = torch.sub(self.logits[tile], highest, out=self.p[tile]).exp_().sum(-1, keepdim=True)
            self.p[tile] /= total
            log_z.append((highest.double() + total.double().log())[:, 0])
            tops.append(top[:, 0])
        self.top, self.log_z = torch.cat(tops), torch.cat(log_z)
        nll = self.log_z - self.logits.gather(-1, targets[:, None])[:, 0]
        self.itself = nll, torch.zeros_like(nll), self.top
        self._possible = bool(torch.isfinite(self.logits.amin()))
        """Whether every token has some probability."""

    def scored(self, logits: Float[Tensor, "n vocab"]) -> tuple[Tensor, Tensor, Tensor]:
        """NLL of the targets, KL(clean || this) and the most likely token, each `[n]`. Overwrites `logits`."""
        room = [torch.empty_like(self.p[self.tiles[0]]) for _ in range(2)]  # new pages for each tile would cost more
        parts = [self._scored(logits[tile], tile, [x[: len(logits[tile])] for x in room]) for tile in self.tiles]
        nll, kl, tops = (torch.cat(part) for part in zip(*parts, strict=True))
        return nll, kl, tops

    def _scored(self, new: Tensor, tile: slice, room: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        old, p, targets = self.logits[tile], self.p[tile], self.targets[tile, None]
        top = new.max(-1).indices
        change = torch.sub(new, old, out=room[0])
        if not self._possible:  # the difference of two −∞ is none
            change.masked_fill_(new == old, 0)
        low, high = change.amin(-1), change.amax(-1)
        at_top = change.gather(-1, self.top[tile, None])[:, 0]
        most = torch.maximum(high - at_top, at_top - low)
        beyond = ~((high - at_top < _MOST) & (low > -_FARTHEST))  # also where something is not finite
        if bool((most < _SLIGHT).all()):
            kl, growth = self._precise(p, old, new, self.top[tile], room)
        else:
            mean = torch.mul(p, change, out=room[1]).sum(-1).double()
            growth = change.exp_().mul_(p).sum(-1).double().log()
            kl = growth - mean
            near = ~beyond & ((kl < _ROUNDING * (1 + torch.maximum(high, -low))) | (at_top.abs() > _MOST))
            if bool(near.any()):
                some = slice(None) if int(near.sum()) > len(near) // 2 else near  # copies of most cost more than all
                few = p[some]
                own_room = [x[: len(few)] for x in room]
                precise = self._precise(few, old[some], new[some], self.top[tile][some], own_room)
                kl[near], growth[near] = (x[near[some]] for x in precise)
        nll = self.log_z[tile] + growth - new.gather(-1, targets)[:, 0]
        if bool(beyond.any()):
            logp, logq = (x[beyond].double().log_softmax(-1) for x in (old, new))
            kl[beyond] = (logp.exp() * (logp - logq).masked_fill_(logp == -torch.inf, 0)).sum(-1)  # 0 · log 0 is 0
            nll[beyond] = -logq.gather(-1, targets[beyond])[:, 0]
        return nll, kl.clamp_min_(0), top

    def _precise(
        self, p: Float[Tensor, "n vocab"], old: Float[Tensor, "n vocab"], new: Float[Tensor, "n vocab"],
        top: Int[Tensor, "n"], room: list[Tensor],
    ) -> tuple[Float[Tensor, "n"], Float[Tensor, "n"]]:  # fmt: skip
        """KL and log Z_q − log Z_p where KL is small.

        With t = Δ − Δ_top, KL = log(1 + r + s) − r for r = E_p[t] and s = E_p[exp t − 1 − t], a sum of terms >= 0.
        Logits less that of the clean top token round little where p is large, whatever is added to all of them.
        """
        old_top, new_top = (x.gather(-1, top[:, None]) for x in (old, new))
        t = torch.sub(new, new_top, out=room[0]).sub_(torch.sub(old, old_top, out=room[1]))
        if not self._possible:
            t.masked_fill_(p == 0, 0)
        slight = torch.maximum(t.amax(-1), -t.amin(-1)) < _SERIES
        weighted = torch.mul(p, t, out=room[1])
        r, s = weighted.sum(-1).double(), weighted.mul_(t).sum(-1).double() / 2
        if not bool(slight.all()):
            s = torch.where(slight, s, torch.expm1(t, out=room[1]).sub_(t).mul_(p).sum(-1).double())
        grown = torch.log1p(r + s)
        return grown - r, (new_top.double() - old_top.double())[:, 0] + grown


_MOST, _FARTHEST = 40, 1e30
"""Changes of a logit that float32 can take the exponential of, times the smallest p; others are left to float64."""
_ROUNDING = 1e-4
"""KL below which, for changes of about 1, the difference of two float32 sums is not precise to 1%."""
_SLIGHT = 0.01
"""Changes of which KL is below `_ROUNDING` for certain."""
_SERIES = 1e-3
"""Changes for which exp t − 1 − t is t²/2 to 0.04%."""


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
