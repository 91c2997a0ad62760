"""A reward model's preferences in terms of features: margins, attributions, true effects, groups, counterfactuals."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from saeval.plugin import Control, Metric, Report, hookimpl
from saeval_reward import ablation, grouping, integration, margins, pages, ranking, totals
from saeval_reward.attribution import RewardAttribution
from saeval_reward.audit import CounterfactualAudit
from saeval_reward.basis import ResidualBasis
from saeval_reward.grouping import RewardGroups
from saeval_reward.margins import RewardMargin
from saeval_reward.recovered import MarginRecovered


@hookimpl
def saeval_metrics() -> list[type[Metric]]:
    return [RewardMargin, MarginRecovered, RewardAttribution, RewardGroups, CounterfactualAudit]


@hookimpl
def saeval_quantities() -> list[Callable[..., Any]]:
    return [
        ablation.spliced_reward_on_b, integration.attribution, integration.baseline_activations,
        integration.baseline_reference, integration.baseline_reward, integration.fit_parts, integration.fit_reference,
        integration.no_reference, integration.path_gradient, grouping.feature_groups, margins.margin_rows,
        margins.top_texts, ranking.feature_ranking, totals.attribution_totals,
    ]  # fmt: skip


@hookimpl
def saeval_controls() -> list[type[Control]]:
    return [ResidualBasis]


@hookimpl
def saeval_reports() -> list[Report]:
    description = "preferred features, their effects and contexts"
    return [Report("reward", description=description, sections=pages.sections)]
