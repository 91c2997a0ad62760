"""Checks a suite's `leaderboard:` and `precision:` before anything runs: what they name are the suite's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from saeval.base.errors import Problem, suggestion
from saeval.base.formatting import counted
from saeval.interfaces.metric import Metric, declares
from saeval.interfaces.substitute import Subject
from saeval.suite.schema import Suite
from saeval.suite.yaml_marks import Location


def layout_problems(
    suite: Suite, metrics: Mapping[str, Metric | None], controls: Sequence[Subject] | None
) -> list[Problem]:
    """One problem for each name that the suite does not have, at its place.

    `metrics` has each configured metric by its alias, and None for one whose entry is wrong; `controls` is None where
    the suite's controls are not known.
    """
    board = suite.body.leaderboard
    named: list[tuple[Location, str]] = [(("columns", i), c) for i, c in enumerate(board.columns)]
    named += [(("rank_by",), board.rank_by)] if board.rank_by else []
    if isinstance(board.against, Mapping):
        named += [(("against", name, i), c) for name, columns in board.against.items() for i, c in enumerate(columns)]
    problems = []
    for place, column in named:
        fault = _fault(column, metrics)
        if fault:
            problems.append(suite.problem(f"column '{column}': {fault}", "leaderboard", *place))
    known = {str((control.facts or {}).get("control")) for control in controls or []}
    for index, name in enumerate(board.against):
        if controls is not None and name not in known:
            message = f"against: no control '{name}' in this suite's 'controls:'{suggestion(name, known)}"
            in_mapping = isinstance(board.against, Mapping)
            place = ("leaderboard", "against", name if in_mapping else index)
            problems.append(suite.problem(message, *place, key=in_mapping))
    for name in suite.body.precision:
        alias, _, value = name.partition(".")
        if alias in metrics and not value:
            fault = f"'{alias}' is a metric; name one of its values, as {alias}.VALUE"
        else:
            fault = _fault(name, metrics)
        if fault:
            problems.append(suite.problem(f"precision: {fault}", "precision", name, key=True))
    return problems


def without_control(suite: Suite, subjects: Sequence[Subject]) -> list[str]:
    """A sentence for each control of `against:` that is built from, or at the hooks of, some of the SAEs only."""
    saes = [subject for subject in subjects if subject.kind == "sae"]
    sentences = []
    for name in suite.body.leaderboard.against:
        controls = [s for s in subjects if s.kind == "control" and (s.facts or {}).get("control") == name]
        served = {(s.hook_name, s.parent.name if s.parent else None) for s in controls}
        lacking = [s.name for s in saes if not served & {(s.hook_name, s.name), (s.hook_name, None)}]
        if lacking:
            more = f" and {len(lacking) - _SHOWN} more" if len(lacking) > _SHOWN else ""
            count = f"{len(lacking)} of {counted(len(saes), 'SAE')}"
            sentences.append(
                f"against '{name}': {count} will have no difference, since the control's 'of:' leaves them out: "
                f"{', '.join(lacking[:_SHOWN])}{more}"
            )
    return sentences


_SHOWN = 6
"""SAEs that a sentence names."""


def _fault(column: str, metrics: Mapping[str, Metric | None]) -> str | None:
    """Why no result will have this column; None where one may."""
    alias, _, value = column.partition(".")
    if alias not in metrics:
        return f"no metric '{alias}' in this suite{suggestion(alias, metrics)}"
    metric = metrics[alias]
    declared = metric.value_names if metric is not None else None
    if declared is None or (value and declares(declared, value)):
        return None
    if not declared:
        return f"metric '{alias}' gives no number, so it has no column"
    if value:
        return f"metric '{alias}' has no value '{value}'{suggestion(value, declared)}"
    if len(declared) == 1:  # a metric with one value may be named alone
        return None
    first = next(iter([*metric.headline, *declared])) if metric is not None else ""
    return f"metric '{alias}' has several values; name one, as in '{alias}.{first}'; known: {', '.join(declared)}"
