"""Comparison of an SAE's error with noise of the same size and angle: substitutes matched in cosine and norm."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from saeval.plugin import Control, Metric, Report, hookimpl
from saeval_perturbation import pages, robustness
from saeval_perturbation.baselines import Perturbation
from saeval_perturbation.curve import PerturbationCurve
from saeval_perturbation.noise import fit_covariance, fit_covariance_root, fit_displacements, fit_errors
from saeval_perturbation.noisy import MatchedNoise
from saeval_perturbation.scored import mean_scores, zero_scores


@hookimpl
def saeval_metrics() -> list[type[Metric]]:
    return [Perturbation, PerturbationCurve]


@hookimpl
def saeval_controls() -> list[type[Control]]:
    return [MatchedNoise]


@hookimpl
def saeval_quantities() -> list[Callable[..., Any]]:
    return [fit_covariance, fit_covariance_root, fit_displacements, fit_errors, mean_scores, zero_scores]


@hookimpl
def saeval_reports() -> list[Report]:
    text = "noise and ablations by layer and site, without SAEs, of one or several models: charts and tables"
    return [
        Report(
            "perturbation", description="KL of SAEs against matched noise: charts and tables", sections=pages.sections
        ),
        Report("robustness", description=text, sections=robustness.sections, together=True),
    ]
