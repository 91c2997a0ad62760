"""Pruned SAEs against SAEs that were trained at the same L0."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from saeval.plugin import Estimate, SaevalError, formatting, holm
from saeval_frontier.families import Member, mean, paired
from saeval_frontier.frontier import curve_points, l0_of

SAME_L0 = 1.05
"""Trained SAEs whose L0 differ by less than this factor, such as seeds, count as one point, their mean."""


@dataclass(frozen=True)
class Gap:
    """The value of a pruned SAE minus that of SAEs trained at its L0."""

    sae: Member
    family: str
    point: str
    """ORDER_FILL@TARGET."""
    l0: Estimate
    pruned: Estimate
    trained: Estimate
    """The value on the line, in log L0, between the trained SAEs with the next lower and the next higher L0."""
    difference: Estimate
    """pruned − trained, paired by document."""
    p_holm: float | None = None

    @property
    def order(self) -> str:
        return self.point.partition("@")[0].rpartition("_")[0]

    @property
    def fill(self) -> str:
        return self.point.partition("@")[0].rpartition("_")[2]

    def row(self) -> dict[str, Any]:
        names = {"SAE": self.sae.name, "hook": self.sae.hook_name, "family": self.family}
        how = {"dropped first": self.order.replace("_", " "), "fill": self.fill, "target": self.point.partition("@")[2]}
        numbers = {"L0": self.l0, "pruned": self.pruned, "trained": self.trained, "gap": self.difference}
        return {**names, **how, **numbers, "p_holm": self.p_holm}


def trained(family: Sequence[Member], alias: str, quality: str) -> list[tuple[Estimate, Estimate]]:
    """Return L0 and value of a family's trained SAEs by ascending L0; those of nearly equal L0 as their mean."""
    values = [(sae.value(f"{alias}.l0"), sae.value(f"{alias}.{quality}")) for sae in family]
    points = sorted(((x, y) for x, y in values if x is not None and y is not None and x.value > 0), key=_l0)
    clusters: list[list[tuple[Estimate, Estimate]]] = []
    for place in points:
        if clusters and place[0].value < SAME_L0 * clusters[-1][0][0].value:
            clusters[-1].append(place)
        else:
            clusters.append([place])
    return [(mean([x for x, _ in cluster]), mean([y for _, y in cluster])) for cluster in clusters]


def _l0(place: tuple[Estimate, Estimate]) -> float:
    return place[0].value


def gaps(families: Mapping[tuple[str, str], Sequence[Member]], alias: str, quality: str) -> tuple[list[Gap], list[str]]:
    """Return the gap of each point inside its family's range of L0, and why other points have none.

    p values are corrected by Holm's method over all gaps.
    """
    measured: list[Gap] = []
    reasons: list[str] = []
    for (hook, label), family in families.items():
        ladder = trained(family, alias, quality)
        if len(ladder) < 2:
            reasons.append(
                f"family '{label}' at {hook} has {len(ladder) or 'no'} trained L0; a gap needs SAEs trained at two or "
                f"more different L0"
            )
            continue
        outside = 0
        for sae in family:
            for name in _points(sae, alias):
                x, y = sae.value(f"{alias}.{l0_of(name)}"), sae.value(f"{alias}.{quality}_{name}")
                if x is None or y is None:
                    continue
                bracket = next((ends for ends in pairwise(ladder) if _inside(x, *ends)), None)
                if bracket is None:
                    outside += 1
                    continue
                x, y, low, y_low, high, y_high = paired(x, y, *bracket[0], *bracket[1])
                line = x.apply(_on_line, low, high, y_low, y_high)
                measured.append(Gap(sae, label, name, x, y, line, y - line))
        if outside:
            ends = f"{ladder[0][0].value:.3g} to {ladder[-1][0].value:.3g}"
            reasons.append(
                f"no gap for {formatting.counted(outside, 'point')} of family '{label}' at {hook}, outside its trained "
                f"range of L0, {ends}"
            )
    corrected = holm([gap.difference.p_value for gap in measured])
    return [Gap(**{**vars(gap), "p_holm": p}) for gap, p in zip(measured, corrected, strict=True)], reasons


def _points(sae: Member, alias: str) -> list[str]:
    values = sae.results[alias].values if alias in sae.results else {}
    curves = dict.fromkeys(name.removeprefix("delta_ce_").partition("@")[0] for name in values if "@" in name)
    return [
        name
        for curve in curves
        if curve.rpartition("_")[2] in ("zero", "mean") and f"delta_ce_{curve}" in values
        for name in curve_points(values, *curve.rsplit("_", 1))
    ]


def _inside(x: Estimate, low: tuple[Estimate, Estimate], high: tuple[Estimate, Estimate]) -> bool:
    return low[0].value <= x.value <= high[0].value


def _on_line(x: Any, low: Any, high: Any, y_low: Any, y_high: Any) -> Any:
    return y_low + (np.log(x) - np.log(low)) / (np.log(high) - np.log(low)) * (y_high - y_low)


def aliases(saes: Sequence[Member]) -> list[str]:
    """Return the names of the configured `sparsity_frontier` of a run; `SaevalError` if there is none."""
    names = dict.fromkeys(
        alias
        for sae in saes
        for alias, result in sae.results.items()
        if result.cell["metric"] == "sparsity_frontier" and result.status == "ok"
    )
    if not names:
        raise SaevalError("these results have no values of the metric 'sparsity_frontier'; add it to the suite")
    return list(names)
