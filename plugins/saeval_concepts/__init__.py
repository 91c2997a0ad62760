"""Concepts: how well features answer questions about labelled texts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from saeval.plugin import Metric, Plan, Problem, Report, hookimpl
from saeval_concepts.absorption import Absorption
from saeval_concepts.absorption_effects import (
    absorber_falls,
    answer_outcome,
    circular,
    later_outcome,
    later_word_activations,
    later_word_probes,
    word_outcome,
)
from saeval_concepts.baselines import activation_probes, token_probes
from saeval_concepts.directions import task_directions
from saeval_concepts.examples import probed_examples, probed_features, probed_labels
from saeval_concepts.fits import fit_candidates, fit_labels, last_keys, may_be_fitted, validation_labels
from saeval_concepts.mains import (
    candidate_rows,
    decoder_norms,
    main_candidates,
    main_features,
    parent_projections,
    word_probes,
)
from saeval_concepts.removals import RemovalMetric
from saeval_concepts.rows import chosen_tokens, row_keys, task_labels
from saeval_concepts.scr import SCR, fit_quadrants, pair_probes, quadrants, scr_removals
from saeval_concepts.sparse_probing import SparseProbing
from saeval_concepts.tasks import class_counts, probe_tasks, unmatched_tasks
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
    validation_activation_rows,
)
from saeval_concepts.tpp import TPP, tpp_removals
from saeval_concepts.words import (
    answer_places,
    word_activations,
    word_acts,
    word_labels,
    word_places,
    word_rows,
    word_sums,
)
from saeval_concepts.written import pooled_written_acts, written_acts, written_by_class, written_by_quadrant


@hookimpl
def saeval_metrics() -> list[type[Metric]]:
    return [Absorption, SCR, TPP, SparseProbing]


@hookimpl
def saeval_quantities() -> list[Callable[..., Any]]:
    return [
        activation_probes, chosen_features, chosen_tokens, class_counts, class_sums,
        fit_activation_rows, fit_candidates, fit_features_of_tasks, fit_labels, fit_quadrants, fit_token_rows,
        last_keys, may_be_fitted, pair_probes, pooled_activations, pooled_acts, pooled_written_acts, probe_tasks,
        probed_examples, probed_features, probed_labels, quadrants, row_keys, scr_removals, task_directions,
        task_labels, test_activation_rows, test_token_rows, token_probes, tpp_removals,
        validation_activation_rows, validation_labels, written_acts, written_by_class, written_by_quadrant,
        # absorption
        absorber_falls, answer_outcome, answer_places, candidate_rows, decoder_norms, later_outcome,
        later_word_activations, later_word_probes, main_candidates, main_features, parent_projections, word_activations,
        word_acts, word_labels, word_outcome, word_places, word_probes, word_rows, word_sums,
    ]  # fmt: skip


@hookimpl
def saeval_reports() -> list[Report]:
    from saeval_concepts.pages import sections  # late: only reports need it

    return [Report("concepts", description="probes, removals, absorption, and features with tokens", sections=sections)]


@hookimpl
def saeval_check(plan: Plan) -> list[Problem]:
    """Refuse `tasks` that match nothing, and a probe of `absorption` at the SAE's own hook, under any of its names."""
    return unmatched_tasks(plan, (Absorption, RemovalMetric, SparseProbing)) + [
        plan.suite.problem(circular(later), *cell.entry.location)
        for cell in plan.cells
        if isinstance(cell.metric, Absorption) and plan.spec is not None and (later := cell.metric.later_hook)
        if plan.spec.site(later) == cell.subjects[0].hook_name
    ]
