"""Probing tasks: from the labels of a data set to one yes-or-no question per class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from jaxtyping import Bool, Int8

from saeval.plugin import (
    Evidence,
    Metric,
    Plan,
    Problem,
    Undefined,
    fit_split,
    fold,
    formatting,
    names_matching_any,
    quoted_value,
    suggestion,
)

if TYPE_CHECKING:
    from torch import Tensor

OUTSIDE = -1
"""The label of a text or token that is not in a task."""
LEAST = 20
"""Fewest tokens of the fit split with and without the label of a task."""
_BETWEEN = "\0"
_NO_TOKENS = (
    "the data have no labels of tokens; use a source with them, such as 'python-tokens', or 'labelled' with 'spans'"
)


@dataclass(frozen=True, eq=False)
class ClassCounts(Evidence):
    """Numbers of texts of each class of each column."""

    names: np.ndarray[Any, Any]
    """Column and class, with a null character between."""
    counts: np.ndarray[Any, Any]

    @classmethod
    def of(cls, labels: Mapping[str, np.ndarray[Any, Any]]) -> Self:
        words = [f"{column}{_BETWEEN}{label}" for column, given in labels.items() for label in given.tolist() if label]
        names, counts = np.unique(np.array(words, dtype=str), return_counts=True)
        return cls(names, counts)

    def __add__(self, other: Self) -> Self:
        names, where = np.unique(np.concatenate([self.names, other.names]), return_inverse=True)
        return type(self)(names, np.bincount(where, np.concatenate([self.counts, other.counts])).astype(np.int64))


@dataclass(frozen=True)
class Task:
    """A yes-or-no question about a text or token: is its class in a column the positive one?"""

    name: str
    column: str
    positive: str


@fold
@fit_split
def class_counts(
    labels: dict[str, np.ndarray[Any, Any]],
    token_labels: Mapping[str, Int8[Tensor, "batch seq"]],
    included: Bool[Tensor, "batch seq"],
    pooling: str = "mean",
) -> ClassCounts:
    """Fold over the fit split: numbers of texts of each class of each column; for `pooling: token`, of tokens."""
    if pooling != "token":
        return ClassCounts.of(labels)
    names, counts = [], []
    for name, given in token_labels.items():
        own = given[included.to(given.device)]
        for label in (0, 1):
            if count := int((own == label).sum()):
                names.append(f"{name}{_BETWEEN}{label}")
                counts.append(count)
    return ClassCounts(np.array(names, dtype=str), np.array(counts, dtype=np.int64))


def classes_of(counts: ClassCounts) -> dict[str, dict[str, int]]:
    """Return the classes of each column, in alphabetical order, with their numbers of texts."""
    classes: dict[str, dict[str, int]] = {}
    for name, count in zip(counts.names.tolist(), counts.counts.tolist(), strict=True):
        column, _, label = name.partition(_BETWEEN)
        classes.setdefault(column, {})[label] = count
    return classes


def probe_tasks(class_counts: ClassCounts, tasks: Sequence[str], pooling: str = "mean") -> tuple[Task, ...]:
    """The tasks that the metric's `tasks` match: one for a column of two classes, one per class of a column of more.

    The positive class of two is the later one in alphabetical order. For `pooling: token`, each label of tokens is a
    task; `Undefined` if fewer than 20 tokens of the fit split have it, or lack it.
    """
    classes = classes_of(class_counts)
    if pooling == "token":
        return _of_tokens(classes, tasks)
    if not classes:
        tokens = "labels of tokens need 'pooling: token'"
        raise Undefined(f"the data have no labels; use a source with labels, such as 'labelled' ({tokens})")
    known = _of_texts(classes)
    if not known:
        column, (label, *_) = next(iter(classes.items()))
        has = f"{quoted_value(column)} has {quoted_value(label)} alone"
        raise Undefined(f"no column of labels has two classes, but {has}; use data with texts of several classes")
    return _matching(known, tasks)


def _of_texts(classes: Mapping[str, Mapping[str, int]]) -> list[Task]:
    known: list[Task] = []
    for column, labels in classes.items():
        if len(labels) == 2:
            known.append(Task(column, column, list(labels)[1]))
        elif len(labels) > 2:
            known += [Task(f"{column}={label}", column, label) for label in labels]
    return known


def unmatched_tasks(plan: Plan, kinds: tuple[type[Metric], ...]) -> list[Problem]:
    """Return a problem for each metric of these kinds that the labels of the fit split cannot serve.

    One of its `tasks` matches none of them, or they match fewer than its `least_tasks`, or more than its `most_tasks`.
    """
    metrics: dict[Any, Any] = {
        cell.entry.location: cell.metric for cell in plan.cells if isinstance(cell.metric, kinds)
    }
    annotations = getattr(plan.streams.fit, "annotations", None) if metrics else None
    if annotations is None:
        return []
    known = {"token": [Task(name, name, "1") for name in annotations.tasks]}
    of_texts = _of_texts(classes_of(ClassCounts.of(annotations.labels)))
    problems = []
    for location, metric in metrics.items():
        tasks = known.get(getattr(metric, "pooling", ""), of_texts)
        try:
            if not tasks and tasks is known["token"]:
                raise Undefined(_NO_TOKENS)
            if tasks:
                counted_tasks(_matching(tasks, metric.tasks), metric)
        except Undefined as reason:
            problems.append(plan.suite.problem(f"metric '{metric.name}': {reason}", *location))
    return problems


def counted_tasks(tasks: tuple[Task, ...], metric: Any) -> None:
    """Raise `Undefined` if there are fewer tasks than a metric's `least_tasks`, or more than its `most_tasks`."""
    least, most = getattr(metric, "least_tasks", 1), getattr(metric, "most_tasks", None)
    names = ", ".join(repr(task.name) for task in tasks)
    if most is not None and len(tasks) > most:
        raise Undefined(f"'tasks' matches {formatting.counted(len(tasks), 'task')} ({names}); name the {most} to use")
    if len(tasks) < least:
        raise Undefined(f"'tasks' matches {formatting.counted(len(tasks), 'task')} ({names}); {least} are needed")


def _of_tokens(classes: Mapping[str, Mapping[str, int]], tasks: Sequence[str]) -> tuple[Task, ...]:
    if not classes:
        raise Undefined(_NO_TOKENS)
    matching = _matching([Task(name, name, "1") for name in classes], tasks)
    for task in matching:
        for label, word in (("1", "with"), ("0", "without")):
            if (count := classes[task.name].get(label, 0)) < LEAST:
                raise Undefined(
                    f"the fit split has {count} tokens {word} the label {quoted_value(task.name)}; {LEAST} are needed: "
                    "add texts, or leave it out of 'tasks'"
                )
    return matching


def _matching(known: Sequence[Task], tasks: Sequence[str]) -> tuple[Task, ...]:
    wanted = names_matching_any(tasks, [task.name for task in known])
    for pattern in tasks:
        if not names_matching_any([pattern], [task.name for task in known]):
            near = suggestion(pattern, [task.name for task in known])
            raise Undefined(f"no task matches {quoted_value(pattern)}{near}")
    return tuple(task for task in known if task.name in wanted)
