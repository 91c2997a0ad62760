"""`Estimate`: a number that carries one influence for each cluster; its arithmetic is the delta method."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from jaxtyping import Bool, Float

Number: TypeAlias = "float | int | Estimate"


@dataclass(frozen=True, eq=False)
class Estimate:
    """A value with its linearisation over clusters (the source documents).

    `influence[c]` is how far cluster c moves the value, to first order, and sums to about 0;
    `present[c]` says whether cluster c contributed. Two estimates over the same stream have the
    same clusters, so sums, differences, ratios and functions of them know their joint error:
    to first order, f(a, b) has influence f_a * a.influence + f_b * b.influence. Source: the delta
    method with the linearisation variance of a clustered sample (Binder 1983; as in R's survey).

    The operators accept plain numbers. Dividing by a zero estimate gives NaN, which results record
    as undefined.
    """

    value: float
    influence: Float[np.ndarray, "clusters"]
    present: Bool[np.ndarray, "clusters"]
    n: int = 0
    """Observations behind the value, usually tokens of the mask."""

    @property
    def clusters(self) -> int:
        """How many clusters contributed."""
        return int(self.present.sum())

    @property
    def stderr(self) -> float | None:
        """Standard error, in the unit of the value; None below two clusters."""
        count = self.clusters
        if count < 2:
            return None
        return float(math.sqrt(count / (count - 1) * float(np.square(self.influence).sum())))

    @property
    def ci95(self) -> tuple[float, float] | None:
        """95% interval by the t quantile with clusters - 1 degrees of freedom; None below two clusters."""
        from scipy.special import stdtrit  # late: it takes a tenth of a second, and `saeval ls` shows no interval

        error = self.stderr
        if error is None or not math.isfinite(self.value):
            return None
        reach = float(stdtrit(self.clusters - 1, 0.975)) * error
        return self.value - reach, self.value + reach

    def map(self, value: float, slope: float) -> Estimate:
        """The estimate of a smooth function of this one, given its value and its derivative here."""
        return Estimate(value, slope * self.influence, self.present, self.n)

    def log(self) -> Estimate:
        """Natural logarithm; NaN for a value that is not positive."""
        if self.value <= 0:
            return self.map(math.nan, math.nan)
        return self.map(math.log(self.value), 1 / self.value)

    def exp(self) -> Estimate:
        """e to this value."""
        value = math.exp(self.value)
        return self.map(value, value)

    def sqrt(self) -> Estimate:
        """Square root; NaN for a negative value."""
        if self.value < 0:
            return self.map(math.nan, math.nan)
        value = math.sqrt(self.value)
        return self.map(value, 0.5 / value if value else math.nan)

    def _join(self, other: Number, value: float, here: float, there: float) -> Estimate:
        if not isinstance(other, Estimate):
            return self.map(value, here)
        if self.influence.shape != other.influence.shape:
            raise ValueError(
                f"estimates over different streams cannot be combined: "
                f"{self.influence.size} and {other.influence.size} documents"
            )
        influence = here * self.influence + there * other.influence
        return Estimate(value, influence, self.present | other.present, min(self.n, other.n))

    def __add__(self, other: Number) -> Estimate:
        return self._join(other, self.value + _value(other), 1.0, 1.0)

    def __sub__(self, other: Number) -> Estimate:
        return self._join(other, self.value - _value(other), 1.0, -1.0)

    def __mul__(self, other: Number) -> Estimate:
        return self._join(other, self.value * _value(other), _value(other), self.value)

    def __truediv__(self, other: Number) -> Estimate:
        below = _value(other)
        if below == 0:
            return self._join(other, math.nan, math.nan, math.nan)
        return self._join(other, self.value / below, 1 / below, -self.value / below**2)

    def __pow__(self, power: float) -> Estimate:
        return self.map(self.value**power, power * self.value ** (power - 1))

    def __neg__(self) -> Estimate:
        return self.map(-self.value, -1.0)

    def __radd__(self, other: float) -> Estimate:
        return self + other

    def __rsub__(self, other: float) -> Estimate:
        return -self + other

    def __rmul__(self, other: float) -> Estimate:
        return self * other

    def __rtruediv__(self, other: float) -> Estimate:
        if self.value == 0:
            return self.map(math.nan, math.nan)
        return self.map(other / self.value, -other / self.value**2)

    def __float__(self) -> float:
        return self.value

    def __repr__(self) -> str:
        error = self.stderr
        return f"Estimate({self.value:.6g}" + (f" ± {error:.2g})" if error is not None else ")")


def _value(number: Number) -> float:
    return number.value if isinstance(number, Estimate) else float(number)
