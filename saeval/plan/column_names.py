"""Checks before a run that the names in a suite's `leaderboard:` and `precision:` exist in the suite."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from saeval.base.errors import Problem, suggestion
from saeval.base.formatting import counted
from saeval.base.parameters import Location
from saeval.interfaces.metric import Metric, declares
from saeval.interfaces.substitute import Subject
from saeval.suite.schema import Suite


def layout_problems(
    suite: Suite, metrics: Mapping[str, Metric | None], controls: Sequence[Subject] | None
) -> list[Problem]:
    """Return a problem for each unknown name, with its place in the suite.

    `metrics` has the configured metrics by alias, and None for one whose entry is wrong; `controls` is None if the
    suite's controls are unknown.
    """
    board = suite.body.leaderboard
    columns: list[tuple[Location, str]] = [(("columns", i), c) for i, c in enumerate(board.columns)]
    columns += [(("rank_by",), board.rank_by)] if board.rank_by else []
    if isinstance(board.against, Mapping):
        columns += [(("against", name, i), c) for name, listed in board.against.items() for i, c in enumerate(listed)]
    problems = []
    for place, column in columns:
        fault = _fault(column, metrics)
        if fault:
            problems.append(suite.problem(f"column '{column}': {fault}", "leaderboard", *place))
    control_names = {str((control.facts or {}).get("control")) for control in controls or []}
    for index, name in enumerate(board.against):
        if controls is not None and name not in control_names:
            message = f"against: no control '{name}' in this suite's 'controls:'{suggestion(name, control_names)}"
            in_mapping = isinstance(board.against, Mapping)
            place = ("leaderboard", "against", name if in_mapping else index)
            problems.append(suite.problem(message, *place, key=in_mapping))
    for name in suite.body.precision:
        alias, _, value = name.partition(".")
        if alias in metrics and not value:
            fault = f"'{alias}' is a metric; name one of its values, as in {alias}.VALUE"
        else:
            fault = _fault(name, metrics)
        if fault:
            problems.append(suite.problem(f"precision: {fault}", "precision", name, key=True))
    return problems


def without_control(suite: Suite, subjects: Sequence[Subject]) -> list[str]:
    """Return a sentence for each control of `against:` that exists for some of the SAEs only."""
    saes = [subject for subject in subjects if subject.kind == "sae"]
    sentences = []
    for name in suite.body.leaderboard.against:
        controls = [s for s in subjects if s.kind == "control" and (s.facts or {}).get("control") == name]
        if not controls:  # of groups alone
            continue
        covered = {(s.hook_name, s.parent.name if s.parent else None) for s in controls}
        missing = [s.name for s in saes if not covered & {(s.hook_name, s.name), (s.hook_name, None)}]
        if missing:
            more = f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
            count = f"{len(missing)} of {counted(len(saes), 'SAE')}"
            sentences.append(
                f"against '{name}': {count} will have no difference, since the control's 'of:' leaves them out: "
                f"{', '.join(missing[:_SHOWN])}{more}"
            )
    return sentences


_SHOWN = 6
"""Largest number of SAEs that a sentence names."""


def _fault(column: str, metrics: Mapping[str, Metric | None]) -> str | None:
    """Return why no result will have this column; None if one may have it."""
    alias, _, value = column.partition(".")
    if alias not in metrics:
        return f"no metric '{alias}' in this suite{suggestion(alias, metrics)}"
    metric = metrics[alias]
    declared = metric.value_names if metric is not None else None
    if declared is None or (value and declares(declared, value)):
        return None
    if not declared:
        return f"metric '{alias}' has no numbers, so it has no column"
    if value:
        return f"metric '{alias}' has no value '{value}'{suggestion(value, declared)}"
    if len(declared) == 1:  # a metric with one value may be named alone
        return None
    first = next(iter([*metric.headline, *declared])) if metric is not None else ""
    return f"metric '{alias}' has several values; name one, as in '{alias}.{first}'; known: {', '.join(declared)}"
