"""`Estimate`: a number that carries what it would be without each document; the jackknife gives its error."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from jaxtyping import Bool, Float

Number: TypeAlias = "float | int | Estimate"


FEW = 20
"""Effective documents below which errors are themselves unreliable."""
LARGE_SHARE = 0.2
"""Of the squared deviations: above it one document decides the error, unless as much is to be expected of so few."""
CHANCE = 0.01
"""How often one of equal documents with normal deviations may have a share that is called too large."""
LEAST = 1.1
"""Effective documents below which there is neither an interval nor a test."""


@dataclass(frozen=True)
class Support:
    """What an error over documents rests on."""

    documents: int
    effective: float
    """Effective number of documents, (Σn)² / Σn² of their sizes n (Kish 1965): their number where all sizes agree."""
    largest_share: float | None
    """The largest document's share of the squared deviations; None where there are no deviations."""

    @property
    def few(self) -> bool:
        """Whether there are too few effective documents for a reliable error; False where the error is 0 or missing."""
        return self.largest_share is not None and self.effective < FEW

    @property
    def one_decides(self) -> bool:
        """Whether one document has more than a fifth of the squared deviations, and more than chance gives it.

        Chance: Cochran's (1941) critical value of the largest of as many variances as there are effective documents.
        """
        if self.largest_share is None or self.largest_share <= LARGE_SHARE:
            return False
        from scipy.special import fdtri  # late: as below

        others = self.effective - 1
        ratio = float(fdtri(1.0, others, 1 - CHANCE / self.effective)) if others > 0 else math.inf
        return self.largest_share > ratio / (ratio + others)

    @property
    def doubt(self) -> str:
        """Why the error, the interval and the tests are unreliable; empty where they are not."""
        if self.few:
            return f"fewer than {FEW} effective documents ({self.effective:.3g}, from {self.documents})"
        if self.one_decides:
            return f"one of {self.documents} documents makes {self.largest_share:.0%} of the variance"
        return ""


UNRELIABLE = "errors, intervals and tests are themselves unreliable"


def doubts(known: Iterable[tuple[Support, str]]) -> list[str]:
    """Why errors are unreliable, from (support, where): one sentence for each reason, which names the worst place."""
    by_reason: dict[bool, list[tuple[Support, str]]] = {True: [], False: []}
    for support, place in known:
        if support.few or support.one_decides:
            by_reason[support.few].append((support, place))
    found = []
    for places in filter(None, by_reason.values()):
        support, place = min(places, key=lambda one: one[0].effective if one[0].few else -(one[0].largest_share or 0.0))
        more = f" and {len(places) - 1} more" if len(places) > 1 else ""
        found.append(f"{support.doubt}, in {place}{more}: {UNRELIABLE}")
    return found


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
        from scipy.special import stdtrit  # late: it takes a tenth of a second, and `saeval ls` shows no interval

        error = self.stderr
        if error is None or self.effective < LEAST or not math.isfinite(self.value):
            return None
        reach = float(stdtrit(self.effective - 1, 0.975)) * error
        return self.value - reach, self.value + reach

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
