"""Examines an SAE on a few tokens: is it loaded correctly?"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from jaxtyping import Bool, Float

from saeval.base.lazy_torch import torch
from saeval.interfaces.substitute import Encoding, Substitute

if TYPE_CHECKING:
    from torch import Tensor

ROWS = 256
"""Number of tokens examined, evenly spaced over those of the batch."""
FEWEST = 32
"""Number of tokens below which no check that needs an average is made."""
OUTLYING = 10
"""Multiple of the median norm above which a token is left out of averages, which attention sinks would dominate."""
ALMOST_ALL = 0.95
"""Explained variance above which a basis need not be specific to the activations, as for PCA and orthogonal bases."""
EXPLAINS_LITTLE = 0.3
"""Explained variance below which a better input scale means nothing: a poor fit improves at any large scale."""
SHRUNKEN = 0.6
"""Explained variance above which a gain at a larger scale may be due to an L1 penalty: thresholds matter less there."""
_KEPT = (8, 16, 32, 64, 128, 256)


@dataclass(frozen=True)
class Finding:
    """Something that looks wrong. A `fatal` finding stops a run unless the SAE is allowed."""

    check: str
    message: str
    fatal: bool = True


@dataclass
class Examination:
    """Measurements of one SAE and the findings that follow from them."""

    measured: dict[str, float] = field(default_factory=dict)
    """`l0`, `explained_variance`, `explained_variance_with_outlying`, ...; fewer where they do not apply."""
    elsewhere: dict[str, float] = field(default_factory=dict)
    """Explained variance of the activations at other hooks, by hook name."""
    findings: list[Finding] = field(default_factory=list)
    tokens: int = 0
    """Number of tokens examined, without the `outlying` ones."""
    outlying: int = 0

    @property
    def fatal(self) -> list[Finding]:
        return [f for f in self.findings if f.fatal]


def examine(
    sae: Substitute,
    declared: Mapping[str, Any],
    sae_input: Float[Tensor, "batch seq d_in"],
    activations: Float[Tensor, "batch seq d_out"],
    mask: Bool[Tensor, "batch seq"],
    elsewhere: Mapping[str, Float[Tensor, "batch seq d_in"]] | None = None,
) -> Examination:
    """Examine an SAE on the tokens of one batch.

    `declared` holds the facts of its checkpoint (`k`, `l0`). `elsewhere` holds activations at other hooks, to find the
    hook at which it was trained. Explained variance is 1 - sum|y - ŷ|² / sum|y - mean|² over these tokens, so a
    negative value is worse than predicting the mean.
    """
    examination = Examination()
    if not sae.has_features or not mask.any():
        return examination
    shown = _Shown(sae, mask)
    x, y = shown.take(sae_input), shown.take(activations)
    bad = ~(x.isfinite().all(-1) & y.isfinite().all(-1))  # not caused by the SAE
    if count := int((bad & shown.judged).sum()):
        fault = f"the model's activations there are NaN or infinite for {count} of {int(shown.judged.sum())} tokens"
        examination.findings.append(Finding("finite", f"{fault}: try a wider dtype of the model", fatal=False))
        shown.judged = shown.judged & ~bad
    if not shown.judged.any():
        return examination
    encoding = sae.encode(x)
    acts, reconstruction = encoding.feature_acts.float(), sae.decode(encoding, y).float()
    if not torch.isfinite(acts[shown.judged]).all() or not torch.isfinite(reconstruction[shown.judged]).all():
        examination.findings.append(Finding("finite", "gives NaN or infinite values on ordinary activations"))
        return examination
    if not sae.reads_earlier:
        examination.findings += _dependence(sae, x[shown.judged], encoding.feature_acts[shown.judged])
    of_all = shown.explained(y, reconstruction)
    examination.outlying = shown.leave_out(x, y)
    examination.tokens = int(shown.judged.sum())
    if examination.tokens < FEWEST:
        return examination
    fired = (acts[shown.judged] != 0).sum(-1).float()
    examination.measured["l0"] = float(fired.mean())
    examination.measured["explained_variance"] = shown.explained(y, reconstruction)
    if examination.outlying:
        examination.measured["explained_variance_with_outlying"] = of_all
    examination.findings += _sparsity(declared, fired, acts.shape[-1])
    misread = _misread(shown, encoding, reconstruction, x, y, elsewhere or {}, examination)
    if misread and declared.get("end_to_end"):
        text = f"{misread.message}; it was trained end to end, and need not reconstruct"
        misread = replace(misread, message=text, fatal=False)
    if misread and examination.outlying:
        without = f"{examination.tokens} tokens, without {examination.outlying} of outlying norm"
        misread = replace(misread, message=f"{misread.message} (on {without})")
    examination.findings += [misread] if misread else []
    return examination


def _misread(
    shown: _Shown, encoding: Encoding, reconstruction: Tensor, x: Tensor, y: Tensor, elsewhere: Mapping[str, Tensor],
    examination: Examination,
) -> Finding | None:  # fmt: skip
    """Return the finding of an SAE that is not loaded correctly, by its reconstruction; None if there is none."""
    explained = examination.measured["explained_variance"]
    same_site = torch.equal(x, y)  # the inputs and outputs of a transcoder are not comparable
    explanations = list(_truncation(shown, encoding, y))
    explanations += _readings(shown, reconstruction, x, y, explained)
    if same_site:
        explanations += _scale(shown, x, explained, examination.measured)
        explanations += _hook(shown, elsewhere, explained, examination.elsewhere)
    # Nearly perfect reconstructions differ by rounding only.
    gains = [e for e in explanations if e.explained > max(0, explained + 1e-3)]
    better = [e for e in gains if 1 - e.explained < 0.75 * (1 - explained)]
    if fatal := [e for e in better if e.finding.fatal]:  # the one that explains most; the others follow from it
        return max(fatal, key=lambda e: e.explained).finding
    if same_site and (foreign := _basis(shown, x, explained, examination.measured)):
        return foreign
    if explained < 0:
        text = f"explained variance is {explained:.3f}, worse than predicting the mean"
        return Finding("explained_variance", text)
    return max(better, key=lambda e: e.explained).finding if better else None


class _Shown:
    """An SAE and the tokens on which it is examined: one row of them, or whole rows if it reads earlier tokens."""

    def __init__(self, sae: Substitute, mask: Bool[Tensor, "batch seq"]) -> None:
        self.sae, self.part = sae, slice(None)
        device = sae.device or mask.device
        if sae.reads_earlier:
            enough = int((mask.sum(1).cumsum(0) < ROWS).sum()) + 1
            self._places: Any = slice(0, enough)
            self.judged = mask[:enough].to(device)
        else:
            scored = mask.nonzero()
            spread = torch.linspace(0, len(scored) - 1, min(ROWS, len(scored)), device=mask.device).round().long()
            rows, positions = scored[spread].unbind(1)
            self._places = rows[None], positions[None]
            self.judged = torch.ones((1, len(rows)), dtype=torch.bool, device=device)

    def take(self, activations: Float[Tensor, "batch seq d"]) -> Float[Tensor, "rows seq d"]:
        """Return a copy of the examined tokens' activations on the SAE's device."""
        chosen: Tensor = activations[self._places]
        return chosen.to(device=self.judged.device, dtype=torch.float32, copy=True)

    def leave_out(self, *activations: Float[Tensor, "rows seq d"]) -> int:
        """Exclude tokens whose norm is far above the median; return their number."""
        ordinary = self.judged.clone()
        for x in activations:
            norms = x.norm(dim=-1)
            ordinary &= norms <= OUTLYING * norms[self.judged].median()
        left_out = int((self.judged & ~ordinary).sum())
        self.judged = self.judged & ordinary
        return left_out

    def explained(self, y: Tensor, y_hat: Tensor) -> float:
        return explained_variance(y[self.judged], y_hat[self.judged])

    def reconstructed(self, x: Tensor) -> float:
        """Return the explained variance of the SAE on other activations."""
        return self.explained(x, self.sae.decode(self.sae.encode(x), x).float())

    def quarter(self) -> _Shown:
        """Return every fourth token, if the SAE reads each alone: enough to see that nothing is gained."""
        fewer = copy.copy(self)
        fewer.part = slice(None) if self.sae.reads_earlier else slice(None, None, 4)
        fewer.judged = self.judged[:, fewer.part]
        return fewer


@dataclass(frozen=True)
class _Explanation:
    """A possible error of loading, and the explained variance with it corrected."""

    explained: float
    finding: Finding


def explained_variance(y: Float[Tensor, "n d"], y_hat: Float[Tensor, "n d"]) -> float:
    """Return 1 - sum|y - ŷ|² / sum|y - mean|²; 1 is perfect, 0 as good as the mean."""
    variance = (y - y.mean(0)).double().square().sum()
    return float(1 - (y - y_hat).double().square().sum() / variance.clamp_min(1e-30))


def _dependence(sae: Substitute, x: Float[Tensor, "n d"], acts: Float[Tensor, "n d_sae"]) -> Iterator[Finding]:
    """Find features that depend on a token's neighbours by more than rounding.

    The change is averaged, since rounding in half precision sometimes decides which feature is a token's k-th.
    """
    few = torch.linspace(0, len(x) - 1, min(16, len(x))).round().long().to(x.device)
    beside = acts[few].float()
    alone = torch.cat([sae.encode(row[None, None]).feature_acts[0] for row in x[few]]).float()
    change = (alone - beside).norm(dim=-1) / beside.norm(dim=-1).clamp_min(1e-6)
    eps = max(torch.finfo(dtype).eps for dtype in (acts.dtype, sae.dtype or acts.dtype))
    if float(change.mean()) > max(1e-3, 4 * eps):
        text = (
            "a token's features change with the tokens beside it: is it a BatchTopK SAE still in its training mode? "
            "(an SAE that reads earlier tokens by design declares reads_earlier = True)"
        )
        yield Finding("independence", text)


def _sparsity(declared: Mapping[str, Any], fired: Tensor, d_sae: int) -> Iterator[Finding]:
    mean, most = float(fired.mean()), int(fired.max())
    k, l0 = declared.get("k"), declared.get("l0", declared.get("published_l0"))
    if most == 0:
        yield Finding("l0", "no feature ever fires")
    elif isinstance(k, int) and most > k:
        yield Finding("k", f"fires up to {most} features per token, but declares k = {k}")
    elif isinstance(l0, int | float) and l0 > 0 and not l0 / 3 <= mean <= l0 * 3:
        yield Finding("l0", f"fires {mean:.1f} features per token, but declares an L0 of {l0:g}")
    elif mean > d_sae / 2:
        text = f"more than half of its {d_sae} features fire on a token ({mean:.0f}): is its activation function right?"
        yield Finding("l0", text, fatal=False)


def _truncation(shown: _Shown, encoding: Encoding, y: Tensor) -> Iterator[_Explanation]:
    """Keep only the largest features: that improves a TopK SAE loaded as ReLU, but not a ReLU SAE."""
    acts, size = encoding.feature_acts, encoding.feature_acts.abs()
    most = int((acts != 0).sum(-1).max())
    if not (fewer := [k for k in _KEPT if k < most]):
        return
    largest = size.topk(fewer[-1], dim=-1).values
    for k in fewer:
        least = largest[..., k - 1 : k]
        only = Encoding(torch.where(size >= least, acts, torch.zeros_like(acts)), encoding.context)
        truncated = shown.explained(y, shown.sae.decode(only, y).float())
        text = f"its {k} largest features alone explain {truncated:.3f} of the variance, all of them less: is it TopK?"
        yield _Explanation(truncated, Finding("activation", text))


def _readings(shown: _Shown, reconstruction: Tensor, x: Tensor, y: Tensor, explained: float) -> Iterator[_Explanation]:
    """Try other interpretations of the same weights that the format allows."""
    few = shown.quarter()
    some_x, some_y, as_loaded = (tensor[:, few.part] for tensor in (x, y, reconstruction))
    for name, reading in shown.sae.other_readings().items():
        tried = few.explained(some_y, reading.decode(reading.encode(some_x), some_y).float())
        if tried <= few.explained(some_y, as_loaded):
            continue
        better = shown.explained(y, reading.decode(reading.encode(x), y).float())
        text = f"explains {better:.3f} of the variance {name}, {explained:.3f} as loaded: was it trained that way?"
        yield _Explanation(better, Finding("normalisation", text))


def _scale(shown: _Shown, x: Tensor, explained: float, measured: dict[str, float]) -> Iterator[_Explanation]:
    """Search the best scale of the inputs: an SAE whose input scale was not folded in explains more at another scale.

    The search tries octaves and the mean norms 1 and √d, then between the neighbours of the best octave, on a quarter
    of the tokens.
    """
    if explained > ALMOST_ALL:
        return
    norm = float(x[shown.judged].norm(dim=-1).mean())
    few = shown.quarter()
    some_x = x[:, few.part]

    def quick(octaves: float) -> float:
        return few.reconstructed(some_x * 2.0**octaves)

    unscaled = quick(0)
    if abs(quick(1) - unscaled) < 1e-6:  # it normalises inputs itself
        return
    named = {"√d_in": math.log2(x.shape[-1] ** 0.5 / norm), "1": -math.log2(norm)}
    tried = {octaves: quick(octaves) for octaves in (*(n for n in range(-6, 7) if n), *named.values())} | {0: unscaled}
    best = max(tried, key=lambda octaves: tried[octaves])
    octaves = _peak(quick, best - 1, best + 1)
    factor = 2.0**octaves
    if 0.8 < factor < 1.25:  # usual for SAEs trained to be sparse
        return
    scaled = shown.reconstructed(x * factor)
    measured["best_input_scale"], measured["explained_variance_at_best_scale"] = factor, scaled
    if scaled < EXPLAINS_LITTLE:
        return
    to = next((f", to a mean norm of {name}" for name, at in named.items() if abs(at - octaves) < 0.15), "")
    text = (
        f"explains {scaled:.3f} of the variance of inputs scaled by {factor:.3g}{to}, {explained:.3f} of the model's "
        f"own (mean norm {norm:.3g}): its input normalisation is not applied, or it is of another hook"
    )
    clear = explained < SHRUNKEN and (bool(to) or 1 - scaled < 0.25 * (1 - explained))
    if factor > 1 and not clear:
        text += "; or it was trained with a strong penalty, which any larger scale weakens"
    yield _Explanation(scaled, Finding("normalisation", text, fatal=factor < 1 or clear))


def _peak(height: Callable[[float], float], low: float, high: float, steps: int = 7) -> float:
    """Return the maximum of a function with one peak, by golden-section search."""
    shorter = (5**0.5 - 1) / 2
    a, b = high - shorter * (high - low), low + shorter * (high - low)
    at_a, at_b = height(a), height(b)
    for _ in range(steps):
        if at_a > at_b:
            high, b, at_b = b, a, at_a
            a = high - shorter * (high - low)
            at_a = height(a)
        else:
            low, a, at_a = a, b, at_b
            b = low + shorter * (high - low)
            at_b = height(b)
    return a if at_a > at_b else b


def _hook(
    shown: _Shown, elsewhere: Mapping[str, Tensor], explained: float, measured: dict[str, float]
) -> Iterator[_Explanation]:
    for hook_name, activations in elsewhere.items():
        measured[hook_name] = there = shown.reconstructed(shown.take(activations))
        text = f"explains {there:.3f} of the variance of {hook_name}, {explained:.3f} of its own hook's"
        yield _Explanation(there, Finding("hook", text))


def _basis(shown: _Shown, x: Tensor, explained: float, measured: dict[str, float]) -> Finding | None:
    """Compare with the same activations after a random rotation about their mean, which an SAE should explain worse."""
    d = x.shape[-1]
    generator = torch.Generator().manual_seed(0)
    rotation = torch.linalg.qr(torch.randn(d, d, generator=generator, dtype=torch.float64))[0].to(x)
    mean = x[shown.judged].mean(0)
    measured["explained_variance_rotated"] = rotated = shown.reconstructed((x - mean) @ rotation + mean)
    if explained > ALMOST_ALL or 1 - explained <= 0.9 * (1 - rotated):
        return None
    better = "barely better" if explained > rotated else "no better"
    return Finding(
        "model",
        f"explains {explained:.3f} of the variance, {better} than after a random rotation ({rotated:.3f}): "
        "it was not trained on these activations; is it of another model or hook?",
    )
