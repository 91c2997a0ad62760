"""The hooks that a plugin may implement. A hook that collects things returns a list, even for a single one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    from saeval.base.errors import Problem
    from saeval.interfaces.data import Source
    from saeval.interfaces.engine import WorkerEngine
    from saeval.interfaces.judge import Judge
    from saeval.interfaces.metric import Metric
    from saeval.interfaces.model import ModelAdapter, RegisteredModel
    from saeval.interfaces.sae import RegisteredSAE, SAELoader
    from saeval.interfaces.substitute import Control
    from saeval.plan.plan import Plan
    from saeval.results.report import Report
    from saeval.results.result import Result
    from saeval.suite.schema import RegisteredSuite

hookspec = pluggy.HookspecMarker("saeval")
hookimpl = pluggy.HookimplMarker("saeval")


@hookspec
def saeval_metrics() -> Sequence[type[Metric]]:  # type: ignore[empty-body]
    """Metric classes, named by their `name`."""


@hookspec
def saeval_quantities() -> Sequence[Callable[..., Any]]:  # type: ignore[empty-body]
    """Functions that metrics request by name; a function's own parameters are requests, too."""


@hookspec
def saeval_sae_loaders() -> Sequence[type[SAELoader]]:  # type: ignore[empty-body]
    """Checkpoint formats: classes whose `name` is chosen by `use:` in a suite's `saes:`."""


@hookspec
def saeval_saes() -> Sequence[RegisteredSAE]:  # type: ignore[empty-body]
    """SAEs that suites can name, such as `testbed/relu-3`."""


@hookspec
def saeval_models() -> Sequence[type[ModelAdapter] | RegisteredModel]:  # type: ignore[empty-body]
    """Model adapters, and models that suites can name."""


@hookspec
def saeval_data() -> Sequence[type[Source]]:  # type: ignore[empty-body]
    """Data sources: classes whose `name` is chosen by `use:` in a suite's `data:`."""


@hookspec
def saeval_suites() -> Sequence[RegisteredSuite]:  # type: ignore[empty-body]
    """Suites that run by name, as in `saeval run quickstart`."""


@hookspec
def saeval_controls() -> Sequence[type[Control]]:  # type: ignore[empty-body]
    """Untrained baselines: each has its own row beside the SAEs, and `ce` and `kl` use them as ablations."""


@hookspec
def saeval_judges() -> Sequence[type[Judge]]:  # type: ignore[empty-body]
    """Judges: classes whose `name` is chosen by `use:` in a suite's `judge:`, which answer questions about features."""


@hookspec
def saeval_engines() -> Sequence[type[WorkerEngine]]:  # type: ignore[empty-body]
    """Engines: classes whose `name` is chosen by `--engine`, which start the workers of a run."""


@hookspec
def saeval_reports() -> Sequence[Report]:  # type: ignore[empty-body]
    """Writers of tables (chosen by `--format`), comparisons and pages."""


@hookspec
def saeval_check(plan: Plan) -> Sequence[Problem]:  # type: ignore[empty-body]
    """Problems of a plan, checked before any weight is loaded; any problem stops the run with exit code 2."""


@hookspec
def saeval_provenance() -> Sequence[Mapping[str, Any]]:  # type: ignore[empty-body]
    """Facts to record with every result, as mappings of plain data."""


@hookspec
def saeval_run_started(plan: Plan) -> None:
    """Called once, before the first pass."""


@hookspec
def saeval_cell_finished(result: Result) -> None:
    """Called after the result of each cell is on disk."""


@hookspec
def saeval_run_finished(results: Sequence[Result]) -> None:
    """Called once, with every result of the run, including those from the store."""
