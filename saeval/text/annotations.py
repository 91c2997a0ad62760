"""Labels of rows and of their tokens, in step with the rows of a `TokenDataset`."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from jaxtyping import Bool, UInt64

from saeval.base.errors import SaevalError
from saeval.interfaces.data import Document

if TYPE_CHECKING:
    import torch

MOST_TASKS = 64
"""Most tasks of tokens in one data set: a token has one bit for each."""


@dataclass(frozen=True, eq=False)
class Annotations:
    """Labels of n rows and of their inputs."""

    labels: Mapping[str, np.ndarray[Any, Any]]
    """By task of documents: the class of each row, as text; empty text for a row outside the task."""
    validation: Bool[np.ndarray, "n"]
    """Rows of the fit split on which choices are made; nothing is fitted to them."""
    tasks: Sequence[str]
    """Tasks of tokens, in the order of the bits."""
    covered: UInt64[np.ndarray, "n"]
    """The tasks of tokens that each row's document belongs to."""
    bits: UInt64[np.ndarray, "n context+1"]
    """The tasks whose label each token has."""

    def supplied(self, rows: np.ndarray[Any, Any], device: torch.device | str) -> dict[str, Any]:
        """Return the quantities `labels`, `token_labels` and `validation` of some rows."""
        import torch  # late: building and hashing rows needs numpy alone

        marks: dict[str, Any] = {}
        for number, task in enumerate(self.tasks):
            bit = np.uint64(1) << np.uint64(number)
            inside = (self.bits[rows, :-1] & bit != 0).astype(np.int8)
            inside[self.covered[rows] & bit == 0] = OUTSIDE
            marks[task] = torch.from_numpy(inside).to(device)
        labels = {task: classes[rows] for task, classes in self.labels.items()}
        return {"labels": labels, "token_labels": marks, "validation": self.validation[rows]}

    @cached_property
    def fingerprint(self) -> str:
        """Hash of all labels."""
        state = self.state()
        digest = hashlib.sha256(repr([self.tasks, list(self.labels)]).encode())
        for name, array in sorted(state.items()):
            digest.update(f"\0{name} {array.dtype.str} {array.shape}\0".encode())
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()

    def state(self) -> dict[str, np.ndarray[Any, Any]]:
        """Return everything as arrays, from which `from_state` restores it."""
        columns = {f"label {number}": classes for number, classes in enumerate(self.labels.values())}
        named = {"tasks": np.array(list(self.tasks), dtype=str), "columns": np.array(list(self.labels), dtype=str)}
        return {**columns, **named, "validation": self.validation, "covered": self.covered, "bits": self.bits}

    @classmethod
    def from_state(cls, state: Mapping[str, np.ndarray[Any, Any]]) -> Self:
        columns = state["columns"].tolist()
        labels = {column: state[f"label {number}"] for number, column in enumerate(columns)}
        return cls(labels, state["validation"], state["tasks"].tolist(), state["covered"], state["bits"])

    def padded(self, extra: int) -> Self:
        """Return the same with `extra` more columns of tokens on the right."""
        return type(self)(
            self.labels, self.validation, self.tasks, self.covered, np.pad(self.bits, ((0, 0), (0, extra)))
        )


OUTSIDE = -1
"""The label of a token whose document is not in the task."""


class Annotator:
    """Collects the annotations of documents while they are packed into rows."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._documents: dict[int, Document] = {}
        self._marks: dict[int, np.ndarray[Any, Any]] = {}
        self._tasks: dict[str, int] = {}

    def __bool__(self) -> bool:
        return bool(self._documents)

    def add(self, number: int, document: Document, offsets: Sequence[tuple[int, int]] | None) -> None:
        """Take a document's labels; `offsets` are the characters (first, end) of each token of its text.

        `SaevalError` for a span outside the text, and for more than 64 tasks of tokens.
        """
        if not (document.labels or document.spans or document.validation):
            return
        self._documents[number] = document
        if not document.spans:
            return
        assert offsets is not None
        text = str(document.text)
        bits = np.zeros(len(offsets), dtype=np.uint64)
        for task, spans in document.spans.items():
            if task not in self._tasks and len(self._tasks) == MOST_TASKS:
                raise SaevalError(f"data '{self._source}': more than {MOST_TASKS} tasks of tokens; choose some of them")
            bit = np.uint64(1) << np.uint64(self._tasks.setdefault(task, len(self._tasks)))
            bits[covers(text, spans, offsets, f"document '{document.name}'")] |= bit
        self._marks[number] = bits

    def skip(self, number: int, tokens: int) -> None:
        """Leave out the first tokens of a document."""
        if number in self._marks:
            self._marks[number] = self._marks[number][tokens:]

    def rows(
        self, owners: Sequence[int], starts: Sequence[int], lengths: Sequence[int], first: int, width: int
    ) -> Annotations | None:
        """Return the annotations of rows, each some tokens of its owner put after `first` others; None without any."""
        if not self:
            return None
        bits, covered = np.zeros((len(owners), width), np.uint64), np.zeros(len(owners), np.uint64)
        for row, (owner, start, length) in enumerate(zip(owners, starts, lengths, strict=True)):
            if owner in self._marks:
                bits[row, first : first + length] = self._marks[owner][start : start + length]
                for task in self._documents[owner].spans:
                    covered[row] |= np.uint64(1) << np.uint64(self._tasks[task])
        documents = [self._documents.get(owner, Document("")) for owner in owners]
        names = sorted({name for document in documents for name in document.labels})
        labels = {name: np.array([document.labels.get(name, "") for document in documents]) for name in names}
        validation = np.array([document.validation for document in documents], dtype=bool)
        return Annotations(labels, validation, list(self._tasks), covered, bits)


def covers(
    text: str, spans: Sequence[tuple[int, int]], offsets: Sequence[tuple[int, int]], where: str
) -> Bool[np.ndarray, "tokens"]:
    """Return the tokens of which a character inside a span is not white space; for tokens of white space, any one.

    `SaevalError` for a span that is empty or outside the text.
    """
    inside = np.zeros(len(text), dtype=bool)
    for start, end in spans:
        if not 0 <= start < end <= len(text):
            raise SaevalError(f"{where}: the span [{start}, {end}) is not inside the text of {len(text)} characters")
        inside[start:end] = True
    ink = np.fromiter((not character.isspace() for character in text), dtype=bool, count=len(text))
    edges = np.asarray(offsets, dtype=np.int64).reshape(-1, 2)

    def count(flags: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        sums = np.concatenate([[0], np.cumsum(flags)])
        return np.asarray(sums[edges[:, 1]] - sums[edges[:, 0]])

    return np.where(count(ink) > 0, count(inside & ink) > 0, count(inside) > 0)
