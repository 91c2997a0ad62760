"""Paired differences of two entries over the same documents, their t tests, and Holm's correction for several tests."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import numpy as np
from jaxtyping import Float

from saeval.results.board import Entry
from saeval.stats.estimate import LEAST, Estimate, Support, proportion_interval, reach95, t_quantile, t_test
from saeval.stats.estimate import ROUNDING as ROUNDING  # also for tests of all pairs

Number: TypeAlias = float | Float[np.ndarray, "..."]
ALPHA = 0.05
POWER = 0.8
_SAME = 1e-5
"""Tolerance, in standard errors, for two numbers that should be equal but come from different sums."""
NOT_STORED = "its values without each document are not stored"
ONE_DOCUMENT = "fewer than two documents"
NEARLY_ONE = "one document holds nearly all tokens"
OTHER_SEEDS = "their errors are over SAEs of other seeds"
NOT_WITHOUT = "the difference does not exist without one of the documents"


@dataclass(frozen=True)
class Difference:
    """One entry minus another, in the unit of the values; without an error, `reason` says why."""

    value: float
    variances: tuple[tuple[float, float], ...] = ()
    """Independent parts of its variance, each with its degrees of freedom."""
    reason: str | None = None
    paired: Estimate | None = None
    """The same difference with each document left out; None if an entry has no such values: then the values decide."""
    rounding: float = 0.0
    support: Support | None = None
    """The documents behind its error."""
    of_proportions: bool = False
    """True if both values are proportions. That all documents agree is then no certainty."""

    @cached_property
    def stderr(self) -> float | None:
        """Standard error of the paired difference."""
        return math.sqrt(sum(variance for variance, _ in self.variances)) if self.variances else None

    @cached_property
    def dof(self) -> float:
        """Effective documents - 1; if a control's draws add variance, by Welch and Satterthwaite (1946)."""
        below = sum(variance**2 / dof for variance, dof in self.variances)
        if below == 0:
            return self.variances[0][1]
        return sum(variance for variance, _ in self.variances) ** 2 / below

    @property
    def ci95(self) -> tuple[float, float] | None:
        """95% interval by the t quantile; None if all documents agree, which says nothing about its width.

        For proportions that agree in all documents, it allows for the share of documents that may differ although
        none of the sample does.
        """
        error = self.stderr
        if error == 0 and self.of_proportions:
            _, reach = proportion_interval(0.0, 0.0, self.dof + 1, 0.0)
            return max(self.value - reach, -1.0), min(self.value + reach, 1.0)
        if not error:
            return None
        reach = reach95(error, self.dof)
        return self.value - reach, self.value + reach

    @property
    def p_value(self) -> float | None:
        """Two-sided p value of the paired `t_test`; None without an error, and if no document shows a difference."""
        error = self.stderr
        if error is None:
            return None
        return t_test(self.value if abs(self.value) > self.rounding or error else 0.0, error, self.dof)

    def repeats(self, other: Difference) -> bool:
        """Return True if both are the same test: their per-document differences are equal up to a factor.

        Examples are `ce_sae` and `delta_ce`, `fvu` and `explained_variance`, and one value in two units.
        """
        mine, others = self._standardised, other._standardised
        if mine is None or others is None or mine.shape != others.shape or not math.isclose(self.dof, other.dof):
            return False
        return bool(min(np.abs(mine - others).max(), np.abs(mine + others).max()) < _SAME)

    @property
    def _standardised(self) -> np.ndarray | None:
        """The deviation that each document causes, then the difference, in standard errors; None without an error."""
        if not self.stderr or self.paired is None:
            return None
        return np.append(self.paired.deviations, self.value) / self.stderr

    @property
    def detectable(self) -> float | None:
        """Minimum detectable difference of one test at 5% with 80% power: t.975 + t.80 standard errors."""
        return self.detectable_at(ALPHA)

    def detectable_at(self, level: float) -> float | None:
        """Return the true difference that one test at this level finds with 80% power; None without an error, and if
        all documents agree."""
        if not self.stderr:
            return None
        return (t_quantile(self.dof, 1 - level / 2) + t_quantile(self.dof, POWER)) * self.stderr

    def __neg__(self) -> Difference:
        parts = self.variances, self.reason, self.paired, self.rounding, self.support, self.of_proportions
        return Difference(-self.value, *parts)


def difference(a: Entry, b: Entry) -> Difference:
    """Return `a` - `b`, paired by document; both have values over the same documents.

    If a control's draws were averaged, their spread is added to the variance (`of_draws`); more documents do not reduce
    it.
    """
    assert a.value is not None
    assert b.value is not None
    value = a.value - b.value
    rounding = ROUNDING * max(abs(a.value), abs(b.value))
    if a.seeds != b.seeds:
        return Difference(value, reason=OTHER_SEEDS)
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
    spreads = [
        (float(of_draws(one.spread, one.draws, other.draws)), one.draws - 1.0)
        for one, other in ((a, b), (b, a))
        if one.draws > 1
    ]
    error = paired.stderr if paired.stderr > rounding else 0.0
    variances = ((error**2, paired.effective - 1.0), *spreads)
    return Difference(value, variances, None, paired, rounding, paired.support, a.proportion and b.proportion)


def of_draws(spread: Number, draws: Number, others: Number) -> Float[np.ndarray, "..."]:
    """Return the variance that an average over `draws` of a control adds to its difference to another row.

    Two averages are compared as they are, each with its `spread` s²/m. A row that is no average is compared with one
    more draw, s² (1 + 1/m): it differs from the control if it differs from what draws of it are, not from their mean.
    """
    return np.asarray(spread * np.where(np.equal(others, 1), np.add(draws, 1.0), 1.0))


def distinct(differences: Sequence[Difference]) -> list[int | None]:
    """Return for each difference the index of the first that is the same test, perhaps its own; None without a test."""
    firsts: list[int] = []
    twins: list[int | None] = []
    for index, paired in enumerate(differences):
        if paired.p_value is None:
            twins.append(None)
            continue
        twin = next((first for first in firsts if paired.repeats(differences[first])), index)
        if twin == index:
            firsts.append(index)
        twins.append(twin)
    return twins


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Return p values corrected for several tests (Holm 1979), in their order. None stays None and is not counted."""
    present = [index for index, p in enumerate(p_values) if p is not None]
    raw = np.array([p_values[index] for index in present], dtype=np.float64)
    order = np.argsort(raw, kind="stable")
    steps = np.maximum.accumulate(raw[order] * np.arange(len(raw), 0, -1)).clip(max=1.0)
    adjusted: list[float | None] = [None] * len(p_values)
    for place, p in zip(order, steps, strict=True):
        adjusted[present[int(place)]] = float(p)
    return adjusted
