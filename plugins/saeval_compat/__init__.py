"""Values of other harnesses, under their names: to compare with published numbers, not to judge SAEs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from saeval.plugin import Metric, Source, hookimpl
from saeval_compat import splices
from saeval_compat.batches import batch_sums, included_spread
from saeval_compat.dictionary_learning import DictionaryLearningEvaluate
from saeval_compat.saebench import SAEBenchDownstream, SAEBenchFeatures, SAEBenchVariance, SAEBenchWeights
from saeval_compat.saelens import SAELensDownstream, SAELensFeatures, SAELensVariance, SAELensWeights
from saeval_compat.token_rows import TokenRows


@hookimpl
def saeval_metrics() -> list[type[Metric]]:
    return [
        SAELensDownstream, SAELensVariance, SAELensFeatures, SAELensWeights,
        SAEBenchDownstream, SAEBenchVariance, SAEBenchFeatures, SAEBenchWeights,
        DictionaryLearningEvaluate,
    ]  # fmt: skip


@hookimpl
def saeval_quantities() -> list[Callable[..., Any]]:
    return [
        batch_sums, included_spread, splices.everywhere_final, splices.everywhere_scores, splices.included_clean_scores,
        splices.included_final, splices.included_scores, splices.included_token_scores, splices.zeroed_final,
        splices.zeroed_scores,
    ]  # fmt: skip


@hookimpl
def saeval_data() -> list[type[Source]]:
    return [TokenRows]
