"""Sparsity frontiers: pruned against trained SAEs, Pareto fronts of two values, and values over training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from saeval.plugin import Metric, Report, hookimpl
from saeval_frontier.frontier import SparsityFrontier
from saeval_frontier.pruning import fit_features, prune_orders


@hookimpl
def saeval_metrics() -> list[type[Metric]]:
    return [SparsityFrontier]


@hookimpl
def saeval_quantities() -> list[Callable[..., Any]]:
    return [fit_features, prune_orders]


@hookimpl
def saeval_reports() -> list[Report]:
    from saeval_frontier.pages import sections  # late: only reports need it

    description = "pruned against trained SAEs, Pareto fronts, values over training: plots and tables"
    return [Report("frontier", description=description, sections=sections)]
