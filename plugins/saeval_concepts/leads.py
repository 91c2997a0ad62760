"""AUCs by task and SAE, and their paired leads over controls and over neurons."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from saeval.plugin import Estimate, Result, charts

NEURONS = "neurons"


@dataclass(frozen=True)
class TaskAUC:
    """The AUCs of one SAE or control on one task, at the middle k."""

    task: str
    k: int
    features: Estimate
    neurons: Estimate


def task_aucs(result: Result) -> list[TaskAUC]:
    """Return the AUCs of a result by task; empty if it stores none without each document."""
    if "value/task_aucs" not in result.arrays:
        return []
    table, arrays = result.values["tasks"], result.array("task_aucs")
    k = middle(result)
    found, start = [], 0
    for row in table["rows"]:
        cells = dict(zip(table["columns"], row, strict=True))
        features, neurons, sizes = arrays[:, start : (start := start + int(cells["documents"]))]
        values = (cells[f"auc features@{k}"], cells[f"auc neurons@{k}"])
        of = [
            Estimate(math.nan if value is None else value, without, sizes)
            for value, without in zip(values, (features, neurons), strict=True)
        ]
        found.append(TaskAUC(str(cells["task"]), k, *of))
    return found


def middle(result: Result) -> int:
    """Return the k of a result's headline."""
    k = sorted(set(result.cell["params"]["k"]))
    return int(k[len(k) // 2])


class Lead(NamedTuple):
    """The AUC of an SAE's features on a task minus that of a reference on the same texts."""

    result: Result
    task: str
    k: int
    over: str
    auc: float
    other: float
    value: float
    ci95: tuple[float, float] | None


def control_of(result: Result) -> str:
    """Return the name of a control's kind; empty for an SAE."""
    subject = result.cell["subjects"][0]
    return str(subject.get("control", "")) if subject["kind"] == "control" else ""


def draws_of(result: Result, results: Sequence[Result], control: str) -> list[Result]:
    """Return the draws of a control of this kind that were built from an SAE, or that no SAE of its hook is part of."""
    subject = result.cell["subjects"][0]
    own = [r for r in results if control_of(r) == control and r.metric == result.metric]
    keys = {id(r): r.cell["subjects"][0].get("of_key") for r in own}
    built = [r for r in own if keys[id(r)] == subject.get("key")]
    free = [r for r in own if keys[id(r)] is None and r.cell["subjects"][0]["hook_name"] == subject["hook_name"]]
    return built or free


def leads(results: Sequence[Result]) -> dict[str, list[Lead]]:
    """Return the leads of all SAEs on all tasks over each kind of control, or over neurons if there is no control.

    A control with the AUCs of its SAE everywhere, such as one that changes the decoder alone, is left out.
    """
    saes = [r for r in results if not control_of(r)]
    found = {}
    for control in dict.fromkeys(filter(None, map(control_of, results))):
        over = [lead for sae in saes for lead in _over(sae, draws_of(sae, results, control), control)]
        if any(lead.value != 0 for lead in over):
            found[control] = over
    return found or {NEURONS: [_lead(sae, own, NEURONS, [own.neurons]) for sae in saes for own in task_aucs(sae)]}


def _over(sae: Result, draws: Sequence[Result], control: str) -> list[Lead]:
    others = [{own.task: own.features for own in task_aucs(draw)} for draw in draws]
    return [
        _lead(sae, own, control, paired)
        for own in task_aucs(sae)
        if (paired := [other[own.task] for other in others if _same_texts(other.get(own.task), own.features)])
    ]


def _same_texts(a: Estimate | None, b: Estimate) -> bool:
    return a is not None and np.array_equal(a.sizes, b.sizes)


def _lead(sae: Result, own: TaskAUC, over: str, others: Sequence[Estimate]) -> Lead:
    """Return a paired lead over the mean of several draws, whose spread widens the interval."""
    other = others[0]
    for draw in others[1:]:
        other = other + draw
    other = other / len(others)
    difference = own.features - other
    error = difference.stderr
    if error is not None and len(others) > 1:
        error = math.hypot(error, float(np.std([draw.value for draw in others], ddof=1)) / math.sqrt(len(others)))
    ends = charts.interval(difference.value, error, difference.effective)
    return Lead(sae, own.task, own.k, over, own.features.value, other.value, difference.value, ends)
