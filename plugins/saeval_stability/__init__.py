"""Do SAEs agree? One-to-one matching of their features: exact, at full width, with a certificate.

The solver stands alone: `match(A, B)` for rows of vectors, `match_sparse(...)` for a similarity given pair by pair,
`certify(A, B, matching)` to check a result over all pairs without trusting the solver.
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
    from saeval_stability import certificate, matching  # late: a compiler is loaded, and only a matching needs it

    return getattr(certificate if name == "certify" else matching, name)


@hookimpl
def saeval_metrics() -> list[type[Metric]]:
    return [SeedStability, FunctionalStability]


@hookimpl
def saeval_quantities() -> list[Callable[..., Any]]:
    return [activity, firings]


@hookimpl
def saeval_reports() -> list[Report]:
    return [Report("stability", description="features matched between SAEs: plots and tables", pages=pages.pages)]


@hookimpl
def saeval_check(plan: Plan) -> list[Problem]:
    """Groups of one SAE, of SAEs of several hooks, and kinds that do not label every member once."""
    found = []
    for cell in plan.cells:
        if isinstance(cell.metric, SeedStability | FunctionalStability) and (message := _fault(cell)):
            found.append(plan.suite.problem(message, *cell.entry.location))
    return found


def _fault(cell: Cell) -> str | None:
    metric = cell.metric
    assert isinstance(metric, SeedStability | FunctionalStability)
    names, group = [s.name for s in cell.subjects], f"metric '{metric.name}': group '{cell.entry.over}'"
    if len(names) < 2:
        return f"{group} has one SAE, '{names[0]}'; it takes two or more to compare"
    first = cell.subjects[0]
    for subject in cell.subjects[1:]:
        for what, ours, its in (
            ("is at", first.hook_name, subject.hook_name),
            ("reads", first.input_hook or first.hook_name, subject.input_hook or subject.hook_name),
        ):
            if ours != its:
                told = f"'{first.name}' {what} {ours}, '{subject.name}' {what} {its}"
                return f"{group} has SAEs of different hooks: {told}; features compare within one hook"
    try:
        labelled(names, metric.kinds)
    except SaevalError as error:
        return f"{group}: {error}"
    return None
