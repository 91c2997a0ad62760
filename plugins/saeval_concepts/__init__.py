"""Concepts: how well features answer questions about labelled texts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from saeval.plugin import Metric, hookimpl
from saeval_concepts.baselines import activation_probes, token_probes
from saeval_concepts.sparse_probing import SparseProbing
from saeval_concepts.tasks import class_counts, fit_labels, probe_tasks, task_labels
from saeval_concepts.texts import (
    chosen_features,
    class_sums,
    fit_activation_rows,
    fit_features_of_tasks,
    fit_token_rows,
    pooled_activations,
    pooled_acts,
    test_activation_rows,
    test_token_rows,
)


@hookimpl
def saeval_metrics() -> list[type[Metric]]:
    return [SparseProbing]


@hookimpl
def saeval_quantities() -> list[Callable[..., Any]]:
    return [
        activation_probes, chosen_features, class_counts, class_sums, fit_activation_rows, fit_features_of_tasks,
        fit_labels, fit_token_rows, pooled_activations, pooled_acts, probe_tasks, task_labels, test_activation_rows,
        test_token_rows, token_probes,
    ]  # fmt: skip
