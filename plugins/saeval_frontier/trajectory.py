"""A value over training: curves by family, and the point from which more training makes no detectable difference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

from saeval.plugin import Estimate, SaevalError, holm
from saeval_frontier.families import Member, mean, paired

NUMBERS = ("training_tokens", "n_samples", "steps")
"""Declared numbers that measure training, the first that varies counts."""
ALPHA = 0.05


@dataclass(frozen=True)
class Stage:
    """The SAEs of a family that were trained equally long, such as seeds: their mean value."""

    number: float
    names: list[str]
    value: Estimate
    to_last: Estimate | None = None
    """This value minus that of the family's last stage, paired by document; None for the last stage."""
    p_holm: float | None = None
    """p value of that difference, corrected over the stages of the family."""


@dataclass(frozen=True)
class Trajectory:
    """A family's value over training."""

    hook_name: str
    family: str
    stages: list[Stage]
    key: str = ""
    """What identifies one of its SAEs among the subjects of results."""

    @property
    def settled(self) -> float | None:
        """The number from which no stage differs significantly from the last; None if there is no such stage."""
        settled = None
        for stage in reversed(self.stages[:-1]):
            same = stage.to_last is not None and stage.to_last.value == 0
            if not same and (stage.p_holm is None or stage.p_holm < ALPHA):
                break
            settled = stage.number
        return settled

    def rows(self, number: str, value: str) -> list[dict[str, Any]]:
        return [
            {
                "family": self.family, "hook": self.hook_name, number: stage.number, "SAE": ", ".join(stage.names),
                value: stage.value, "minus the last": stage.to_last, "p_holm": stage.p_holm,
            }
            for stage in self.stages
        ]  # fmt: skip


@dataclass(frozen=True)
class AtEqual:
    """Two families at one hook after equal training."""

    hook_name: str
    number: float
    first: str
    second: str
    difference: Estimate
    """The first family's value minus the second's, paired by document."""
    p_holm: float | None = None

    def row(self, number: str) -> dict[str, Any]:
        names = {"hook": self.hook_name, number: self.number, "family": self.first, "against": self.second}
        return {**names, "difference": self.difference, "p_holm": self.p_holm}


def trajectories(
    families: Mapping[tuple[str, str], Sequence[Member]], value: str, number: str, pattern: str | None = None
) -> list[Trajectory]:
    """Return the trajectory of each family with two or more stages; `SaevalError` if there is none."""
    curves, lone = [], []
    for (hook, label), family in families.items():
        by_number: dict[float, list[tuple[str, Estimate]]] = {}
        for sae in family:
            if (estimate := sae.value(value)) is not None:
                by_number.setdefault(sae.number(number, pattern), []).append((sae.name, estimate))
        stages = [
            Stage(trained, [name for name, _ in own], mean([estimate for _, estimate in own]))
            for trained, own in sorted(by_number.items())
        ]
        if len(stages) < 2:
            lone.append(f"'{label}' at {hook}")
            continue
        differences = [minus(stage.value, stages[-1].value) for stage in stages[:-1]]
        corrected = holm([difference.p_value for difference in differences])
        tested = [
            replace(stage, to_last=difference, p_holm=p)
            for stage, difference, p in zip(stages, differences, corrected, strict=False)
        ]
        curves.append(Trajectory(hook, label, [*tested, stages[-1]], family[0].key))
    if not curves:
        few = ", ".join(lone[:3]) or "no family"
        raise SaevalError(
            f"no family has values of '{value}' at two different '{number}': {few}; see --family and --by"
        )
    return curves


def minus(a: Estimate, b: Estimate) -> Estimate:
    """Return the difference, paired by document."""
    a, b = paired(a, b)
    return a - b


def at_equal(curves: Sequence[Trajectory]) -> list[AtEqual]:
    """Return the difference of each two families of one hook at each number that both have; Holm over all."""
    differences = [
        AtEqual(a.hook_name, stage.number, a.family, b.family, minus(stage.value, other.value))
        for a, b in combinations(curves, 2)
        if a.hook_name == b.hook_name
        for stage in a.stages
        for other in b.stages
        if stage.number == other.number
    ]
    corrected = holm([d.difference.p_value for d in differences])
    return [replace(d, p_holm=p) for d, p in zip(differences, corrected, strict=True)]
