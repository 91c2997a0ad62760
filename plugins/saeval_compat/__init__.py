"""Values of other harnesses, under their names: to compare with published numbers, not to judge SAEs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from saeval.plugin import Metric, Plan, Problem, Source, hookimpl
from saeval_compat import splices
from saeval_compat.batches import batch_sums, included_spread
from saeval_compat.dictionary_learning import DictionaryLearningEvaluate
from saeval_compat.saebench import SAEBenchDownstream, SAEBenchFeatures, SAEBenchVariance, SAEBenchWeights
from saeval_compat.saebench_autointerp import (
    SAEBenchAutointerp,
    autointerp_answers,
    autointerp_examples,
    autointerp_latents,
    autointerp_windows,
)
from saeval_compat.saebench_probing import (
    SAEBenchProbing,
    fit_label_rows,
    saebench_activation_probes,
    saebench_classes,
    saebench_probing_features,
    saebench_probing_fit,
    saebench_probing_sums,
    saebench_sparse_probes,
    test_label_rows,
)
from saeval_compat.saebench_removals import SAEBenchRemoval, padded_acts, silent_acts
from saeval_compat.saebench_scr import SAEBenchSCR, saebench_scr_removals, saebench_scr_setup, saebench_scr_sums
from saeval_compat.saebench_tpp import SAEBenchTPP, saebench_tpp_removals, saebench_tpp_setup, saebench_tpp_sums
from saeval_compat.saelens import SAELensDownstream, SAELensFeatures, SAELensVariance, SAELensWeights
from saeval_compat.saeprobes import (
    SAEProbes,
    saeprobes_baseline,
    saeprobes_features,
    saeprobes_fit,
    saeprobes_sums,
    saeprobes_texts,
)
from saeval_compat.token_rows import TokenRows
from saeval_concepts.tasks import unmatched_tasks


@hookimpl
def saeval_metrics() -> list[type[Metric]]:
    return [
        SAELensDownstream, SAELensVariance, SAELensFeatures, SAELensWeights,
        SAEBenchDownstream, SAEBenchVariance, SAEBenchFeatures, SAEBenchWeights,
        SAEBenchProbing, SAEBenchSCR, SAEBenchTPP, SAEBenchAutointerp,
        SAEProbes,
        DictionaryLearningEvaluate,
    ]  # fmt: skip


@hookimpl
def saeval_quantities() -> list[Callable[..., Any]]:
    return [
        batch_sums, included_spread, splices.everywhere_final, splices.everywhere_scores, splices.included_clean_scores,
        splices.included_final, splices.included_scores, splices.included_token_scores, splices.saebench_scores,
        splices.zeroed_final, splices.zeroed_scores, padded_acts, saebench_scr_removals, saebench_scr_setup,
        saebench_scr_sums, saebench_tpp_removals, saebench_tpp_setup, saebench_tpp_sums, silent_acts,
        fit_label_rows, saebench_activation_probes, saebench_classes, saebench_probing_features, saebench_probing_fit,
        saebench_probing_sums, saebench_sparse_probes, test_label_rows,
        saeprobes_baseline, saeprobes_features, saeprobes_fit, saeprobes_sums, saeprobes_texts,
        autointerp_answers, autointerp_examples, autointerp_latents, autointerp_windows,
    ]  # fmt: skip


@hookimpl
def saeval_data() -> list[type[Source]]:
    return [TokenRows]


@hookimpl
def saeval_check(plan: Plan) -> list[Problem]:
    """Refuse `tasks` that match nothing."""
    return unmatched_tasks(plan, (SAEBenchProbing, SAEBenchRemoval, SAEProbes))
