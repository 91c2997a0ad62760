"""Agreement between SAEs: exact one-to-one matching of their features at full width, with a certificate.

The solver can be used on its own: `match(A, B)` for rows of vectors, `match_sparse(...)` for similarities listed pair
by pair, `certify(A, B, matching)` to check a result over all pairs without trusting the solver.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from saeval.plugin import Metric, Problem, Report, SaevalError, hookimpl
from saeval_stability import pages
from saeval_stability.firing import activity, firings
from saeval_stability.functional import FunctionalStability
from saeval_stability.group import labelled
from saeval_stability.seeds import SeedStability

if TYPE_CHECKING:
    from saeval.plugin import Cell, Plan
    from saeval_stability.certificate import certify
    from saeval_stability.matching import Certificate, Matching, Nearest, match, match_sparse

__all__ = ["Certificate", "Matching", "Nearest", "certify", "match", "match_sparse"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from saeval_stability import certificate, matching  # late: they load numba, which only a matching needs

    return getattr(certificate if name == "certify" else matching, name)


@hookimpl
def saeval_metrics() -> list[type[Metric]]:
    return [SeedStability, FunctionalStability]


@hookimpl
def saeval_quantities() -> list[Callable[..., Any]]:
    return [activity, firings]


@hookimpl
def saeval_reports() -> list[Report]:
    return [
        Report("stability", description="features matched between SAEs: charts and tables", sections=pages.sections)
    ]


@hookimpl
def saeval_check(plan: Plan) -> list[Problem]:
    """Refuse groups of one SAE, groups across hooks, and `kinds` that do not label each member exactly once."""
    problems = []
    for cell in plan.cells:
        ours = isinstance(cell.metric, SeedStability | FunctionalStability) and "twin" not in cell.record
        if ours and (message := _problem(cell)):
            problems.append(plan.suite.problem(message, *cell.entry.location))
    return problems


def _problem(cell: Cell) -> str | None:
    metric = cell.metric
    assert isinstance(metric, SeedStability | FunctionalStability)
    names, group = [s.name for s in cell.subjects], f"metric '{metric.name}': group '{cell.entry.over}'"
    if len(names) < 2:
        return f"{group} has one SAE, '{names[0]}'; add at least one more to compare"
    first = cell.subjects[0]
    for subject in cell.subjects[1:]:
        for verb, first_hook, hook in (
            ("is at", first.hook_name, subject.hook_name),
            ("reads", first.input_hook or first.hook_name, subject.input_hook or subject.hook_name),
        ):
            if hook != first_hook:
                hooks = f"'{first.name}' {verb} {first_hook}, '{subject.name}' {verb} {hook}"
                return f"{group} has SAEs of different hooks: {hooks}; only features of one hook can be compared"
    try:
        labelled(names, metric.kinds)
    except SaevalError as error:
        return f"{group}: {error}"
    return None
