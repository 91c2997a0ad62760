"""Probing tasks: from the labels of a data set to one yes-or-no question per class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from jaxtyping import Bool, Int8

from saeval.plugin import Evidence, Undefined, fit_split, fold, names_matching_any, quoted_value, suggestion

if TYPE_CHECKING:
    from torch import Tensor

OUTSIDE = -1
"""The label of a text that is not in a task."""
_BETWEEN = "\0"


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
    """A yes-or-no question about a text: is its class in a column the positive one?"""

    name: str
    column: str
    positive: str


@fold
@fit_split
def class_counts(labels: dict[str, np.ndarray[Any, Any]]) -> ClassCounts:
    """Fold over the fit split: numbers of texts of each class of each column."""
    return ClassCounts.of(labels)


def classes_of(counts: ClassCounts) -> dict[str, list[str]]:
    """Return the classes of each column, in alphabetical order."""
    classes: dict[str, list[str]] = {}
    for name in counts.names.tolist():
        column, _, label = name.partition(_BETWEEN)
        classes.setdefault(column, []).append(label)
    return classes


def probe_tasks(class_counts: ClassCounts, tasks: Sequence[str]) -> tuple[Task, ...]:
    """The tasks that the metric's `tasks` match: one for a column of two classes, one per class of a column of more.

    The positive class of two is the later one in alphabetical order.
    """
    classes = classes_of(class_counts)
    if not classes:
        raise Undefined("the data have no labels; use a source with labels, such as 'labelled'")
    known: list[Task] = []
    for column, labels in classes.items():
        if len(labels) == 2:
            known.append(Task(column, column, labels[1]))
        elif len(labels) > 2:
            known += [Task(f"{column}={label}", column, label) for label in labels]
    if not known:
        column, (label, *_) = next(iter(classes.items()))
        has = f"{quoted_value(column)} has {quoted_value(label)} alone"
        raise Undefined(f"no column of labels has two classes, but {has}; use data with texts of several classes")
    wanted = names_matching_any(tasks, [task.name for task in known])
    for pattern in tasks:
        if not names_matching_any([pattern], [task.name for task in known]):
            near = suggestion(pattern, [task.name for task in known])
            raise Undefined(f"no task matches {quoted_value(pattern)}{near}")
    return tuple(task for task in known if task.name in wanted)


def task_labels(
    labels: dict[str, np.ndarray[Any, Any]], probe_tasks: tuple[Task, ...], mask: Bool[Tensor, "batch seq"]
) -> Int8[np.ndarray, "batch tasks"]:
    """1 for texts of a task's positive class, 0 for its others, -1 for texts outside the task."""
    answers = np.full((len(mask), len(probe_tasks)), OUTSIDE, dtype=np.int8)
    for number, task in enumerate(probe_tasks):
        if task.column in labels:
            given = labels[task.column]
            answers[:, number] = np.where(given == "", OUTSIDE, given == task.positive)
    return answers


def fit_labels(
    task_labels: Int8[np.ndarray, "batch tasks"], validation: Bool[np.ndarray, "batch"]
) -> Int8[np.ndarray, "batch tasks"]:
    """The same, with the texts for validation outside every task."""
    return np.where(validation[:, None], OUTSIDE, task_labels).astype(np.int8)


def validation_labels(
    task_labels: Int8[np.ndarray, "batch tasks"], validation: Bool[np.ndarray, "batch"]
) -> Int8[np.ndarray, "batch tasks"]:
    """The same, with all texts but those for validation outside every task."""
    return np.where(validation[:, None], task_labels, OUTSIDE).astype(np.int8)
