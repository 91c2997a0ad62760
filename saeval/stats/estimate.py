"""`Estimate`: a number that carries what it would be without each document; the jackknife gives its error."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeAlias

import numpy as np
from jaxtyping import Bool, Float

from saeval.base.formatting import counted

Number: TypeAlias = "float | int | Estimate"


FEW = 20
"""Effective documents below which errors are themselves unreliable."""
LARGE_SHARE = 0.2
"""Of the squared deviations: above it one document decides the error, unless as much is to be expected of so few."""
CHANCE = 0.01
"""How often one of equal documents with normal deviations may have a share that is called too large."""
LEAST = 1.1
"""Effective documents below which there is neither an interval nor a test."""

ROUNDING = 1e-12
"""Errors and differences this small, relative to the values, are float64's."""


def reach95(error: float, dof: float) -> float:
    """How far the 95% interval reaches to either side of a value, by the t quantile."""
    return t_quantile(dof, 0.975) * error


@lru_cache(1024)
def t_quantile(dof: float, level: float) -> float:
    """Return the quantile of Student's t distribution; values over the same documents share it."""
    from scipy.special import stdtrit  # late: it takes a tenth of a second, and `saeval ls` shows no interval

    return float(stdtrit(dof, level))


def t_test(value: float, error: float, dof: float) -> float | None:
    """Two-sided p value of the t test that the true value is 0.

    Where the value is the same whichever document is left out, its error is 0 and there is no t: then it is that of the
    sign test, 2^-dof, since all documents agree. None where the value is 0 as well.
    """
    from scipy.special import stdtr  # late: as above

    if error == 0:
        return 2.0**-dof if value else None
    return float(2 * stdtr(dof, -abs(value) / error))


@dataclass(frozen=True)
class Support:
    """What an error over documents rests on."""

    documents: int
    effective: float
    """Effective number of documents, (Σn)² / Σn² of their sizes n (Kish 1965): their number where all sizes agree."""
    largest_share: float | None
    """Share of the squared deviations of the document that moves the value most; None where there are none."""

    @property
    def parts(self) -> list[float | None]:
        """The three as plain data, in their order."""
        return [self.documents, self.effective, self.largest_share]

    @property
    def few(self) -> bool:
        """Whether there are too few effective documents for a reliable error; False where the error is 0 or missing."""
        return self.largest_share is not None and self.effective < FEW

    @property
    def one_decides(self) -> bool:
        """Whether one document has more than a fifth of the squared deviations, and more than chance gives it.

        Chance: Cochran's (1941) critical value of the largest of as many variances as there are effective documents.
        """
        share = self.largest_share
        return share is not None and share > LARGE_SHARE and share > _critical_share(self.effective)

    @property
    def doubt(self) -> str:
        """Why the error, the interval and the tests are unreliable; empty where they are not."""
        return self.doubt_at("") if self.unreliable else ""

    @property
    def unreliable(self) -> bool:
        """True if there are too few documents, or if one decides."""
        return self.few or self.one_decides

    def doubt_at(self, place: str, up_to: str = "") -> str:
        """The same of an unreliable error, with its place in parentheses."""
        if self.few:
            place = f"; {place}" if place else ""
            return f"fewer than {FEW} effective documents ({self.effective:.3g}, from {self.documents}{place})"
        place = f" ({place})" if place else ""
        share = f"{up_to}{self.largest_share:.0%}"
        return f"one of {self.documents} documents accounts for {share} of the squared standard error{place}"


@lru_cache(1024)
def _critical_share(effective: float) -> float:
    """Cochran's critical value for so many effective documents."""
    from scipy.special import fdtri  # late: as below

    others = effective - 1
    ratio = float(fdtri(1.0, others, 1 - CHANCE / effective)) if others > 0 else math.inf
    return ratio / (ratio + others) if math.isfinite(ratio) else 1.0


UNRELIABLE = "errors, intervals and tests are themselves unreliable"


def reliability_warnings(values: Iterable[tuple[Support, str]], tests: Iterable[tuple[Support, str]] = ()) -> list[str]:
    """Why errors of values and of paired tests are unreliable, from (support, place) of each.

    One sentence for each reason: it names the worst place and counts the others.
    """
    by_reason: dict[bool, list[tuple[Support, str, str]]] = {True: [], False: []}
    for kind, known in (("value", values), ("paired test", tests)):
        for support, place in known:
            if support.unreliable:
                by_reason[support.few].append((support, place, kind))
    sentences = []
    for places in filter(None, by_reason.values()):
        worst, place, kind = min(places, key=lambda p: p[0].effective if p[0].few else -(p[0].largest_share or 0.0))
        counts = Counter(other for *_, other in places)
        counts[kind] -= 1
        also = [counted(n, f"other {noun}" if noun == kind else noun) for noun, n in counts.items() if n]
        where = f"worst: {place}; also {' and '.join(also)}" if also else f"in {place}"
        sentences.append(f"{worst.doubt_at(where, 'up to ' if also else '')}: {UNRELIABLE}")
    return sentences


@dataclass(frozen=True, eq=False)
class Estimate:
    """A value, and the same value with each document (cluster) left out.

    `without[c]` is the value that the rest gives where document c is left out, in the unit of the value; it equals
    `value` for a document that contributed nothing. `sizes[c]` is how many observations, usually tokens, document c
    contributed. Two estimates over the same stream have the same documents, so every operation, and every function
    given to `apply`, is applied to the value and to each of `without`: no derivatives are needed.

    The standard error is the delete-one jackknife's, √((C−1)/C · Σ (without[c] − their mean)²) over the C documents
    that contributed (Miller 1974; Tukey 1958). Degrees of freedom are `effective` − 1, since few large documents among
    many small ones tell little about the spread.

    The operators accept plain numbers. Dividing by a zero estimate gives NaN, which results record
    as undefined.
    """

    value: float
    without: Float[np.ndarray, "clusters"]
    sizes: Float[np.ndarray, "clusters"]
    n: int = 0
    """Observations behind the value, usually tokens of the mask."""
    least: float = math.inf
    """Effective documents of the part of the value that has fewest, where parts rest on different documents."""

    def __post_init__(self) -> None:
        if self.sizes.dtype == bool:
            raise TypeError("sizes are how many observations each document contributed, not whether it did")

    @property
    def present(self) -> Bool[np.ndarray, "clusters"]:
        """Which documents contributed."""
        return np.asarray(self.sizes > 0)

    @property
    def clusters(self) -> int:
        """How many documents contributed."""
        return int(self.present.sum())

    @property
    def effective(self) -> float:
        """Effective number of documents, (Σn)² / Σn² (Kish 1965): their number where all are of one size.

        Of a value whose parts rest on different documents it is that of the part that has fewest.
        """
        return min(effective(self.sizes), self.least)

    @property
    def deviations(self) -> Float[np.ndarray, "clusters"]:
        """How far each document moves the value: the mean of `without` minus each; 0 for those without a part."""
        here = self.present
        found = np.zeros_like(self.without)
        if not here.any():
            return found
        found[here] = self.without[here].mean() - self.without[here]
        return found

    @property
    def stderr(self) -> float | None:
        """Standard error, in the unit of the value; None below two documents."""
        count = self.clusters
        if count < 2:
            return None
        with np.errstate(invalid="ignore", over="ignore"):  # a value that does not exist without some document
            return float(math.sqrt((count - 1) / count * float(np.square(self.deviations).sum())))

    @property
    def ci95(self) -> tuple[float, float] | None:
        """95% interval by the t quantile, `effective` - 1 degrees of freedom; None below 1.1 effective documents."""
        error = self.stderr
        if error is None or self.effective < LEAST or not math.isfinite(self.value):
            return None
        reach = reach95(error, self.effective - 1)
        return self.value - reach, self.value + reach

    @property
    def p_value(self) -> float | None:
        """Two-sided p value of `t_test` that the true value is 0; None below 1.1 effective documents."""
        error = self.stderr
        if error is None or self.effective < LEAST or not math.isfinite(error):
            return None
        return t_test(self.value, error if error > ROUNDING * abs(self.value) else 0.0, self.effective - 1)

    @property
    def support(self) -> Support:
        """What the standard error rests on: how many documents, and whether one of them decides it."""
        with np.errstate(invalid="ignore", over="ignore"):
            squares = np.square(self.deviations)
            total = float(squares.sum())
        share = float(squares.max()) / total if 0 < total < math.inf else None
        return Support(self.clusters, self.effective, share)

    def apply(self, function: Callable[..., Float[np.ndarray, "*n"]], *others: Number) -> Estimate:
        """The estimate of a function of this one and others. `function` works on arrays elementwise, as numpy's do."""
        numbers: list[Number] = [self, *others]
        estimates = [number for number in numbers if isinstance(number, Estimate)]
        for other in estimates:
            if other.without.shape != self.without.shape:
                raise ValueError(
                    f"estimates over different streams cannot be combined: "
                    f"{self.without.size} and {other.without.size} documents"
                )
        arguments = [np.append(one.without, one.value) if isinstance(one, Estimate) else float(one) for one in numbers]
        with np.errstate(all="ignore"):  # what is undefined is NaN
            *without, value = np.where(np.isfinite(found := np.asarray(function(*arguments))), found, np.nan)
        sizes = np.max([one.sizes for one in estimates], axis=0)
        least = min(one.effective for one in estimates)
        own = effective(sizes)
        n = min(one.n for one in estimates)
        return Estimate(float(value), np.array(without), sizes, n, least if least < own else math.inf)

    def log(self) -> Estimate:
        """Natural logarithm; NaN for a value that is not positive."""
        return self.apply(np.log)

    def exp(self) -> Estimate:
        """e to this value."""
        return self.apply(np.exp)

    def sqrt(self) -> Estimate:
        """Square root; NaN for a negative value."""
        return self.apply(np.sqrt)

    def __add__(self, other: Number) -> Estimate:
        return self.apply(np.add, other)

    def __sub__(self, other: Number) -> Estimate:
        return self.apply(np.subtract, other)

    def __mul__(self, other: Number) -> Estimate:
        return self.apply(np.multiply, other)

    def __truediv__(self, other: Number) -> Estimate:
        return self.apply(np.divide, other)

    def __pow__(self, power: float) -> Estimate:
        return self.apply(np.power, power)

    def __neg__(self) -> Estimate:
        return self.apply(np.negative)

    def __radd__(self, other: float) -> Estimate:
        return self + other

    def __rsub__(self, other: float) -> Estimate:
        return -self + other

    def __rmul__(self, other: float) -> Estimate:
        return self * other

    def __rtruediv__(self, other: float) -> Estimate:
        return self.apply(lambda x: other / x)

    def __float__(self) -> float:
        return self.value

    def __repr__(self) -> str:
        error = self.stderr
        return f"Estimate({self.value:.6g}" + (f" ± {error:.2g})" if error is not None else ")")


def effective(sizes: Float[np.ndarray, "clusters"]) -> float:
    """Effective number of documents of these sizes, (Σn)² / Σn²; 0 where there are none."""
    squares = float(np.square(sizes, dtype=np.float64).sum())
    return float(sizes.sum(dtype=np.float64)) ** 2 / squares if squares else 0.0
