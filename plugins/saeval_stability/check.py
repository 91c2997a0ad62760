"""What cannot be compared, told before anything is loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING

from saeval.plugin import Problem, SaevalError
from saeval_stability.functional import FunctionalStability
from saeval_stability.group import labelled
from saeval_stability.seeds import SeedStability

if TYPE_CHECKING:
    from saeval.plugin import Cell, Plan


def problems(plan: Plan) -> list[Problem]:
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
