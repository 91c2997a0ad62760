"""Do SAEs agree? One-to-one matching of their features: exact, at full width, with a certificate.

The solver stands alone: `match(A, B)` for rows of vectors, `match_sparse(...)` for a similarity given pair by pair,
`certify(A, B, matching)` to check a result over all pairs without trusting the solver.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from saeval.plugin import Metric, Report, hookimpl
from saeval_stability import pages
from saeval_stability.check import problems
from saeval_stability.firing import activity, firings
from saeval_stability.functional import FunctionalStability
from saeval_stability.seeds import SeedStability

if TYPE_CHECKING:
    from saeval.plugin import Plan, Problem
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
    return problems(plan)
