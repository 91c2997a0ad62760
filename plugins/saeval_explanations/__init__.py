"""Explanations: what a feature means in words or tokens, and how far these can be trusted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from saeval.plugin import Metric, Report, hookimpl
from saeval_explanations.explanation import Explanation
from saeval_explanations.passages import explaining_windows, testing_windows
from saeval_explanations.sampling import evaluated_firing, fit_firing, nearest_features, sampled_features
from saeval_explanations.scores import Detection, Fuzzing
from saeval_explanations.token_explanation import TokenExplanation
from saeval_explanations.tokens import evaluated_firing_tokens, fit_firing_tokens, token_model
from saeval_explanations.verdicts import (
    asked_words,
    detection_cases,
    detection_verdicts,
    fuzzing_cases,
    fuzzing_verdicts,
)
from saeval_explanations.windows import feature_examples
from saeval_explanations.words import explanations, explanations_given, shown_windows, tested_words


@hookimpl
def saeval_metrics() -> list[type[Metric]]:
    return [Detection, Explanation, Fuzzing, TokenExplanation]


@hookimpl
def saeval_quantities() -> list[Callable[..., Any]]:
    return [
        asked_words, detection_cases, detection_verdicts, evaluated_firing, evaluated_firing_tokens, explaining_windows,
        explanations, explanations_given, feature_examples, fit_firing, fit_firing_tokens, fuzzing_cases,
        fuzzing_verdicts, nearest_features, sampled_features, shown_windows, testing_windows, tested_words,
        token_model,
    ]  # fmt: skip


@hookimpl
def saeval_reports() -> list[Report]:
    from saeval_explanations.pages import sections  # late: only reports need it

    return [
        Report(
            "explanations", description="features with words, scores beside controls, and windows", sections=sections
        )
    ]
