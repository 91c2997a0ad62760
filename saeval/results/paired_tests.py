"""Paired differences: two entries over the same documents, their t test, and Holm's correction for several tests."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from saeval.results.board import Entry
from saeval.stats.estimate import LEAST, Estimate, Support, reach95, t_quantile, t_test
from saeval.stats.estimate import ROUNDING as ROUNDING  # also for tests of all pairs

ALPHA = 0.05
POWER = 0.8
_SAME = 1e-5
"""Standard errors below which two numbers that went through different sums are one."""
NOT_STORED = "what it is without each document is not stored"
ONE_DOCUMENT = "fewer than two documents"
NEARLY_ONE = "one document holds nearly all tokens"
NOT_WITHOUT = "the difference does not exist without one of the documents"


@dataclass(frozen=True)
class Difference:
    """One entry minus another, in the unit of the values; without an error, `reason` says why."""

    value: float
    variances: tuple[tuple[float, float], ...] = ()
    """Independent parts of its variance, each with its degrees of freedom."""
    reason: str | None = None
    paired: Estimate | None = None
    """The same without each document; None where an entry is not known without each: then the values decide."""
    rounding: float = 0.0
    support: Support | None = None
    """What its error rests on."""

    @cached_property
    def stderr(self) -> float | None:
        """Standard error of the paired difference."""
        return math.sqrt(sum(variance for variance, _ in self.variances)) if self.variances else None

    @cached_property
    def dof(self) -> float:
        """Effective documents - 1; with the spread of a control's draws in it, Welch and Satterthwaite's (1946)."""
        below = sum(variance**2 / dof for variance, dof in self.variances)
        if below == 0:
            return self.variances[0][1]
        return sum(variance for variance, _ in self.variances) ** 2 / below

    @property
    def ci95(self) -> tuple[float, float] | None:
        """95% interval by the t quantile; None where all documents agree, which tells nothing of its width."""
        error = self.stderr
        if not error:
            return None
        reach = reach95(error, self.dof)
        return self.value - reach, self.value + reach

    @property
    def p_value(self) -> float | None:
        """Two-sided p value of the paired `t_test`; None without an error, and where both are equal."""
        error = self.stderr
        if error is None:
            return None
        return t_test(self.value if abs(self.value) > self.rounding or error else 0.0, error, self.dof)

    def repeats(self, other: Difference) -> bool:
        """Whether this is the test that the other is: every document moves both alike, up to a factor.

        Such are `ce_sae` and `delta_ce`, `fvu` and `explained_variance`, and one value in two units.
        """
        mine, others = self._standardised, other._standardised
        if mine is None or others is None or mine.shape != others.shape or not math.isclose(self.dof, other.dof):
            return False
        return bool(min(np.abs(mine - others).max(), np.abs(mine + others).max()) < _SAME)

    @property
    def _standardised(self) -> np.ndarray | None:
        """The difference, and how far each document moves it, in standard errors; None where there are none."""
        if not self.stderr or self.paired is None:
            return None
        return np.append(self.paired.deviations, self.value) / self.stderr

    @property
    def detectable(self) -> float | None:
        """Minimum detectable difference, found by one test at 5% with a power of 80%: t.975 + t.80 standard errors."""
        if not self.stderr:
            return None
        return (t_quantile(self.dof, 1 - ALPHA / 2) + t_quantile(self.dof, POWER)) * self.stderr

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
        reason = (a if a.estimate is None else b).reason or NOT_STORED
        return Difference(value, reason=reason)
    paired = a.estimate - b.estimate
    if paired.stderr is None:
        return Difference(value, reason=ONE_DOCUMENT, paired=paired)
    if paired.effective < LEAST:
        return Difference(value, reason=NEARLY_ONE, paired=paired)
    if not math.isfinite(paired.stderr):
        return Difference(value, reason=NOT_WITHOUT, paired=paired)
    spreads = [(entry.spread, entry.draws - 1.0) for entry in (a, b) if entry.draws > 1]
    error = paired.stderr if paired.stderr > rounding else 0.0
    return Difference(value, ((error**2, paired.effective - 1.0), *spreads), None, paired, rounding, paired.support)


def distinct(differences: Sequence[Difference]) -> list[int | None]:
    """For each difference the first that makes the same test, itself where it is the first; None without a test."""
    firsts: list[int] = []
    found: list[int | None] = []
    for index, one in enumerate(differences):
        if one.p_value is None:
            found.append(None)
            continue
        twin = next((other for other in firsts if one.repeats(differences[other])), index)
        if twin == index:
            firsts.append(index)
        found.append(twin)
    return found


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
