"""The rows of probes: the texts of a batch, or tokens chosen from them, with their answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Int, Int8, UInt64

from saeval.plugin import hashed, names_matching_any
from saeval_concepts.tasks import OUTSIDE, Task

if TYPE_CHECKING:
    from torch import Tensor

NO_TYPE = -1
"""The token type of a row that is a text."""
_LARGEST = np.uint64(2**64 - 1)


@dataclass(frozen=True, eq=False)
class ChosenTokens:
    """Tokens of a batch that are rows of probes."""

    rows: Int[np.ndarray, "n"]
    """Row of the batch."""
    positions: Int[np.ndarray, "n"]
    types: Int[np.ndarray, "n"]
    """Token id."""
    labels: Mapping[str, Int8[np.ndarray, "n"]]
    """By label of tokens: 1, 0, or -1 for tokens that were not chosen for it."""


def chosen_tokens(
    tokens: Int[Tensor, "batch seq"],
    included: Bool[Tensor, "batch seq"],
    token_labels: Mapping[str, Int8[Tensor, "batch seq"]],
    token_keys: UInt64[np.ndarray, "batch seq"],
    tasks: Sequence[str] = ("*",),
    pooling: str = "mean",
    per_row: int = 4,
    per_quadrant: int | None = None,
    seed: int = 0,
) -> ChosenTokens | None:
    """For `pooling: token`, up to `per_row` tokens of each class of each task from each row of text; else None.

    With `per_quadrant`, up to that many of each combination of answers to all tasks, each with all of its answers.
    A hash of (seed, task, row, position) chooses them, so that they are the same for every SAE.
    """
    if pooling != "token":
        return None
    inside = included.cpu().numpy()
    given = {name: token_labels[name].cpu().numpy() for name in names_matching_any(tasks, list(token_labels))}
    labels = {name: np.full(inside.shape, OUTSIDE, dtype=np.int8) for name in given}
    if per_quadrant is None:
        for name, answers in given.items():
            keys = hashed(seed, "tokens", name, token_keys)
            for label in (0, 1):
                labels[name][_first(inside & (answers == label), keys, per_row)] = label
    elif given:
        every = np.stack(list(given.values()), axis=-1)
        known = inside & (every != OUTSIDE).all(-1)
        keys = hashed(seed, "tokens", *given, token_keys)
        for answers in np.unique(every[known], axis=0):
            first = _first(known & (every == answers).all(-1), keys, per_quadrant)
            for name, label in zip(given, answers, strict=True):
                labels[name][first] = label
    taken = np.any([own != OUTSIDE for own in labels.values()], axis=0) if labels else np.zeros_like(inside)
    rows, positions = np.nonzero(taken)
    types = tokens.cpu().numpy()[rows, positions]
    return ChosenTokens(rows, positions, types, {name: own[rows, positions] for name, own in labels.items()})


def _first(
    member: Bool[np.ndarray, "batch seq"], keys: UInt64[np.ndarray, "batch seq"], count: int
) -> Bool[np.ndarray, "batch seq"]:
    """Return the members of each row with the smallest keys, at most `count`."""
    order = np.argsort(np.where(member, keys, _LARGEST), axis=1, kind="stable")[:, :count]
    first = np.zeros_like(member)
    np.put_along_axis(first, order, values=True, axis=1)
    return np.asarray(first & member)


def of_rows(of_texts: np.ndarray[Any, Any], chosen: ChosenTokens | None) -> np.ndarray[Any, Any]:
    """Return for each row of probes the entry of its text, `[batch, ...]` → `[n, ...]`."""
    return of_texts if chosen is None else of_texts[chosen.rows]


def task_labels(
    labels: dict[str, np.ndarray[Any, Any]],
    probe_tasks: tuple[Task, ...],
    mask: Bool[Tensor, "batch seq"],
    chosen_tokens: ChosenTokens | None,
) -> Int8[np.ndarray, "n tasks"]:
    """1 for rows of a task's positive class, 0 for its others, -1 for rows outside it; rows are texts or tokens."""
    given: Mapping[str, np.ndarray[Any, Any]] = labels if chosen_tokens is None else chosen_tokens.labels
    count = len(mask) if chosen_tokens is None else len(chosen_tokens.rows)
    answers = np.full((count, len(probe_tasks)), OUTSIDE, dtype=np.int8)
    for number, task in enumerate(probe_tasks):
        if task.column in given:
            answers[:, number] = answers_of(task, given[task.column])
    return answers


def answers_of(task: Task, given: np.ndarray[Any, Any]) -> Int8[np.ndarray, "n"]:
    """Return the answers to a task from its column: classes as text, or labels of tokens."""
    if given.dtype.kind == "i":
        return given.astype(np.int8)
    return np.where(given == "", OUTSIDE, given == task.positive).astype(np.int8)


def row_keys(
    token_keys: UInt64[np.ndarray, "batch seq"], chosen_tokens: ChosenTokens | None
) -> UInt64[np.ndarray, "n"]:
    """Hash of each row of probes: of a text's place in the stream, or of a token's."""
    if chosen_tokens is None:
        return np.asarray(token_keys[:, 0])
    return np.asarray(token_keys[chosen_tokens.rows, chosen_tokens.positions])


def types_of(chosen: ChosenTokens | None, count: int) -> Int[np.ndarray, "n"]:
    """Return the token type of each row; -1 for texts."""
    return np.full(count, NO_TYPE, dtype=np.int64) if chosen is None else chosen.types.astype(np.int64)


def held_out(types: Int[np.ndarray, "n"], share: float, seed: int) -> Bool[np.ndarray, "n"]:
    """Return the rows whose token type is one of those that are never fitted: this share of all types, by hash."""
    return np.asarray((types != NO_TYPE) & below(hashed(seed, "held-out types", types), share))


def below(keys: UInt64[np.ndarray, "n"], share: float) -> Bool[np.ndarray, "n"]:
    return np.asarray(keys / np.float64(2**64) < share)
