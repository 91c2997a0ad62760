"""`certify`: one run of a suite with reseeds, controls and damaged SAEs beside it, and what it says of every value."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from saeval import arguments
from saeval.api import execute, prepare
from saeval.base.progress import Progress
from saeval.base.run_options import DOSES, RESEEDS, RunOptions
from saeval.collection import Results
from saeval.plan.certification import design
from saeval.plan.plan import Plan
from saeval.registry.discovery import Plugins
from saeval.registry.registry import Registry
from saeval.results.certificate import Certificate
from saeval.results.certifying import Roles, certificate
from saeval.results.leaderboard import from_results

MANIFEST = "manifest.certificate.json"
"""The list of the cells of the last run for a certificate, beside the suite's own."""


@arguments.takes_options
def certify(
    suite: str | Path | Mapping[str, Any],
    *,
    out: str | Path = "results",
    reseeds: int = RESEEDS,
    doses: Sequence[float] = DOSES,
    overrides: Iterable[str] = (),
    plugins: Plugins | None = None,
    progress: Progress | None = None,
    options: RunOptions | None = None,
    **changes: Any,
) -> Certificate:
    """Run a suite with all that tells how far its values can be trusted, and return its certificate.

    The run has `reseeds` further seeds of each metric that draws something, the controls that quality puts in an order,
    and each SAE with its damages at each of `doses`, shares above 0 and up to 1. It adds resumes to the suite's own
    run, but no clean pass. Results are stored in `out/<suite>`, where the suite's own run reads them, and the
    certificate beside them. The other arguments are those of `run`.

    Raises `SaevalError` as `run` does, and for a suite without two SAEs, with live objects or with `precision:`.
    """
    arguments.check("certify", suite=suite, options=options, progress=progress, out=out, plugins=plugins)
    chosen, assignments = arguments.options(certify, options, changes), arguments.assignments("certify", overrides)
    registry = Registry(Plugins() if plugins is None else plugins)
    plan = prepare(suite, registry, chosen, assignments)
    made, *_ = certified(plan, *planned(plan, reseeds, doses), out, progress)
    return made


def planned(plan: Plan, reseeds: int, doses: Sequence[float]) -> tuple[Plan, Roles]:
    """Return the plan of the run that certifies the suite of `plan`, and what its parts are for."""
    body, roles = design(plan, reseeds, doses)
    return prepare(copy.deepcopy(dict(body)), plan.registry, plan.options), roles


def certified(
    plan: Plan, expanded: Plan, roles: Roles, out: str | Path, progress: Progress | None = None
) -> tuple[Certificate, Results, Results]:
    """Run both plans, the suite's own from the results of the first; return the certificate and both results."""
    results = execute(expanded, out, progress, MANIFEST)
    own = execute(_stored(plan), out)
    (board,) = from_results(results, plan.name, {})
    made = certificate(results, board, roles)
    assert own.folder is not None
    made.write(own.folder)
    return made, results, own


def _stored(plan: Plan) -> Plan:
    """Return the plan of a run that takes the results that are there."""
    return replace(plan, options=replace(plan.options, fresh=False))
