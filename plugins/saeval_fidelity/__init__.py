"""Metrics of fidelity: how closely a substitute reproduces the activations and the model's predictions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from saeval.plugin import Metric, hookimpl
from saeval_fidelity.downstream import (
    DownstreamReconstruction,
    later_activations,
    later_means,
    later_spliced_activations,
)
from saeval_fidelity.features import L0, Density
from saeval_fidelity.prediction import CrossEntropy, KLDivergence
from saeval_fidelity.reconstruction import Reconstruction
from saeval_fidelity.weights import Weights


@hookimpl
def saeval_metrics() -> list[type[Metric]]:
    return [L0, Density, Reconstruction, CrossEntropy, KLDivergence, DownstreamReconstruction, Weights]


@hookimpl
def saeval_quantities() -> list[Callable[..., Any]]:
    return [later_activations, later_means, later_spliced_activations]
