"""`TokenScores`: the predictions of a final hidden state compared with the clean ones, per token."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from jaxtyping import Bool, Float, Int

from saeval.base.lazy_torch import torch
from saeval.interfaces.data import Batch
from saeval.interfaces.model import Model

if TYPE_CHECKING:
    from torch import Tensor

CHUNK_ELEMENTS = 2**25
"""Clean logits in memory at once, in elements: a chunk has this many divided by the vocabulary tokens."""
PRODUCT_ROWS = 256
"""Rows of one product at least, if several states have them: per row, few cost more, as all weights are read.

Per row, the product of 128 with Gemma 3's unembedding takes a tenth longer, of 63 two fifths.
"""
TILE_ELEMENTS = 2**18
"""Logits that an operation of torch on a CPU, or a thread, processes at least, in elements."""
COMPILED_FROM = 2**13
"""Vocabulary from which the compiled sums save more time than numba takes to start (0.5 s)."""


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
    changed = [index for index, final in enumerate(finals) if final is not clean]
    chunks = _rows(batch) if full_logits else _chunks(model, clean, batch)
    for where, part in chunks:
        targets, before = batch.targets[where], clean[where]
        logits = _logits(model, [clean, *(finals[index] for index in changed)], where, part)
        reference = _Reference(next(logits), targets)
        compared = {index: reference.scored(next(logits)) for index in changed}
        for index, (final, score) in enumerate(zip(finals, scores, strict=True)):
            each = compared.get(index, reference.itself)
            # Equal states have equal logits; products may round rows of a matrix differently.
            same = (final[where] == before).all(-1) & torch.isfinite(reference.log_z)
            nll, kl, top = (torch.where(same, *pair) for pair in zip(reference.itself, each, strict=True))
            score.nll[where] = nll.to(score.nll.dtype)
            score.kl[where] = kl.to(score.kl.dtype)
            score.top1_agreement[where] = top == reference.top
            score.top1_correct[where] = top == targets
    return scores


def _logits(
    model: Model, states: Sequence[Tensor], where: tuple[Tensor, Tensor], part: Batch | None
) -> Iterator[Float[Tensor, "n vocab"]]:
    """Yield the logits of each state at some positions, from the model's own head for a `part`.

    Half-precision logits are widened: KL is a sum of differences that their log-softmax would round away.
    """

    def wide(values: Tensor) -> Tensor:
        return values.to(torch.promote_types(values.dtype, torch.float32))

    if part is not None:
        row = where[0][0]
        for state in states:
            yield wide(model.head(state[row : row + 1], part)[0, where[1]])
        return
    most = max(PRODUCT_ROWS, CHUNK_ELEMENTS // _vocabulary(model, states[0]))
    count = max(1, most // len(where[0]))
    for start in range(0, len(states), count):
        values = model.unembed(torch.cat([state[where] for state in states[start : start + count]]))
        yield from wide(values).split(len(where[0]))


def _vocabulary(model: Model, states: Float[Tensor, "batch seq d_model"]) -> int:
    return int(model.unembed(states[:0].flatten(0, 1)).shape[-1])


class _Reference:
    """The clean distribution p of a chunk of tokens, with which others are compared.

    With t the change of a logit minus that of the clean top token, log Z changes by that of the top token and by
    log E_p[exp t]. KL(p‖q) is log E_p[exp t] − E_p[t] = log(1 + r + s) − r for r = E_p[t] and s = E_p[exp t − 1 − t], a
    mean of terms >= 0. Logits minus the logit of the top token round little where p is large, whatever constant they
    share, so that float32 gives even a small KL precisely.
    """

    def __init__(self, logits: Float[Tensor, "n vocab"], targets: Int[Tensor, "n"]) -> None:
        self.logits, self.targets, self.top = logits.contiguous(), targets, _top(logits)
        self.totals = _totals(self.logits, self.top)
        self.log_z = _at(self.logits, self.top) + self.totals.log()
        nll = self.log_z - _at(self.logits, targets)
        self.itself = nll, torch.zeros_like(nll), self.top

    def scored(self, logits: Float[Tensor, "n vocab"]) -> tuple[Tensor, Tensor, Tensor]:
        """Return NLL of the targets, KL(clean || this) and the most likely token, each `[n]`."""
        new = logits.contiguous()
        (total, mean, excess, rise), top = _sums(self.logits, new, self.top)
        r, s = mean / self.totals, excess / self.totals
        grown = torch.where((r + s).abs() < _SMALL, torch.log1p(r + s), (total / self.totals).log())
        kl = (grown - r).clamp_min_(0)
        nll = self.log_z + _at(new, self.top) - _at(self.logits, self.top) + grown - _at(new, self.targets)
        fits = torch.isfinite(kl) & torch.isfinite(nll) & (rise < _MOST)
        beyond = (~fits).nonzero()[:, 0]
        for rows in beyond.split(_tile(new)):
            logp, logq = (x[rows].double().log_softmax(-1) for x in (self.logits, new))
            kl[rows] = (logp.exp() * (logp - logq).masked_fill_(logp == -torch.inf, 0)).sum(-1)  # 0 · log 0 is 0
            nll[rows] = -_at(logq, self.targets[rows])
            top[rows] = _top(new[rows])
        return nll, kl, top


def _totals(logits: Float[Tensor, "n vocab"], top: Int[Tensor, "n"]) -> Float[Tensor, "n"]:
    """Return Σ exp(logit − logit of `top`) of each row."""
    if _compiles(logits):
        totals = torch.empty(len(logits), dtype=torch.float64)
        _in_threads("totals", logits, top, totals)
        return totals
    tiles = (x.split(_tile(logits)) for x in (logits, top))
    return torch.cat([(x - x.gather(-1, k[:, None])).exp_().sum(-1).double() for x, k in zip(*tiles, strict=True)])


def _sums(
    old: Float[Tensor, "n vocab"], new: Float[Tensor, "n vocab"], top: Int[Tensor, "n"]
) -> tuple[Float[Tensor, "4 n"], Int[Tensor, "n"]]:
    """Return sums over the vocabulary, in float64, and the new top token.

    With all logits relative to that of `top`: the sums of exp(new), p t and p (exp t − 1 − t) for p = exp(old), and the
    highest new logit.
    """
    if _compiles(old) and _compiles(new):
        sums, highest = torch.empty(len(new), 4, dtype=torch.float64), torch.empty_like(top)
        _in_threads("compare", old, new, top, sums, highest)
        return sums.T, highest
    parts = []
    for before, after, index in zip(*(x.split(_tile(new)) for x in (old, new, top)), strict=True):
        a, b = (x - x.gather(-1, index[:, None]) for x in (before, after))
        t = (b - a).masked_fill_(a == -torch.inf, 1)
        p, q = a.exp(), b.exp()
        pt = p * t
        series = ((t / 24 + 1 / 6) * t + 1 / 2) * t * t  # exp t − 1 − t to 4 · 10⁻⁶, where float32 would cancel
        slight = p * (series if t.dtype == torch.float32 else torch.expm1(t) - t)
        excess = torch.where(t.abs() < 1 / 16, slight, q - p - pt)
        parts.append(torch.stack([q.sum(-1), pt.sum(-1), excess.sum(-1), b.amax(-1)]).double())
    return torch.cat(parts, 1), _top(new)


def _compiles(logits: Tensor) -> bool:
    """Return True if `logit_sums` has code for these logits; for others, torch computes the same sums."""
    return logits.device.type == "cpu" and logits.dtype == torch.float32 and logits.shape[-1] >= COMPILED_FROM


def _in_threads(kernel: str, *tensors: Tensor) -> None:
    """Run a function of `logit_sums` on shares of the rows, in as many threads as torch uses."""
    from saeval.interfaces import logit_sums  # late: it loads numba, which only scores need

    count = min(torch.get_num_threads(), len(tensors[0]), max(1, tensors[0].numel() // TILE_ELEMENTS))
    shares = [[x.numpy() for x in share] for share in zip(*(x.tensor_split(count) for x in tensors), strict=True)]
    run = getattr(logit_sums, kernel)
    if count == 1:
        run(*shares[0])
    else:
        with ThreadPoolExecutor(count) as pool:
            list(pool.map(lambda share: run(*share), shares))


def _tile(logits: Float[Tensor, "n vocab"]) -> int:
    """Return the number of rows that torch processes together, so that temporary tensors stay small."""
    elements = TILE_ELEMENTS if logits.device.type == "cpu" else CHUNK_ELEMENTS // 4
    return max(1, elements // logits.shape[-1])


def _at(logits: Float[Tensor, "n vocab"], tokens: Int[Tensor, "n"]) -> Float[Tensor, "n"]:
    return logits.gather(-1, tokens[:, None])[:, 0].double()


def _top(logits: Float[Tensor, "n vocab"]) -> Int[Tensor, "n"]:
    """Return the most likely token, the first of equal ones; by numpy on a CPU, ten times as fast as torch there."""
    return torch.from_numpy(logits.numpy().argmax(-1)) if logits.device.type == "cpu" else logits.max(-1).indices


_MOST = 80
"""Rise above the clean top token up to which float32 suffices; beyond it the scores are computed in float64."""
_SMALL = 0.5
"""r + s for which the logarithm of 1 + r + s is more precise than that of the sum of exponentials."""


def _chunks(model: Model, clean: Tensor, batch: Batch) -> list[tuple[tuple[Tensor, Tensor], None]]:
    rows, positions = batch.mask.nonzero(as_tuple=True)
    if len(rows) == 0:
        return []
    vocabulary = _vocabulary(model, clean)
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
