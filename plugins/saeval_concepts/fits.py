"""Which rows a probe is fitted to, and with which labels: few of them, few of one class, labels that are wrong."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Bool, Int8, UInt64

from saeval.plugin import PerRow, fit_split, fold, hashed
from saeval_concepts.rows import ChosenTokens, answers_of, below, held_out, of_rows, types_of
from saeval_concepts.tasks import OUTSIDE, Task

_KEY, _OF = "key", "label "
"""Column of a row's key, and begin of the names of columns with its labels."""


def may_be_fitted(
    validation: Bool[np.ndarray, "batch"],
    chosen_tokens: ChosenTokens | None,
    held_out_types: float = 0.0,
    seed: int = 0,
) -> Bool[np.ndarray, "n"]:
    """Rows that may be fitted: not those of validation texts, and not tokens of held-out types."""
    validating = of_rows(validation, chosen_tokens)
    never = validating | held_out(types_of(chosen_tokens, len(validating)), held_out_types, seed)
    return np.asarray(~never)


@fold
@fit_split
def fit_candidates(
    labels: dict[str, np.ndarray[Any, Any]],
    chosen_tokens: ChosenTokens | None,
    may_be_fitted: Bool[np.ndarray, "n"],
    row_keys: UInt64[np.ndarray, "n"],
    fit_rows: int | None = None,
    positive_share: float | None = None,
) -> PerRow:
    """Fold over the fit split: keys and labels of the rows that may be fitted, of which some are to be chosen.

    It has no rows if all of them are.
    """
    given: Mapping[str, np.ndarray[Any, Any]] = labels if chosen_tokens is None else chosen_tokens.labels
    rows = np.flatnonzero(may_be_fitted)[: 0 if (fit_rows, positive_share) == (None, None) else None]
    texts = rows if chosen_tokens is None else chosen_tokens.rows[rows]
    return PerRow.of(texts, **{_KEY: row_keys[rows]}, **{f"{_OF}{name}": own[rows] for name, own in given.items()})


def last_keys(
    fit_candidates: PerRow,
    probe_tasks: tuple[Task, ...],
    fit_rows: int | None = None,
    positive_share: float | None = None,
    seed: int = 0,
) -> UInt64[np.ndarray, "tasks 2"] | None:
    """By task and class the largest hash of a row that is fitted; None if all rows are.

    The rows with the smallest hashes of (seed, task, row) are: a larger `fit_rows` keeps them and adds others.
    """
    if (fit_rows, positive_share) == (None, None):
        return None
    limits = np.zeros((len(probe_tasks), 2), dtype=np.uint64)
    for number, task in enumerate(probe_tasks):
        y = answers_of(task, fit_candidates[f"{_OF}{task.column}"])
        keys = hashed(seed, "fit rows", task.name, fit_candidates[_KEY])
        sizes = quota(int((y == 0).sum()), int((y == 1).sum()), fit_rows, positive_share)
        for label, size in enumerate(sizes):
            if size:
                limits[number, label] = np.sort(keys[y == label])[size - 1]
    return limits


def quota(no: int, yes: int, rows: int | None, share: float | None) -> tuple[int, int]:
    """Return how many rows of each class to fit, at least one of each: at most `rows`, with this share of positives.

    Without a share, it is that of the data. Where a class has too few rows for it, the total becomes smaller.
    """
    if not (no and yes):
        return no, yes
    share = yes / (no + yes) if share is None else share
    total = min(no + yes if rows is None else rows, yes / share, no / (1 - share))
    positive = min(max(round(total * share), 1), yes)
    return min(max(round(total) - positive, 1), no), positive


def fit_labels(
    task_labels: Int8[np.ndarray, "n tasks"],
    may_be_fitted: Bool[np.ndarray, "n"],
    row_keys: UInt64[np.ndarray, "n"],
    last_keys: UInt64[np.ndarray, "tasks 2"] | None,
    probe_tasks: tuple[Task, ...],
    label_noise: float = 0.0,
    seed: int = 0,
) -> Int8[np.ndarray, "n tasks"]:
    """Labels of the rows that are fitted, -1 for all others; a share `label_noise` of them, by hash, are reversed."""
    answers = np.where(may_be_fitted[:, None], task_labels, OUTSIDE).astype(np.int8)
    for number, task in enumerate(probe_tasks):
        own = answers[:, number]
        if last_keys is not None:
            beyond = hashed(seed, "fit rows", task.name, row_keys) > last_keys[number][np.maximum(own, 0)]
            own[beyond] = OUTSIDE
        wrong = (own != OUTSIDE) & below(hashed(seed, "label noise", task.name, row_keys), label_noise)
        own[wrong] = 1 - own[wrong]
    return answers


def validation_labels(
    task_labels: Int8[np.ndarray, "n tasks"],
    validation: Bool[np.ndarray, "batch"],
    chosen_tokens: ChosenTokens | None,
) -> Int8[np.ndarray, "n tasks"]:
    """The labels of rows of the texts for validation, -1 for all others."""
    return np.where(of_rows(validation, chosen_tokens)[:, None], task_labels, OUTSIDE).astype(np.int8)
