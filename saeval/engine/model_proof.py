"""Proofs on the first batch of a run that the model is causal and resumes correctly at a hook."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from jaxtyping import Bool, Float

from saeval.base.lazy_torch import torch
from saeval.base.memory import refuse_too_large
from saeval.interfaces.data import Batch
from saeval.interfaces.model import Model, Resume

if TYPE_CHECKING:
    from torch import Tensor

_MOST = 0.9
"""Share of tokens that must be reproduced in half precision, in which rounding may send a token to another expert."""
_HEAD_TOKENS = 16


@dataclass(frozen=True)
class Proof:
    """Result of one resume: half of its rows have the captured activations, half have noise added.

    Distances are relative to the root mean square norm of the final states.
    """

    error: float
    """Largest distance of a final state from the clean one; infinite if it is not finite."""
    change: float
    """Largest change of a final state by noise; NaN if no row could take noise."""
    typical: float
    """The error that decides: the largest, or in half precision the largest of the most faithful 90% of tokens."""
    tolerance: float
    dtype: str

    @property
    def fault(self) -> str | None:
        """The fault, as a phrase for a message; None if the resume is proved."""
        if not self.typical <= self.tolerance:
            size = f"by {self.typical:.2g} of its size" if math.isfinite(self.typical) else "to NaN or infinity"
            rounding = f"({self.dtype} may round by {self.tolerance:g})"
            return f"resuming with the model's own activations changes its final state {size} {rounding}"
        if self.change <= 10 * self.typical:
            return "noise added to the activations does not change the model's final state"
        return None

    def record(self) -> dict[str, Any]:
        """Return the numbers for the provenance; None for one that is not finite."""
        values = {"max_relative_error": self.error, "change_by_noise": self.change}
        return {n: v if math.isfinite(v) else None for n, v in values.items()} | {"dtype": self.dtype}


def prove(activations: Float[Tensor, "batch seq d"], resume: Resume, clean_final: Tensor, batch: Batch) -> Proof:
    """Resume once: even rows as captured, odd rows with Gaussian noise added to their real tokens.

    A batch of one row is doubled. `clean_final` is `[batch, seq, d_model]`, or `[batch]` for a reward model.
    """
    real = batch.real
    if len(real) == 1:
        twice = [0, 0]
        resume, activations = resume.part(twice), activations[twice]
        real, clean_final = real[twice], clean_final[twice]
    noisy = torch.arange(len(real), device=real.device) % 2 == 1
    places = real & noisy[:, None]
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(activations.shape, generator=generator).to(activations.device)
    size = float(activations[places].double().square().mean().sqrt()) if bool(places.any()) else 1.0
    noise *= size if size > 0 else 1.0
    final = resume(torch.where(places[..., None], activations + noise.to(activations.dtype), activations))
    errors = _distances(final, clean_final, real & ~noisy[:, None], ~noisy)
    changes = _distances(final, clean_final, places, noisy)
    norms = _distances(clean_final, torch.zeros_like(clean_final), real, torch.ones_like(noisy))
    # A reward may be near 0, so the scale is at least its change by noise.
    scale = max(_root_mean_square(norms), _root_mean_square(changes[changes.isfinite()]), 1e-30)
    error = _largest(errors) / scale
    change = _largest(changes) / scale if len(changes) else math.nan
    return Proof(error, change, _typical(errors, scale, clean_final.dtype), *_tolerance(clean_final.dtype))


@dataclass(frozen=True)
class Causality:
    """Result of a pass with other later tokens, which must not change the earlier states of a causal model.

    Changes are relative to the root mean square norm of the states.
    """

    kind: str
    """Kind of the model: `causal` or `reward`."""
    change: float
    """Largest change of a state before the first changed token; for a reward model, of a reward by padding."""
    typical: float
    """The change that decides: the largest, or in half precision the largest of the most faithful 90% of all states,
    or of the two states before each change of tokens if that is larger."""
    compared: int
    """Number of states or rewards compared."""
    tolerance: float
    dtype: str

    @property
    def fault(self) -> str | None:
        """The fault, as a phrase for a message; None if there is none."""
        if self.typical <= self.tolerance:
            return None
        size = f"by {self.typical:.2g} of its size"
        if self.kind == "reward":
            return f"is not causal: other padding after a text changes its reward {size}"
        return f"is not causal: other later tokens change a token's final state {size}, so its scores see their targets"

    def record(self) -> dict[str, Any]:
        """Return the numbers for the provenance."""
        return {"max_relative_change": self.change, "compared": self.compared, "dtype": self.dtype}


def prove_causal(model: Model, batch: Batch, clean_final: Tensor) -> Causality:
    """Run half of the rows (at least two) again in pairs: as they are, and with other tokens from a place on.

    The first pair differs from its second token on, the last pair in its last token alone, so that a prefix with
    bidirectional attention shows if a place is inside it. For a language model the final states before the place are
    compared. The rows of a reward model end there, so that their rewards differ by padding alone. `clean_final` is
    `[batch, seq, d_model]` or `[batch]`. Both rows of a pair are in one pass: quantised activations share a scale.
    """
    rewards, pairs = clean_final.ndim == 1, max(2, len(batch.real) // 2)
    pair = torch.arange(2 * pairs, device=batch.real.device) // 2
    rows = pair % len(batch.real)
    shown = batch.part(rows.tolist())
    counted = shown.real.cumsum(1)
    share = pair[:, None] / (pairs - 1)
    kept = 1 + ((counted[:, -1:] - 2).clamp_min(0) * share).round().long()
    later = counted > kept
    earlier = (shown.real & ~later)[::2]
    if rewards:
        shown = replace(shown, real=shown.real & ~later)
    ids, indices = batch.tokens.unique(return_inverse=True)
    successor = ids.roll(-1) if len(ids) > 1 else (ids == 0).long()
    later[::2] = False
    tokens = torch.where(later, successor[indices][rows], shown.tokens)
    final = model.capture(replace(shown, tokens=tokens), [], True).final
    assert final is not None
    first, second = final[::2], final[1::2]
    finite = first.isfinite()  # states that are not finite without any change are reported separately
    compared = finite if rewards else torch.ones_like(rows[::2], dtype=torch.bool)
    places = earlier if rewards else earlier & finite.all(-1)
    changes = _distances(second, first, places, compared)
    sizes = _distances(first, torch.zeros_like(first), places, compared)
    scale = max(_root_mean_square(sizes), 1e-30)
    typical = _typical(changes, scale, clean_final.dtype)
    if not rewards:  # attention to the next token or two changes few states overall, but most of those just before
        near = _distances(second, first, places & (counted > kept - 2)[::2], compared)
        typical = max(typical, _typical(near, scale, clean_final.dtype))
    return Causality(model.kind, _largest(changes) / scale, typical, len(changes), *_tolerance(clean_final.dtype))


def _typical(distances: Tensor, scale: float, dtype: torch.dtype) -> float:
    """Return the largest distance relative to `scale`; in half precision, the largest of the most faithful tokens."""
    few = torch.finfo(dtype).bits >= 32 or len(distances) <= 1 / (1 - _MOST)
    return (_largest(distances) if few else float(distances.quantile(_MOST))) / scale


def _tolerance(dtype: torch.dtype) -> tuple[float, str]:
    """Return the largest relative distance that rounding explains, and the name of the dtype."""
    tolerance = {16: 5e-2, 32: 1e-3}.get(torch.finfo(dtype).bits, 1e-6)
    return tolerance, str(dtype).removeprefix("torch.")


def _distances(a: Tensor, b: Tensor, places: Bool[Tensor, "batch seq"], rows: Bool[Tensor, "batch"]) -> Tensor:
    """Return |a - b| of the state at each place, or of the reward of each row; infinite if it is not a number."""
    if a.ndim == 1:
        distances = (a[rows & places.any(1)].double() - b[rows & places.any(1)].double()).abs()
    else:
        distances = (a[places].double() - b[places].double()).norm(dim=-1)
    return distances.nan_to_num(nan=math.inf, posinf=math.inf)


def _largest(distances: Tensor) -> float:
    return float(distances.max()) if len(distances) else 0.0


def _root_mean_square(distances: Tensor) -> float:
    return float(distances.square().mean().sqrt()) if len(distances) else 0.0


def not_finite(model: Model, batch: Batch, clean_final: Tensor) -> str | None:
    """Return which part of a clean pass is not finite (final states of real tokens, rewards, logits), or None."""
    bad = ~clean_final.isfinite()
    if clean_final.ndim == 1:
        return _share(bad, "rewards", "rows") if bool(bad.any()) else None
    states = bad.any(-1)[batch.real]
    if bool(states.any()):
        return _share(states, "final states", "tokens")
    row = int(batch.real.sum(1).argmax())
    few = clean_final[row][batch.real[row]][:_HEAD_TOKENS]
    try:
        logits = model.unembed(few)
    except Exception as error:  # the cells that need logits will report it
        refuse_too_large(error)
        return None
    nan = logits.isnan().any(-1)
    return _share(nan, "logits", "examined tokens") if bool(nan.any()) else None


def _share(bad: Tensor, what: str, of: str) -> str:
    return f"gives NaN or infinite {what} for {int(bad.sum())} of {len(bad)} {of} of the first batch"
