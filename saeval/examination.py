"""What is measured of an SAE on a few tokens, and what that says of how it was read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from saeval.substitute import Encoding, Substitute

ROWS = 256
"""Tokens looked at."""
FEWEST = 32
"""Tokens below which nothing that needs an average is judged."""
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
    place = sae.device or activations.device
    x, y = sae_input[mask][:ROWS].float().to(place), activations[mask][:ROWS].float().to(place)
    one = Examination()
    if not sae.has_features or len(x) == 0:
        return one
    encoding = sae.encode(x[None])
    acts = encoding.feature_acts.float()
    reconstruction = sae.decode(encoding, y[None]).float()
    if not torch.isfinite(acts).all() or not torch.isfinite(reconstruction).all():
        one.findings.append(Finding("finite", "gives NaN or infinite values on ordinary activations"))
        return one
    one.findings += _dependence(sae, x, acts[0])
    if len(x) < FEWEST:
        return one
    fired = (acts[0] != 0).sum(-1).float()
    one.measured["l0"] = float(fired.mean())
    one.measured["explained_variance"] = explained = explained_variance(y, reconstruction[0])
    one.findings += _sparsity(declared, fired, acts.shape[-1])
    same_site = torch.equal(x, y)  # a transcoder's inputs and outputs are not to be compared
    explanations = list(_truncation(sae, encoding, y))
    if same_site:
        explanations += _scale(sae, x, explained, one.measured)
        explanations += _hook(sae, mask, elsewhere or {}, explained, one.elsewhere)
    better = [e for e in explanations if e.explained > 0 and 1 - e.explained < 0.75 * (1 - explained)]
    if better:  # the one that explains most; the others are its shadows
        one.findings.append(max(better, key=lambda e: e.explained).finding)
    elif same_site and (foreign := _basis(sae, x, explained, one.measured)):
        one.findings.append(foreign)
    elif explained < 0:
        text = f"explained variance is {explained:.3f}, worse than predicting the mean"
        one.findings.append(Finding("explained_variance", text))
    return one


@dataclass(frozen=True)
class _Explanation:
    """Something that, if it were so, would make the SAE explain this much."""

    explained: float
    finding: Finding


def explained_variance(y: Float[Tensor, "n d"], y_hat: Float[Tensor, "n d"]) -> float:
    """1 - sum|y - ŷ|² / sum|y - mean|²; 1 is perfect, 0 the mean."""
    below = (y - y.mean(0)).double().square().sum()
    return float(1 - (y - y_hat).double().square().sum() / below.clamp_min(1e-30))


def _dependence(sae: Substitute, x: Tensor, acts: Tensor) -> Iterator[Finding]:
    """Whether a token's features depend on the tokens beside it."""
    few = slice(0, min(8, len(x)))
    alone = torch.cat([sae.encode(row[None, None]).feature_acts[0] for row in x[few]]).float()
    size = acts[few].abs().max().clamp_min(1e-6)
    if float((alone - acts[few]).abs().max()) > 1e-3 * float(size):
        text = "a token's features change with the tokens beside it: is it a BatchTopK SAE as it stood in training?"
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


def _truncation(sae: Substitute, encoding: Encoding, y: Tensor) -> Iterator[_Explanation]:
    """A TopK SAE read as ReLU improves when all but its largest features are dropped; a ReLU SAE does not."""
    acts = encoding.feature_acts
    for k in (k for k in _KEPT if k < acts.shape[-1]):
        least = acts.topk(k, dim=-1).values[..., -1:]
        only = Encoding(torch.where(acts >= least, acts, torch.zeros_like(acts)), encoding.context)
        found = explained_variance(y, sae.decode(only, y[None])[0].float())
        text = f"its {k} largest features alone explain {found:.3f} of the variance, all of them less: is it TopK?"
        yield _Explanation(found, Finding("activation", text))


def _scale(sae: Substitute, x: Tensor, explained: float, measured: dict[str, float]) -> Iterator[_Explanation]:
    """An SAE trained on inputs of norm √d (or 1) explains more when these are scaled to that."""
    norm = float(x.norm(dim=-1).mean())
    for name, factor in (("√d_in", x.shape[-1] ** 0.5 / norm), ("1", 1 / norm)):
        if 0.9 < factor < 1.1:
            continue
        scaled = (x * factor)[None]
        found = explained_variance(x, sae.decode(sae.encode(scaled), scaled)[0].float() / factor)
        measured[f"explained_variance_norm_{name}"] = found
        text = (
            f"explains {found:.3f} of the variance of inputs scaled to a mean norm of {name}, {explained:.3f} of the "
            f"model's own (mean norm {norm:.3g}): its input normalisation is not applied"
        )
        yield _Explanation(found, Finding("normalisation", text))


def _hook(
    sae: Substitute, mask: Tensor, elsewhere: Mapping[str, Tensor], explained: float, measured: dict[str, float]
) -> Iterator[_Explanation]:
    for hook_name, activations in elsewhere.items():
        x = activations[mask][:ROWS].float().to(sae.device or activations.device)
        found = explained_variance(x, sae.decode(sae.encode(x[None]), x[None])[0].float())
        measured[hook_name] = found
        text = f"explains {found:.3f} of the variance of {hook_name}, {explained:.3f} of its own hook's"
        yield _Explanation(found, Finding("hook", text))


def _basis(sae: Substitute, x: Tensor, explained: float, measured: dict[str, float]) -> Finding | None:
    """An SAE of these activations explains them better than the same cloud turned at random about its mean."""
    d = x.shape[-1]
    generator = torch.Generator().manual_seed(0)
    turn = torch.linalg.qr(torch.randn(d, d, generator=generator, dtype=torch.float64))[0].to(x)
    mean = x.mean(0)
    turned = ((x - mean) @ turn + mean)[None]
    found = explained_variance(turned[0], sae.decode(sae.encode(turned), turned)[0].float())
    measured["explained_variance_rotated"] = found
    if 1 - explained <= 0.9 * (1 - found):
        return None
    return Finding(
        "model",
        f"explains {explained:.3f} of the variance, hardly more than in a basis turned at random ({found:.3f}): "
        "it was not trained on these activations; is it of another model or hook?",
    )
