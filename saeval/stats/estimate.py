"""`Estimate`: a value with its leave-one-out values, from which the jackknife computes its standard error."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Bool, Float

from saeval.base.formatting import counted

Number: TypeAlias = "float | int | Estimate"


FEW = 20
"""Number of effective documents below which standard errors are themselves unreliable."""
LARGE_SHARE = 0.2
"""Share of the squared deviations above which one document decides the error, if it also exceeds chance."""
NEARLY_ALL = 0.99
"""Share of the largest possible share above which one document alone makes the error."""
CHANCE = 0.01
"""Significance level of the test for a large share: its false positive rate for equal, normal documents."""
LEAST = 1.1
"""Number of effective documents below which there is neither an interval nor a test."""

ROUNDING = 1e-12
"""Errors and differences below this share of the values are float64 rounding."""


def reach95(error: float, dof: float) -> float:
    """Return the half-width of the 95% interval, by the t quantile."""
    return t_quantile(dof, 0.975) * error


@lru_cache(1024)
def t_quantile(dof: float, level: float) -> float:
    """Return the quantile of Student's t distribution; values over the same documents share it."""
    from scipy.special import stdtrit  # late: it takes a tenth of a second, and `saeval ls` shows no interval

    return float(stdtrit(dof, level))


def t_test(value: float, error: float, dof: float) -> float | None:
    """Return the two-sided p value of the t test that the true value is 0.

    An error of 0 means that leaving out any document gives the same value. There is no t then, and p is that of the
    sign test, 2^-dof, since all documents agree. None if the value is 0 too.
    """
    from scipy.special import stdtr  # late: as above

    if error == 0:
        return 2.0**-dof if value else None
    return float(2 * stdtr(dof, -abs(value) / error))


def proportion_interval(value: float, error: float, effective: float, n: float) -> tuple[float, float]:
    """Return a 95% interval for a proportion, inside [0, 1]; it does not vanish if the error is 0, as for 4 of 4.

    It is Wilson's (1927) for an effective number of observations, whose variance is that of `n` observations in
    `effective` documents. Between those two numbers, the standard error determines it, reduced for the t quantile
    (Korn and Graubard 1998). An error from few observations of the rarer outcome is too small by chance. So with the
    Poisson probability that this outcome is not seen, the variance is that of documents that each agree entirely. The
    mean of the Poisson law is for the geometric mean of documents and observations: documents alone give intervals
    that are several times too wide, observations alone too narrow ones (benchmarks/proportions.py).
    """
    binomial = value * (1 - value)
    observations = effective
    if error > 0:
        shrunk = (reach95(error, effective - 1) / t_quantile(math.inf, 0.975)) ** 2
        observations = min(max(binomial / shrunk, effective), max(n, effective))
    none_seen = math.exp(-math.sqrt(effective * observations) * min(value, 1 - value))
    square = t_quantile(math.inf, 0.975) ** 2 * ((1 - none_seen) / observations + none_seen / effective)
    middle, reach = value + square / 2, math.sqrt(square * (binomial + square / 4))
    return max((middle - reach) / (1 + square), 0.0), min((middle + reach) / (1 + square), 1.0)


class Support(NamedTuple):
    """The documents behind a standard error: their number, and the share of the most influential one."""

    documents: int
    """Number of documents that contributed."""
    effective: float
    """Effective number of documents, (Σn)² / Σn² of their sizes n (Kish 1965); their number if all sizes are equal."""
    largest_share: float | None
    """Share of the most influential document in the squared deviations, 0 to 1; None if there are no deviations."""

    @property
    def few(self) -> bool:
        """True if there are too few effective documents for a reliable error; False if the error is 0 or missing."""
        return self.largest_share is not None and self.effective < FEW

    @property
    def one_decides(self) -> bool:
        """True if one document has more than a fifth of the squared deviations, and more than by chance.

        Chance is Cochran's (1941) critical value for the largest of as many variances as there are effective documents.
        """
        share = self.largest_share
        return share is not None and share > LARGE_SHARE and share > _critical_share(self.effective)

    @property
    def one_is_all(self) -> bool:
        """True if one document has nearly the largest share that is possible: the others hardly differ.

        It says why an error is large where few documents allow no test. Of three documents one often has that share.
        """
        ceiling = 1 - 1 / self.documents if self.documents > 3 else math.inf
        return self.largest_share is not None and self.largest_share > NEARLY_ALL * ceiling

    @property
    def doubt(self) -> str:
        """The reason why the error, the interval and the tests are unreliable; empty if they are reliable."""
        return self.doubt_at("") if self.unreliable else ""

    @property
    def unreliable(self) -> bool:
        """True if there are too few documents, or if one decides the error."""
        return self.few or self.one_decides

    def doubt_at(self, place: str, up_to: str = "") -> str:
        """Return the reason why the error is unreliable, with its place in parentheses."""
        if self.few:
            place = f"; {place}" if place else ""
            one = f", of which one accounts for {self.largest_share:.0%} of the squared standard error"
            few = f"fewer than {FEW} effective documents ({self.effective:.3g}, from {self.documents}{place})"
            return few + one * self.one_is_all
        place = f" ({place})" if place else ""
        share = f"{up_to}{self.largest_share:.0%}"
        return f"one of {self.documents} documents accounts for {share} of the squared standard error{place}"


@lru_cache(1024)
def _critical_share(effective: float) -> float:
    """Return Cochran's critical value for a number of effective documents."""
    from scipy.special import fdtri  # late: as above

    others = effective - 1
    ratio = float(fdtri(1.0, others, 1 - CHANCE / effective)) if others > 0 else math.inf
    return ratio / (ratio + others) if math.isfinite(ratio) else 1.0


def _severity(support: Support) -> tuple[float, bool]:
    """Return a sort key of unreliable supports for one reason: the worst is the smallest."""
    return (support.effective, not support.one_is_all) if support.few else (-(support.largest_share or 0.0), False)


UNRELIABLE = "errors, intervals and tests are themselves unreliable"


def reliability_warnings(values: Iterable[tuple[Support, str]], tests: Iterable[tuple[Support, str]] = ()) -> list[str]:
    """Return why errors of values and of paired tests are unreliable, from the (support, place) of each.

    There is one sentence per reason, which names the worst place and counts the others.
    """
    by_reason: dict[bool, list[tuple[Support, str, str]]] = {True: [], False: []}
    for kind, supports in (("value", values), ("paired test", tests)):
        for support, place in supports:
            if support.unreliable:
                by_reason[support.few].append((support, place, kind))
    sentences = []
    for places in filter(None, by_reason.values()):
        worst, place, kind = min(places, key=lambda p: _severity(p[0]))
        counts = Counter(noun for *_, noun in places)
        counts[kind] -= 1
        also = [counted(n, f"other {noun}" if noun == kind else noun) for noun, n in counts.items() if n]
        where = f"worst: {place}; also {' and '.join(also)}" if also else f"in {place}"
        sentences.append(f"{worst.doubt_at(where, 'up to ' if also else '')}: {UNRELIABLE}")
    return sentences


@dataclass(frozen=True, eq=False)
class Estimate:
    """A value, and the same value with each document (cluster) left out.

    `without[c]` is the value of the other documents if document c is left out, in the unit of the value; it equals
    `value` for a document that contributed nothing. `sizes[c]` is the number of observations, usually tokens, that
    document c contributed. Estimates over the same stream have the same documents. So every operation, and every
    function passed to `apply`, is applied to the value and to each of `without`, and no derivatives are needed.

    The standard error is that of the delete-one jackknife, √((C−1)/C · Σ (without[c] − their mean)²) over the C
    documents that contributed (Tukey 1958; Miller 1974). It has `effective` − 1 degrees of freedom, since a few large
    documents among many small ones say little about the spread.

    The operators accept plain numbers. Division by a zero estimate gives NaN, which results record
    as undefined.
    """

    value: float
    without: Float[np.ndarray, "clusters"]
    sizes: Float[np.ndarray, "clusters"]
    n: int = 0
    """Number of observations, usually tokens of the mask."""
    least: float = math.inf
    """Smallest effective number of documents of any part of the value, if parts are over different documents."""

    def __post_init__(self) -> None:
        if self.sizes.dtype == bool:
            raise TypeError("sizes are numbers of observations per document, not booleans")

    @property
    def present(self) -> Bool[np.ndarray, "clusters"]:
        """True for each document that contributed."""
        return np.asarray(self.sizes > 0)

    @property
    def clusters(self) -> int:
        """Number of documents that contributed."""
        return int(self.present.sum())

    @property
    def effective(self) -> float:
        """Effective number of documents, (Σn)² / Σn² (Kish 1965); their number if all sizes are equal.

        If parts of the value are over different documents, it is the smallest number of any part.
        """
        return min(effective(self.sizes), self.least)

    @property
    def deviations(self) -> Float[np.ndarray, "clusters"]:
        """Influence of each document: the mean of `without` minus its own; 0 for those that did not contribute."""
        present = self.present
        deviations = np.zeros_like(self.without)
        if present.any():
            deviations[present] = self.without[present].mean() - self.without[present]
        return deviations

    @property
    def stderr(self) -> float | None:
        """Standard error, in the unit of the value; None for fewer than two documents."""
        count = self.clusters
        if count < 2:
            return None
        with np.errstate(invalid="ignore", over="ignore"):  # the value may not exist without some document
            return float(math.sqrt((count - 1) / count * float(np.square(self.deviations).sum())))

    @property
    def ci95(self) -> tuple[float, float] | None:
        """95% interval by t with `effective` − 1 degrees of freedom; None below 1.1 effective documents."""
        error = self.stderr
        if error is None or self.effective < LEAST or not math.isfinite(self.value):
            return None
        reach = reach95(error, self.effective - 1)
        return self.value - reach, self.value + reach

    @property
    def proportion_ci95(self) -> tuple[float, float] | None:
        """95% interval of a proportion, by `proportion_interval`; None below 1.1 effective documents."""
        error = self.stderr
        if error is None or self.effective < LEAST or not math.isfinite(error) or not math.isfinite(self.value):
            return None
        value, error = min(max(self.value, 0.0), 1.0), error if error > ROUNDING else 0.0
        return proportion_interval(value, error, self.effective, float(self.sizes.sum()))

    @property
    def p_value(self) -> float | None:
        """Two-sided p value that the true value is 0, by `t_test`; None below 1.1 effective documents."""
        error = self.stderr
        if error is None or self.effective < LEAST or not math.isfinite(error):
            return None
        return t_test(self.value, error if error > ROUNDING * abs(self.value) else 0.0, self.effective - 1)

    @property
    def support(self) -> Support:
        """The documents behind the standard error, and the share of the most influential one."""
        with np.errstate(invalid="ignore", over="ignore"):
            squares = np.square(self.deviations)
            total = float(squares.sum())
        share = float(squares.max()) / total if 0 < total < math.inf else None
        return Support(self.clusters, self.effective, share)

    def apply(self, function: Callable[..., Float[np.ndarray, "*n"]], *others: Number) -> Estimate:
        """Return the estimate of a function of this and other numbers.

        `function` works on arrays elementwise, like numpy's. NaN and infinite values become NaN. `ValueError` for
        estimates over different streams.
        """
        numbers: list[Number] = [self, *others]
        estimates = [number for number in numbers if isinstance(number, Estimate)]
        for estimate in estimates:
            if estimate.without.shape != self.without.shape:
                documents = f"{self.without.size} and {estimate.without.size} documents"
                raise ValueError(f"estimates over different streams cannot be combined: {documents}")
        arguments = [np.append(x.without, x.value) if isinstance(x, Estimate) else float(x) for x in numbers]
        with np.errstate(all="ignore"):  # undefined values become NaN
            *without, value = np.where(np.isfinite(values := np.asarray(function(*arguments))), values, np.nan)
        sizes = np.max([estimate.sizes for estimate in estimates], axis=0)
        least = min(estimate.effective for estimate in estimates)
        n = min(estimate.n for estimate in estimates)
        return Estimate(float(value), np.array(without), sizes, n, least if least < effective(sizes) else math.inf)

    def log(self) -> Estimate:
        """Return the natural logarithm; NaN for a value that is not positive."""
        return self.apply(np.log)

    def exp(self) -> Estimate:
        """Return e to this value."""
        return self.apply(np.exp)

    def sqrt(self) -> Estimate:
        """Return the square root; NaN for a negative value."""
        return self.apply(np.sqrt)

    def __add__(self, other: Number) -> Estimate:
        return self.apply(np.add, other)

    __radd__ = __add__

    def __sub__(self, other: Number) -> Estimate:
        return self.apply(np.subtract, other)

    def __mul__(self, other: Number) -> Estimate:
        return self.apply(np.multiply, other)

    __rmul__ = __mul__

    def __truediv__(self, other: Number) -> Estimate:
        return self.apply(np.divide, other)

    def __pow__(self, power: float) -> Estimate:
        return self.apply(np.power, power)

    def __neg__(self) -> Estimate:
        return self.apply(np.negative)

    def __rsub__(self, other: float) -> Estimate:
        return -self + other

    def __rtruediv__(self, other: float) -> Estimate:
        return self.apply(lambda x: other / x)

    def __float__(self) -> float:
        return self.value

    def __repr__(self) -> str:
        error = self.stderr
        return f"Estimate({self.value:.6g}" + (f" ± {error:.2g})" if error is not None else ")")


def effective(sizes: Float[np.ndarray, "clusters"]) -> float:
    """Return the effective number of documents of these sizes, (Σn)² / Σn² (Kish 1965); 0 if all are 0."""
    squares = float(np.square(sizes, dtype=np.float64).sum())
    return float(sizes.sum(dtype=np.float64)) ** 2 / squares if squares else 0.0
