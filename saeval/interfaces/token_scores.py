"""`TokenScores`: the predictions of a final hidden state compared with the clean ones, per token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from jaxtyping import Bool, Float, Int

from saeval.base.lazy_torch import torch
from saeval.interfaces.data import Batch
from saeval.interfaces.model import Model

if TYPE_CHECKING:
    from torch import Tensor

CHUNK_ELEMENTS = 2**25
"""Logits in memory at once per state, in elements: a chunk has this many divided by the vocabulary tokens.

Half of it makes the product with Gemma 3's unembedding a fifth slower.
"""
TILE_ELEMENTS = 2**20
"""Logits that a CPU processes together, in elements: few enough to stay in its cache."""


@dataclass(frozen=True)
class TokenScores:
    """Scores per token, in nats, float32 or float64; 0 or False outside `mask`."""

    nll: Float[Tensor, "batch seq"]
    """Negative log-likelihood of the target."""
    kl: Float[Tensor, "batch seq"]
    """KL(clean || this), from the clean next-token distribution to this one, at least 0."""
    top1_agreement: Bool[Tensor, "batch seq"]
    """True if the most likely token is the most likely one of the clean distribution."""
    top1_correct: Bool[Tensor, "batch seq"]
    """True if the most likely token is the target."""
    mask: Bool[Tensor, "batch seq"]
    """Positions with scores: the batch's mask, or the share of it that `score_share` chooses."""


def score_tokens(
    model: Model,
    batch: Batch,
    clean: Float[Tensor, "batch seq d_model"],
    finals: Sequence[Float[Tensor, "batch seq d_model"]],
    full_logits: bool = False,
) -> list[TokenScores]:
    """Score several final hidden states of one batch, in chunks of tokens.

    The clean distribution is computed once per chunk, and no `[batch, seq, vocab]` tensor is
    built. With `full_logits` the model's own head computes the logits, one row at a time, for
    models whose logits are not just the unembedding of the final state.
    """
    if batch.sampled is not None:
        batch = replace(batch, mask=batch.sampled)
    shape, device = batch.tokens.shape, clean.device
    wide = torch.promote_types(clean.dtype, torch.float32)
    dtypes = (wide, wide, torch.bool, torch.bool)

    def empty() -> TokenScores:
        nll, kl, agreement, correct = (torch.zeros(shape, dtype=dtype, device=device) for dtype in dtypes)
        return TokenScores(nll, kl, agreement, correct, batch.mask)

    scores = [empty() for _ in finals]
    chunks = _rows(batch) if full_logits else _chunks(model, clean, batch)
    for where, part in chunks:
        targets = batch.targets[where]

        def logits(final: Tensor, where: tuple[Tensor, Tensor] = where, part: Batch | None = part) -> Tensor:
            if part is None:
                values = model.unembed(final[where])
            else:
                row = where[0][0]
                values = model.head(final[row : row + 1], part)[0, where[1]]
            # Half-precision logits are widened: KL is a sum of differences that their log-softmax would round away.
            return values.to(torch.promote_types(values.dtype, torch.float32))

        reference = _Reference(logits(clean), targets)
        for final, score in zip(finals, scores, strict=True):
            nll, kl, top = reference.itself if final is clean else reference.scored(logits(final))
            score.nll[where] = nll.to(score.nll.dtype)
            score.kl[where] = kl.to(score.kl.dtype)
            score.top1_agreement[where] = top == reference.top
            score.top1_correct[where] = top == targets
    return scores


class _Reference:
    """The clean distribution p of a chunk of tokens, with which others are compared.

    With Δ the change of the logits, a distribution q has log Z_q − log Z_p = log E_p[exp Δ], so that
    KL(p‖q) = log E_p[exp Δ] − E_p[Δ]. Δ of nearby logits is exact, whereas log-probabilities round to 10⁻⁶. Rows are
    processed in tiles that fit in the CPU's cache.
    """

    def __init__(self, logits: Float[Tensor, "n vocab"], targets: Int[Tensor, "n"]) -> None:
        self.targets = targets
        self.logits = logits if logits.is_contiguous() else logits.contiguous()
        self.p = torch.empty_like(self.logits)
        rows = max(1, TILE_ELEMENTS // logits.shape[-1]) if logits.device.type == "cpu" else len(logits)
        self.tiles = [slice(start, start + rows) for start in range(0, len(logits), rows)]
        tops, log_z = [], []
        for tile in self.tiles:
            top = _top(self.logits[tile])[:, None]
            highest = self.logits[tile].gather(-1, top)
            total = torch.sub(self.logits[tile], highest, out=self.p[tile]).exp_().sum(-1, keepdim=True)
            self.p[tile] /= total
            log_z.append((highest.double() + total.double().log())[:, 0])
            tops.append(top[:, 0])
        self.top, self.log_z = torch.cat(tops), torch.cat(log_z)
        nll = self.log_z - self.logits.gather(-1, targets[:, None])[:, 0]
        self.itself = nll, torch.zeros_like(nll), self.top
        self._possible = bool(torch.isfinite(self.logits.amin()))
        """True if all logits are finite: every token has some probability."""

    def scored(self, logits: Float[Tensor, "n vocab"]) -> tuple[Tensor, Tensor, Tensor]:
        """Return NLL of the targets, KL(clean || this) and the most likely token, each `[n]`. Overwrites `logits`."""
        room = [torch.empty_like(self.p[self.tiles[0]]) for _ in range(2)]  # new pages for each tile would cost more
        parts = [self._scored(logits[tile], tile, [x[: len(logits[tile])] for x in room]) for tile in self.tiles]
        nll, kl, tops = (torch.cat(part) for part in zip(*parts, strict=True))
        return nll, kl, tops

    def _scored(self, new: Tensor, tile: slice, room: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        old, p, targets = self.logits[tile], self.p[tile], self.targets[tile, None]
        top = _top(new)
        change = torch.sub(new, old, out=room[0])
        if not self._possible:  # −∞ minus −∞ is NaN
            change.masked_fill_(new == old, 0)
        low, high = change.amin(-1), change.amax(-1)
        at_top = change.gather(-1, self.top[tile, None])[:, 0]
        most = torch.maximum(high - at_top, at_top - low)
        beyond = ~((high - at_top < _MOST) & (low > -_FARTHEST))  # also True for NaN and infinite values
        if bool(beyond.all()):
            kl = growth = torch.zeros(len(new), dtype=torch.float64, device=new.device)  # replaced below
        elif bool((most < _SLIGHT).all()):
            kl, growth = self._precise(p, old, new, self.top[tile], room)
        else:
            mean = torch.mul(p, change, out=room[1]).sum(-1).double()
            growth = change.exp_().mul_(p).sum(-1).double().log()
            kl = growth - mean
            near = ~beyond & ((kl < _ROUNDING * (1 + torch.maximum(high, -low))) | (at_top.abs() > _MOST))
            if bool(near.any()):
                some = slice(None) if int(near.sum()) > len(near) // 2 else near  # copying most costs more than all
                few = p[some]
                few_room = [x[: len(few)] for x in room]
                precise = self._precise(few, old[some], new[some], self.top[tile][some], few_room)
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
        """Return KL and log Z_q − log Z_p, precisely where KL is small.

        With t = Δ − Δ_top, KL = log(1 + r + s) − r for r = E_p[t] and s = E_p[exp t − 1 − t], a sum of terms >= 0.
        Logits minus the logit of the clean top token round little where p is large, whatever constant they share.
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


def _top(logits: Float[Tensor, "n vocab"]) -> Int[Tensor, "n"]:
    """Return the most likely token, the first of equal ones; by numpy on a CPU, ten times as fast as torch there."""
    return torch.from_numpy(logits.numpy().argmax(-1)) if logits.device.type == "cpu" else logits.max(-1).indices


_MOST, _FARTHEST = 40, 1e30
"""Largest rise and fall of a logit for which float32 suffices; beyond them the scores are computed in float64."""
_ROUNDING = 1e-4
"""KL below which, for changes of about 1, the difference of two float32 sums is not precise to 1%."""
_SLIGHT = 0.01
"""Largest change of the logits for which KL is certainly below `_ROUNDING`."""
_SERIES = 1e-3
"""Largest t for which exp t − 1 − t is t²/2 to 0.04%."""


def _chunks(model: Model, clean: Tensor, batch: Batch) -> list[tuple[tuple[Tensor, Tensor], None]]:
    rows, positions = batch.mask.nonzero(as_tuple=True)
    if len(rows) == 0:
        return []
    vocabulary = model.unembed(clean[rows[:1], positions[:1]]).shape[-1]
    size = max(1, CHUNK_ELEMENTS // vocabulary)
    return [((r, p), None) for r, p in zip(torch.split(rows, size), torch.split(positions, size), strict=True)]


def _rows(batch: Batch) -> list[tuple[tuple[Tensor, Tensor], Batch]]:
    rows = []
    for row in range(len(batch.tokens)):
        positions = batch.mask[row].nonzero(as_tuple=True)[0]
        if len(positions):
            rows.append(((torch.full_like(positions, row), positions), _part(batch, row, batch.tokens.shape[1])))
    return rows


def _part(batch: Batch, row: int, length: int) -> Batch:
    """Return the first `length` positions of one row of a batch."""
    rows = slice(row, row + 1)
    return Batch(
        batch.tokens[rows, :length], batch.targets[rows, :length], batch.mask[rows, :length], batch.real[rows, :length],
        batch.sequence_ids[rows], batch.clusters[rows],
    )  # fmt: skip


def head_is_exact(model: Model, batch: Batch, clean: Float[Tensor, "batch seq d_model"]) -> bool:
    """Return True if the chunked unembedding equals the model's own head on (up to) 16 real tokens.

    False for models that process their logits in ways that the adapter does not know. No block is run.
    """
    row = int(batch.real.sum(1).argmax())
    part = _part(batch, row, min(16, batch.tokens.shape[1]))
    full = model.head(clean[row : row + 1, : part.tokens.shape[1]], part)[0].double()
    chunked = model.unembed(clean[row, : part.tokens.shape[1]]).double()
    if full.shape != chunked.shape:
        return False
    if bool(full.isnan().any()):
        raise ValueError("the model returns NaN logits on the first batch")
    tolerance = 1e-4 if torch.finfo(clean.dtype).bits >= 32 else 1e-2
    return bool(torch.allclose(full, chunked, rtol=tolerance, atol=tolerance * float(full.abs().max())))
