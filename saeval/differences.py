"""Paired differences: two entries over the same documents, their t test, and Holm's correction for several tests."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from saeval.board import Entry
from saeval.estimate import Support

ALPHA = 0.05
POWER = 0.8
_SAME = 1e-9
"""Relative distance below which two numbers that went through different sums are one."""
ROUNDING = 1e-12
"""Differences this small, relative to the two values, are float64's and no finding."""


@dataclass(frozen=True)
class Difference:
    """One entry minus another, in the unit of the values; without an error, `reason` says why."""

    value: float
    variances: tuple[tuple[float, float], ...] = ()
    """Independent parts of its variance, each with its degrees of freedom."""
    reason: str | None = None
    paired: bool = True
    """Whether both entries are known without each document; where one is not, only the values can be compared."""
    rounding: float = 0.0
    support: Support | None = None
    """What its error rests on."""

    @property
    def stderr(self) -> float | None:
        """Standard error of the paired difference."""
        return math.sqrt(sum(variance for variance, _ in self.variances)) if self.variances else None

    @property
    def dof(self) -> float:
        """Effective documents - 1; with the spread of a control's draws in it, Welch and Satterthwaite's (1946)."""
        below = sum(variance**2 / dof for variance, dof in self.variances)
        if below == 0:
            return self.variances[0][1]
        return sum(variance for variance, _ in self.variances) ** 2 / below

    @property
    def ci95(self) -> tuple[float, float] | None:
        """95% interval by the t quantile."""
        from scipy.special import stdtrit  # late: `saeval ls` compares nothing

        error = self.stderr
        if error is None:
            return None
        reach = float(stdtrit(self.dof, 1 - ALPHA / 2)) * error
        return self.value - reach, self.value + reach

    @property
    def p_value(self) -> float | None:
        """Two-sided p value of the paired t test that the true difference is 0.

        None without an error, and where the difference is the same whichever document is left out: nothing is left
        to chance, so there is nothing to test.
        """
        from scipy.special import stdtr  # late: as above

        error = self.stderr
        return float(2 * stdtr(self.dof, -abs(self.value) / error)) if error else None

    @property
    def certain(self) -> bool:
        """Whether they differ by construction: by the same amount whichever document is left out."""
        return self.stderr == 0 and abs(self.value) > self.rounding

    def repeats(self, other: Difference) -> bool:
        """Whether this is the test that the other is: of a value that is the other's up to a constant, or its negative.

        Such are `ce_sae` and `delta_ce`, whose paired differences are one number.
        """
        pairs = [(abs(self.value), abs(other.value)), (self.stderr, other.stderr)]
        return all(a is not None and b is not None and math.isclose(a, b, rel_tol=_SAME) for a, b in pairs)

    @property
    def detectable(self) -> float | None:
        """Minimum detectable difference, found with 80% power at the 5% level: t.975 + t.80 standard errors."""
        from scipy.special import stdtrit  # late: as above

        if self.stderr is None:
            return None
        return float(stdtrit(self.dof, 1 - ALPHA / 2) + stdtrit(self.dof, POWER)) * self.stderr

    def __neg__(self) -> Difference:
        return replace(self, value=-self.value)


def difference(a: Entry, b: Entry) -> Difference:
    """`a` - `b`, both with values, over the same documents.

    Draws of a control that were averaged add their spread, which more documents do not reduce.
    """
    assert a.value is not None
    assert b.value is not None
    value = a.value - b.value
    rounding = ROUNDING * max(abs(a.value), abs(b.value))
    if a.estimate is None or b.estimate is None:
        reason = (a if a.estimate is None else b).reason or "what it is without each document is not stored"
        return Difference(value, reason=reason, paired=False)
    paired = a.estimate - b.estimate
    if paired.stderr is None:
        return Difference(value, reason="fewer than two documents")
    if not math.isfinite(paired.stderr):
        return Difference(value, reason="the difference does not exist without one of the documents")
    spreads = [(entry.spread, entry.draws - 1.0) for entry in (a, b) if entry.draws > 1]
    error = paired.stderr if paired.stderr > rounding else 0.0
    return Difference(value, ((error**2, paired.effective - 1.0), *spreads), None, True, rounding, paired.support)


def holm_distinct(differences: Sequence[Difference]) -> list[float | None]:
    """Holm's correction over distinct tests; those that repeat one have its p value. None where nothing is tested."""
    first: list[int] = []
    same: dict[int, int] = {}
    for index, one in enumerate(differences):
        if one.p_value is None:
            continue
        twin = next((other for other in first if one.repeats(differences[other])), None)
        if twin is None:
            first.append(index)
        same[index] = index if twin is None else twin
    corrected = dict(zip(first, holm([differences[index].p_value for index in first]), strict=True))
    return [corrected[same[index]] if index in same else None for index in range(len(differences))]


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """P values that keep the chance of any false finding at the level (Holm 1979); None stays None, uncounted."""
    present = [index for index, p in enumerate(p_values) if p is not None]
    raw = np.array([p_values[index] for index in present], dtype=np.float64)
    order = np.argsort(raw, kind="stable")
    steps = np.maximum.accumulate(raw[order] * np.arange(len(raw), 0, -1)).clip(max=1.0)
    adjusted: list[float | None] = [None] * len(p_values)
    for place, p in zip(order, steps, strict=True):
        adjusted[present[int(place)]] = float(p)
    return adjusted
