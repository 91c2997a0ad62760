"""What is measured of an SAE on a few tokens, and what that says of how it was read."""

from __future__ import annotations

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
"""Tokens looked at, spread over those that there are."""
FEWEST = 32
"""Tokens below which nothing that needs an average is judged."""
OUTLYING = 10
"""Times the median norm, beyond which a token has no part in averages: a few such (attention sinks) would be all."""
ALMOST_ALL = 0.95
"""Explained variance beyond which an SAE needs no basis of its own, as PCA and orthogonal bases."""
EXPLAINS_LITTLE = 0.3
"""Explained variance below which a scale explains nothing: what is far off is less so at any large scale."""
SHRUNKEN = 0.6
"""Explained variance above which a gain at a larger scale may be an L1 penalty's: thresholds matter less there."""
_KEPT = (8, 16, 32, 64, 128, 256)


@dataclass(frozen=True)
class Finding:
    """One thing that looks wrong. A `fatal` one stops a run unless the SAE is allowed."""

    check: str
    message: str
    fatal: bool = True


@dataclass
class Examination:
    """What was measured of one SAE, and what follows from it."""

    measured: dict[str, float] = field(default_factory=dict)
    """`l0`, `explained_variance`, `explained_variance_rotated`, ...; fewer where they do not apply."""
    elsewhere: dict[str, float] = field(default_factory=dict)
    """Explained variance of other hooks' activations."""
    findings: list[Finding] = field(default_factory=list)
    tokens: int = 0
    """How many were judged by, without the `outlying` ones."""
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
    """Look at an SAE on the tokens of one batch.

    `declared` is what its checkpoint says of itself (`k`, `l0`). `elsewhere` holds activations of other hooks, to
    find the one it was trained at. Explained variance is 1 - sum|y - ŷ|² / sum|y - mean|² over these tokens, so
    negative values are worse than predicting the mean.
    """
    one = Examination()
    if not sae.has_features or not mask.any():
        return one
    shown = _Shown(sae, mask)
    x, y = shown.take(sae_input), shown.take(activations)
    bad = ~(x.isfinite().all(-1) & y.isfinite().all(-1))  # those are not the SAE's doing
    if count := int((bad & shown.judged).sum()):
        told = f"the model's activations there are NaN or infinite for {count} of {int(shown.judged.sum())} tokens"
        one.findings.append(Finding("finite", f"{told}: try a wider dtype of the model", fatal=False))
        shown.judged = shown.judged & ~bad
    if not shown.judged.any():
        return one
    encoding = sae.encode(x)
    acts, reconstruction = encoding.feature_acts.float(), sae.decode(encoding, y).float()
    if not torch.isfinite(acts[shown.judged]).all() or not torch.isfinite(reconstruction[shown.judged]).all():
        one.findings.append(Finding("finite", "gives NaN or infinite values on ordinary activations"))
        return one
    if not sae.reads_earlier:
        one.findings += _dependence(sae, x[shown.judged], encoding.feature_acts[shown.judged])
    one.outlying = shown.leave_out(x, y)
    one.tokens = int(shown.judged.sum())
    if one.tokens < FEWEST:
        return one
    fired = (acts[shown.judged] != 0).sum(-1).float()
    one.measured["l0"] = float(fired.mean())
    one.measured["explained_variance"] = shown.explained(y, reconstruction)
    one.findings += _sparsity(declared, fired, acts.shape[-1])
    misread = _misread(shown, encoding, x, y, elsewhere or {}, one)
    if misread and declared.get("end_to_end"):
        text = f"{misread.message}; it was trained end to end, and need not reconstruct"
        misread = replace(misread, message=text, fatal=False)
    one.findings += [misread] if misread else []
    return one


def _misread(
    shown: _Shown, encoding: Encoding, x: Tensor, y: Tensor, elsewhere: Mapping[str, Tensor], one: Examination
) -> Finding | None:
    """What the reconstruction says of how the SAE was read."""
    explained = one.measured["explained_variance"]
    same_site = torch.equal(x, y)  # a transcoder's inputs and outputs are not to be compared
    explanations = list(_truncation(shown, encoding, y))
    explanations += _readings(shown, x, y, explained)
    if same_site:
        explanations += _scale(shown, x, explained, one.measured)
        explanations += _hook(shown, elsewhere, explained, one.elsewhere)
    # By more than rounding, which is all that nearly perfect reconstructions differ in.
    gains = [e for e in explanations if e.explained > max(0, explained + 1e-3)]
    better = [e for e in gains if 1 - e.explained < 0.75 * (1 - explained)]
    if fatal := [e for e in better if e.finding.fatal]:  # the one that explains most; the others are its shadows
        return max(fatal, key=lambda e: e.explained).finding
    if same_site and (foreign := _basis(shown, x, explained, one.measured)):
        return foreign
    if explained < 0:
        text = f"explained variance is {explained:.3f}, worse than predicting the mean"
        return Finding("explained_variance", text)
    return max(better, key=lambda e: e.explained).finding if better else None


class _Shown:
    """An SAE and the tokens that it is shown: one row of them, or whole rows where it reads earlier tokens too."""

    def __init__(self, sae: Substitute, mask: Bool[Tensor, "batch seq"]) -> None:
        self.sae = sae
        place = sae.device or mask.device
        if sae.reads_earlier:
            enough = int((mask.sum(1).cumsum(0) < ROWS).sum()) + 1
            self._places: Any = slice(0, enough)
            self.judged = mask[:enough].to(place)
        else:
            scored = mask.nonzero()
            spread = torch.linspace(0, len(scored) - 1, min(ROWS, len(scored)), device=mask.device).round().long()
            rows, positions = scored[spread].unbind(1)
            self._places = rows[None], positions[None]
            self.judged = torch.ones((1, len(rows)), dtype=torch.bool, device=place)

    def take(self, activations: Float[Tensor, "batch seq d"]) -> Float[Tensor, "rows seq d"]:
        """A copy of what belongs to the tokens looked at, where the SAE computes."""
        chosen: Tensor = activations[self._places]
        return chosen.to(device=self.judged.device, dtype=torch.float32, copy=True)

    def leave_out(self, *activations: Float[Tensor, "rows seq d"]) -> int:
        """Judge no more by tokens whose norm is far from the others'; returns how many these are."""
        ordinary = self.judged.clone()
        for one in activations:
            norms = one.norm(dim=-1)
            ordinary &= norms <= OUTLYING * norms[self.judged].median()
        left_out = int((self.judged & ~ordinary).sum())
        self.judged = self.judged & ordinary
        return left_out

    def explained(self, y: Tensor, y_hat: Tensor) -> float:
        return explained_variance(y[self.judged], y_hat[self.judged])

    def reconstructed(self, x: Tensor, every: int = 1) -> float:
        """Explained variance of what the SAE makes of other activations; of every n-th token where tokens are alone."""
        judged = self.judged
        if every > 1 and not self.sae.reads_earlier:
            x, judged = x[:, ::every], judged[:, ::every]
        reconstruction = self.sae.decode(self.sae.encode(x), x).float()
        return explained_variance(x[judged], reconstruction[judged])


@dataclass(frozen=True)
class _Explanation:
    """Something that, if it were so, would make the SAE explain this much."""

    explained: float
    finding: Finding


def explained_variance(y: Float[Tensor, "n d"], y_hat: Float[Tensor, "n d"]) -> float:
    """1 - sum|y - ŷ|² / sum|y - mean|²; 1 is perfect, 0 the mean."""
    below = (y - y.mean(0)).double().square().sum()
    return float(1 - (y - y_hat).double().square().sum() / below.clamp_min(1e-30))


def _dependence(sae: Substitute, x: Float[Tensor, "n d"], acts: Float[Tensor, "n d_sae"]) -> Iterator[Finding]:
    """Whether a token's features depend on the tokens beside it, by more than rounding does.

    In the mean, since rounding in half precision decides now and then which feature is a token's k-th.
    """
    few = torch.linspace(0, len(x) - 1, min(16, len(x))).round().long().to(x.device)
    beside = acts[few].float()
    alone = torch.cat([sae.encode(row[None, None]).feature_acts[0] for row in x[few]]).float()
    change = (alone - beside).norm(dim=-1) / beside.norm(dim=-1).clamp_min(1e-6)
    eps = max(torch.finfo(dtype).eps for dtype in (acts.dtype, sae.dtype or acts.dtype))
    if float(change.mean()) > max(1e-3, 4 * eps):
        text = (
            "a token's features change with the tokens beside it: is it a BatchTopK SAE as it stood in training? "
            "(one that means to read earlier tokens says so: reads_earlier = True)"
        )
        yield Finding("independence", text)


def _sparsity(declared: Mapping[str, Any], fired: Tensor, d_sae: int) -> Iterator[Finding]:
    mean, most = float(fired.mean()), int(fired.max())
    k, l0 = declared.get("k"), declared.get("l0", declared.get("published_l0"))
    if most == 0:
        yield Finding("l0", "no feature ever fires")
    elif isinstance(k, int) and most > k:
        yield Finding("k", f"fires up to {most} features a token, but declares k = {k}")
    elif isinstance(l0, int | float) and l0 > 0 and not l0 / 3 <= mean <= l0 * 3:
        yield Finding("l0", f"fires {mean:.1f} features a token, but declares an L0 of {l0:g}")
    elif mean > d_sae / 2:
        text = f"more than half of its {d_sae} features fire on a token ({mean:.0f}): is its activation function right?"
        yield Finding("l0", text, fatal=False)


def _truncation(shown: _Shown, encoding: Encoding, y: Tensor) -> Iterator[_Explanation]:
    """A TopK SAE read as ReLU improves when all but its largest features are dropped; a ReLU SAE does not."""
    acts, size = encoding.feature_acts, encoding.feature_acts.abs()
    for k in (k for k in _KEPT if k < acts.shape[-1]):
        least = size.topk(k, dim=-1).values[..., -1:]
        only = Encoding(torch.where(size >= least, acts, torch.zeros_like(acts)), encoding.context)
        found = shown.explained(y, shown.sae.decode(only, y).float())
        text = f"its {k} largest features alone explain {found:.3f} of the variance, all of them less: is it TopK?"
        yield _Explanation(found, Finding("activation", text))


def _readings(shown: _Shown, x: Tensor, y: Tensor, explained: float) -> Iterator[_Explanation]:
    """The same weights read otherwise, as their format could have them."""
    for name, other in shown.sae.other_readings().items():
        found = shown.explained(y, other.decode(other.encode(x), y).float())
        text = f"explains {found:.3f} of the variance {name}, {explained:.3f} as it is loaded: was it trained so?"
        yield _Explanation(found, Finding("normalisation", text))


def _scale(shown: _Shown, x: Tensor, explained: float, measured: dict[str, float]) -> Iterator[_Explanation]:
    """An SAE whose scale was not folded in explains more of inputs of another scale: the best one is searched for.

    Over octaves, and the norms 1 and √d, on a quarter of the tokens; then between the neighbours of the best.
    """
    if explained > ALMOST_ALL:
        return
    norm = float(x[shown.judged].norm(dim=-1).mean())

    def quick(octaves: float) -> float:
        return shown.reconstructed(x * 2.0**octaves, every=4)

    as_it_is = quick(0)
    if abs(quick(1) - as_it_is) < 1e-6:  # it normalises inputs itself
        return
    named = {"√d_in": math.log2(x.shape[-1] ** 0.5 / norm), "1": -math.log2(norm)}
    tried = {octaves: quick(octaves) for octaves in (*(n for n in range(-6, 7) if n), *named.values())} | {0: as_it_is}
    best = max(tried, key=lambda octaves: tried[octaves])
    octaves = _peak(lambda at: shown.reconstructed(x * 2.0**at), best - 1, best + 1)
    factor, found = 2.0**octaves, shown.reconstructed(x * 2.0**octaves)
    if 0.8 < factor < 1.25:  # as SAEs do that were trained to be sparse
        return
    measured["best_input_scale"], measured["explained_variance_at_best_scale"] = factor, found
    if found < EXPLAINS_LITTLE:
        return
    to = next((f", to a mean norm of {name}" for name, at in named.items() if abs(at - octaves) < 0.15), "")
    text = (
        f"explains {found:.3f} of the variance of inputs scaled by {factor:.3g}{to}, {explained:.3f} of the model's "
        f"own (mean norm {norm:.3g}): its input normalisation is not applied, or it is of another hook"
    )
    clear = explained < SHRUNKEN and (bool(to) or 1 - found < 0.25 * (1 - explained))
    if factor > 1 and not clear:
        text += "; or it was trained with a strong penalty, which any larger scale weakens"
    yield _Explanation(found, Finding("normalisation", text, fatal=factor < 1 or clear))


def _peak(height: Callable[[float], float], low: float, high: float, steps: int = 7) -> float:
    """Where a function of one peak is highest, by golden section."""
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
        measured[hook_name] = found = shown.reconstructed(shown.take(activations))
        text = f"explains {found:.3f} of the variance of {hook_name}, {explained:.3f} of its own hook's"
        yield _Explanation(found, Finding("hook", text))


def _basis(shown: _Shown, x: Tensor, explained: float, measured: dict[str, float]) -> Finding | None:
    """An SAE of these activations explains them better than the same cloud turned at random about its mean."""
    d = x.shape[-1]
    generator = torch.Generator().manual_seed(0)
    turn = torch.linalg.qr(torch.randn(d, d, generator=generator, dtype=torch.float64))[0].to(x)
    mean = x[shown.judged].mean(0)
    measured["explained_variance_rotated"] = found = shown.reconstructed((x - mean) @ turn + mean)
    if explained > ALMOST_ALL or 1 - explained <= 0.9 * (1 - found):
        return None
    better = "barely better" if explained > found else "no better"
    return Finding(
        "model",
        f"explains {explained:.3f} of the variance, {better} than after a random rotation ({found:.3f}): "
        "it was not trained on these activations; is it of another model or hook?",
    )
