"""Means over sampled features, with the error of the sample."""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float

from saeval.plugin import Better, Curve, Notes, Scalar
from saeval_explanations.sampling import DECILES, SampledFeatures


def mean_over_features(
    values: Float[np.ndarray, "n"], unit: str, better: Better = "higher", reason: str = "no sampled feature has a score"
) -> Scalar:
    """Return the mean of the features that have a value, with its standard error and t interval over features.

    Features of an SAE are other ones than those of another, so two SAEs share no documents here: the error is over
    features, and takes part in no test that is paired by document.
    """
    known = values[np.isfinite(values)]
    if not len(known):
        return Scalar.undefined(reason, unit=unit, better=better)
    mean = float(known.mean())
    if len(known) < 2:
        return Scalar(
            mean, unit=unit, better=better, n=1, reason="one feature alone, so there is no error over features"
        )
    from scipy.special import stdtrit  # late: slow to import

    error = float(known.std(ddof=1)) / math.sqrt(len(known))
    reach = float(stdtrit(len(known) - 1, 0.975)) * error
    return Scalar(mean, unit=unit, better=better, n=len(known), stderr=error, ci95=(mean - reach, mean + reach))


FEW = 20
"""Number of features below which errors over them are themselves unreliable."""


def errors_note(metric: str, values: Float[np.ndarray, "n"]) -> Notes:
    """Return the notes that errors of a metric are over features, and if these are few; `values` are by feature."""
    scored, sampled = int(np.isfinite(values).sum()), len(values)
    notes = [f"errors of {metric} are over sampled features, not over documents"]
    if scored < FEW:
        of = f"{scored} of {sampled}" if scored < sampled else str(scored)
        notes.append(f"{metric} has a score for {of} sampled features: errors over fewer than {FEW} are unreliable")
    return Notes(notes)


def by_density(values: Float[np.ndarray, "n"], sampled: SampledFeatures, better: Better) -> Curve:
    """Return the mean of a share over the sampled features of each tenth by density that have one."""
    known = {d: own for d in range(1, DECILES + 1) if len(own := values[(sampled.deciles == d) & np.isfinite(values)])}
    means = [float(own.mean()) for own in known.values()]
    return Curve(list(known), means, x_unit="tenth of density", unit="share", better=better)
