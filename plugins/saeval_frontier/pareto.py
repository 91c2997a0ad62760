"""Pareto fronts of two values: who is on it, how surely, and how much it dominates."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from saeval.plugin import Estimate, SaevalError
from saeval_frontier.families import Member

DRAWS = 2000


@dataclass(frozen=True)
class Point:
    """An SAE's two values."""

    sae: Member
    family: str
    x: Estimate
    y: Estimate


@dataclass(frozen=True)
class Front:
    """The Pareto front of the SAEs at one hook."""

    hook_name: str
    points: list[Point]
    on: Bool[np.ndarray, "n"]
    """True for each SAE unless another is as good in both values and better in one."""
    share: Float[np.ndarray, "n"]
    """Share of draws in which each SAE is on the front; NaN if no value has an error over documents."""
    hypervolume: dict[str, Estimate]
    """Share of the box from the best to the worst values of all SAEs here that each family dominates.

    The first axis is logarithmic if all its values are above 0. Empty if the box has no area.
    """

    @property
    def families(self) -> list[str]:
        return list(dict.fromkeys(p.family for p in self.points))

    @property
    def sizes(self) -> dict[str, int]:
        """The number of SAEs of each family."""
        return {family: sum(p.family == family for p in self.points) for family in self.families}

    def rows(self, x: str, y: str) -> list[dict[str, Any]]:
        return [
            {
                "SAE": p.sae.name, "hook": self.hook_name, "family": p.family, x: p.x, y: p.y,
                "front": "yes" if on else "no", "share of draws": None if np.isnan(share) else float(share),
            }
            for p, on, share in zip(self.points, self.on, self.share, strict=True)
        ]  # fmt: skip


def undominated(x: Float[np.ndarray, "n"], y: Float[np.ndarray, "n"]) -> Bool[np.ndarray, "n"]:
    """Return True for each point with no other point that is as low in both values and lower in one."""
    places, back = np.unique(np.column_stack([x, y]), axis=0, return_inverse=True)
    lowest = np.minimum.accumulate(np.append(np.inf, places[:-1, 1]))
    return np.asarray((places[:, 1] < lowest)[back.ravel()])


def dominated_area(x: Float[np.ndarray, "n"], y: Float[np.ndarray, "n"]) -> float:
    """Return the area between the points and (1, 1) that they dominate; lower is better in both values."""
    x, y = np.minimum(x, 1), np.minimum(y, 1)
    order = np.lexsort((y, x))
    lowest = np.minimum.accumulate(y[order])
    widths = np.diff(np.append(x[order], 1.0))
    return float(((1 - lowest) * widths).sum())


def jackknife_draws(estimates: Sequence[Estimate], draws: int, seed: int) -> Iterator[Float[np.ndarray, "n"]]:
    """Yield θ + z·deviations for standard normal z by document: normal draws with the joint jackknife covariance.

    A value without an error over documents stays fixed. Leaving out one document at a time would move the values
    by a fraction of their errors only, so those replicates would make every front look certain.
    """
    values = np.array([estimate.value for estimate in estimates])
    documents = max(len(estimate.without) for estimate in estimates)
    deviations = np.zeros((documents, len(estimates)))
    for index, estimate in enumerate(estimates):
        if len(estimate.without):
            count = max(estimate.clusters, 1)
            deviations[:, index] = estimate.deviations * np.sqrt((count - 1) / count)
    deviations, random = np.nan_to_num(deviations), np.random.default_rng(seed)
    for _ in range(draws):
        yield values + random.standard_normal(documents) @ deviations


def front(
    hook_name: str, points: Sequence[Point], lower: tuple[bool, bool], draws: int = DRAWS, seed: int = 0
) -> Front:
    """Return the front of SAEs at one hook; `lower` says for each value if less is better."""
    signs = [1.0 if low else -1.0 for low in lower]
    pairs = [(signs[0] * p.x, signs[1] * p.y) for p in points]
    on = undominated(*(np.array([pair[axis].value for pair in pairs]) for axis in (0, 1)))
    drawn = jackknife_draws([value for pair in pairs for value in pair], draws, seed)
    share = np.mean([undominated(draw[0::2], draw[1::2]) for draw in drawn], axis=0)
    if all(value.stderr is None for p in points for value in (p.x, p.y)):
        share = np.full(len(points), np.nan)
    found = Front(hook_name, list(points), on, share, {})
    if min(np.ptp([p.x.value for p in points]), np.ptp([p.y.value for p in points])) > 0:
        for family in found.families:
            found.hypervolume[family] = _hypervolume(points, [p.family == family for p in points], signs)
    return found


def _hypervolume(points: Sequence[Point], own: Sequence[bool], signs: Sequence[float]) -> Estimate:
    """The dominated share of the box of all points; without each document, the box stays the same."""
    log = all(p.x.value > 0 for p in points)
    full = np.array([[p.x.value, p.y.value] for p in points])
    documents = max((len(value.without) for p in points for value in (p.x, p.y)), default=0)
    without = np.array([[_without(value, documents) for value in (p.x, p.y)] for p in points])  # [n, 2, documents]

    def scaled(values: np.ndarray) -> np.ndarray:
        x = np.log(np.maximum(values[:, 0], 1e-12)) if log else values[:, 0]
        return np.stack([signs[0] * x, signs[1] * values[:, 1]], axis=1)

    box = scaled(full)
    low, width = box.min(0), np.ptp(box, axis=0)
    chosen = np.asarray(own)

    def area(values: np.ndarray) -> float:
        unit = (scaled(values) - low) / width
        return dominated_area(*unit[chosen].T)

    sizes = next((value.sizes for p in points for value in (p.y, p.x) if len(value.without)), np.zeros(0))
    n = min(value.n for p in points for value in (p.x, p.y))
    return Estimate(area(full), np.array([area(without[:, :, d]) for d in range(documents)]), sizes, n)


def _without(value: Estimate, documents: int) -> np.ndarray:
    return value.without if len(value.without) else np.full(documents, value.value)


def fronts(
    families: dict[tuple[str, str], list[Member]], x: str, y: str, draws: int = DRAWS, seed: int = 0
) -> list[Front]:
    """Return the front of each hook. `SaevalError` if a value exists for no SAE.

    A value without a better direction, such as L0, counts as better if it is lower.
    """
    by_hook: dict[str, list[Point]] = {}
    lower: dict[str, bool] = {}
    for (hook, label), family in families.items():
        for sae in family:
            for column in (x, y):
                if (record := sae.record(column)) is not None:
                    lower.setdefault(column, record["better"] != "higher")
            first, second = sae.value(x), sae.value(y)
            if first is not None and second is not None:
                by_hook.setdefault(hook, []).append(Point(sae, label, first, second))
    for column in (x, y):
        if column not in lower:
            raise SaevalError(f"no SAE of these results has a value '{column}'; values are named METRIC.VALUE")
    if not by_hook:
        raise SaevalError(f"no SAE of these results has both '{x}' and '{y}'")
    return [front(hook, points, (lower[x], lower[y]), draws, seed) for hook, points in by_hook.items()]
