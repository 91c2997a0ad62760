"""The proofs that a model is causal and resumes correctly at a hook, made on the first batch of a run."""

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
"""Share of tokens that must be reproduced in half precision, where a rounding may send a token to another expert."""
_HEAD_TOKENS = 16


@dataclass(frozen=True)
class Proof:
    """What one resume showed, half of its rows with the captured activations and half with noise in their place."""

    error: float
    """Largest distance of a final state from the clean one, by the states' own size; infinite where not finite."""
    change: float
    """Largest change of a final state by noise, by the states' own size; NaN where no row could take noise."""
    typical: float
    """The error that decides: the largest, in half precision that of the most faithful 90% of tokens."""
    tolerance: float
    dtype: str

    @property
    def fault(self) -> str | None:
        """What is wrong; None where the resume is proved."""
        if not self.typical <= self.tolerance:
            size = f"by {self.typical:.2g} of its size" if math.isfinite(self.typical) else "to NaN or infinity"
            return (
                f"resuming with the model's own activations changes its final state {size} "
                f"({self.dtype} may round by {self.tolerance:g})"
            )
        if self.change <= 10 * self.typical:
            return "noise in place of the activations does not change the model's final state"
        return None

    def record(self) -> dict[str, Any]:
        """For the provenance; None for what is not finite."""
        values = {"max_relative_error": self.error, "change_by_noise": self.change}
        return {n: v if math.isfinite(v) else None for n, v in values.items()} | {"dtype": self.dtype}


def prove(activations: Float[Tensor, "batch seq d"], resume: Resume, clean_final: Tensor, batch: Batch) -> Proof:
    """Resume once: every other row as it was captured, the rows between with Gaussian noise on their real tokens.

    A batch of one row is resumed twice over. `clean_final` is `[batch, seq, d_model]`, or for a reward model `[batch]`.
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
    nought = torch.zeros_like(clean_final)
    norms = _distances(clean_final, nought, real, torch.ones_like(noisy))
    # A reward may be near 0, so it is measured by how far noise moves it where that is more.
    scale = max(_root_mean_square(norms), _root_mean_square(changes[changes.isfinite()]), 1e-30)
    error = _largest(errors) / scale
    change = _largest(changes) / scale if len(changes) else math.nan
    return Proof(error, change, _typical(errors, scale, clean_final.dtype), *_tolerance(clean_final.dtype))


@dataclass(frozen=True)
class Causality:
    """What a pass with other later tokens showed: a causal model's earlier states stay as they are."""

    kind: str
    """`causal` or `reward`, as of the model."""
    change: float
    """Largest change of a state before the first changed token, by the states' own size; of a reward, by padding."""
    typical: float
    """The change that decides: the largest, in half precision that of the most faithful 90% of all states, or of the
    two before each place if that is larger."""
    compared: int
    """How many states or rewards were compared."""
    tolerance: float
    dtype: str

    @property
    def fault(self) -> str | None:
        """What is wrong; None where nothing is."""
        if self.typical <= self.tolerance:
            return None
        size = f"by {self.typical:.2g} of its size"
        if self.kind == "reward":
            return f"is not causal: other padding after a text changes its reward {size}"
        return f"is not causal: other later tokens change a token's final state {size}, so its scores see their targets"

    def record(self) -> dict[str, Any]:
        """For the provenance."""
        return {"max_relative_change": self.change, "compared": self.compared, "dtype": self.dtype}


def prove_causal(model: Model, batch: Batch, clean_final: Tensor) -> Causality:
    """Run half of the rows, and two at least, once more, each beside itself with other tokens from some position on.

    The first pair of rows differs from its second token on, the last in its last token alone: a prefix that is read
    both ways shows itself where the rows differ inside it. Of a language model the final states before that place are
    compared. The rows of a reward model end there, so that the rewards differ by padding alone. `clean_final` is
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
    known, place = batch.tokens.unique(return_inverse=True)
    successor = known.roll(-1) if len(known) > 1 else (known == 0).long()
    later[::2] = False
    tokens = torch.where(later, successor[place][rows], shown.tokens)
    final = model.capture(replace(shown, tokens=tokens), [], True).final
    assert final is not None
    first, second = final[::2], final[1::2]
    sound = first.isfinite()  # where a model gives no number without any change, that is reported separately
    every = sound if rewards else torch.ones_like(rows[::2], dtype=torch.bool)
    places = earlier if rewards else earlier & sound.all(-1)
    changes = _distances(second, first, places, every)
    sizes = _distances(first, torch.zeros_like(first), places, every)
    scale = max(_root_mean_square(sizes), 1e-30)
    typical = _typical(changes, scale, clean_final.dtype)
    if not rewards:  # a look at the next token or two moves few of all states, and most of those just before
        near = _distances(second, first, places & (counted > kept - 2)[::2], every)
        typical = max(typical, _typical(near, scale, clean_final.dtype))
    return Causality(model.kind, _largest(changes) / scale, typical, len(changes), *_tolerance(clean_final.dtype))


def _typical(distances: Tensor, scale: float, dtype: torch.dtype) -> float:
    """The largest distance, in half precision that of the most faithful tokens, by the states' own size."""
    few = torch.finfo(dtype).bits >= 32 or len(distances) <= 1 / (1 - _MOST)
    return (_largest(distances) if few else float(distances.quantile(_MOST))) / scale


def _tolerance(dtype: torch.dtype) -> tuple[float, str]:
    """The largest distance that rounding explains, by the states' own size, and the dtype's name."""
    tolerance = {16: 5e-2, 32: 1e-3}.get(torch.finfo(dtype).bits, 1e-6)
    return tolerance, str(dtype).removeprefix("torch.")


def _distances(a: Tensor, b: Tensor, places: Bool[Tensor, "batch seq"], rows: Bool[Tensor, "batch"]) -> Tensor:
    """|a - b| of each real token's state, or of each row's reward; infinite where it is not a number."""
    if a.ndim == 1:
        found = (a[rows & places.any(1)].double() - b[rows & places.any(1)].double()).abs()
    else:
        found = (a[places].double() - b[places].double()).norm(dim=-1)
    return found.nan_to_num(nan=math.inf, posinf=math.inf)


def _largest(distances: Tensor) -> float:
    return float(distances.max()) if len(distances) else 0.0


def _root_mean_square(distances: Tensor) -> float:
    return float(distances.square().mean().sqrt()) if len(distances) else 0.0


def unwell(model: Model, batch: Batch, clean_final: Tensor) -> str | None:
    """What is not finite in a clean pass: final states of real tokens, rewards, or logits; None where all is well."""
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
    except Exception as error:  # a model that cannot say so here says so in the cells that need it
        refuse_too_large(error)
        return None
    nan = logits.isnan().any(-1)
    return _share(nan, "logits", "tokens looked at") if bool(nan.any()) else None


def _share(bad: Tensor, what: str, of: str) -> str:
    return f"gives NaN or infinite {what} for {int(bad.sum())} of {len(bad)} {of} of the first batch"
