"""Texts with labels: tables of one or many tasks, for probes and other metrics of concepts."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

from saeval.plugin import Document, SaevalError, Source, quoted_value, sha256_file
from saeval_data import files
from saeval_data.stdlib import hash_share
from saeval_data.tables import is_csv, records_of

LEAST = 20
"""Fewest documents of each class of a task."""
PARTS = ("fit", "validation", "test")


@dataclass(frozen=True)
class Labelled:
    """One text with its class in each task, and the stretches with each label of tokens."""

    name: str
    """Its own name: file and row."""
    text: str
    labels: Mapping[str, str]
    group: str | None = None
    """Texts of one group are not independent: they are one document, on one side of the split."""
    spans: Mapping[str, Sequence[tuple[int, int]]] = field(default_factory=dict)

    @property
    def document(self) -> str:
        return self.name if self.group is None else self.group


class LabelledTexts(Source):
    """Base class of sources of labelled texts: chooses the rows of each task and splits them by document.

    The texts of a task are a sample in the proportions of its classes, or of equal size with `balance`. A keyed hash
    chooses them, so a larger `rows` keeps the same texts and adds others. Fit, validation and test texts are cut out of
    each class in turn, or, if there are groups, chosen by a hash of the group.
    """

    splits_itself: ClassVar[bool] = True
    defaults: ClassVar[Mapping[str, Any]] = {"keep": "start", "fit_sequences": None}

    def __init__(self, rows: int | None, balance: bool, shares: tuple[float, float, float], draw: int) -> None:
        if rows is not None and rows < 2 * LEAST:
            raise SaevalError(f"data '{self.name}': 'rows' must be at least {2 * LEAST}, found {rows}")
        if not (all(0 <= share <= 1 for share in shares) and abs(sum(shares) - 1) < 1e-9 and shares[0] and shares[2]):
            wanted = "three shares that sum to 1, for fit, validation and test; only validation may be 0"
            raise SaevalError(f"data '{self.name}': 'shares' must be {wanted}; found {list(shares)}")
        self.rows, self.balance, self.shares, self.draw = rows, balance, shares, draw

    def texts(self) -> Iterator[Labelled]:
        """Yield all texts, always in the same order; those of one task need not be together."""
        raise NotImplementedError

    def documents(self, split: Literal["evaluation", "fit"]) -> Iterator[Document]:
        for text, part in self._chosen:
            if (part == "test") == (split == "evaluation"):
                yield Document(
                    text.document, text.text, labels=text.labels, spans=text.spans, validation=part == "validation"
                )

    def facts(self) -> Mapping[str, Any]:
        counts: dict[str, Counter[str]] = {}
        for text, _ in self._chosen:
            for task, label in text.labels.items():
                counts.setdefault(task, Counter())[label] += 1
        return {"tasks": {task: dict(sorted(classes.items())) for task, classes in sorted(counts.items())}}

    @cached_property
    def _chosen(self) -> list[tuple[Labelled, str]]:
        """The texts of all tasks, each with its part: fit, validation or test."""
        texts = list(self.texts())
        self._check(texts)
        kept: dict[str, set[str]] = {}
        for task in dict.fromkeys(task for text in texts for task in text.labels):
            kept[task] = self._sample(task, {text.name: text.labels[task] for text in texts if task in text.labels})
        # Texts of a table with labels of tokens alone are a sample of one class.
        unlabelled = self._sample("", {text.name: "" for text in texts if not text.labels and text.spans})
        chosen = []
        for text in texts:
            labels = {task: label for task, label in text.labels.items() if text.name in kept[task]}
            if labels or text.name in unlabelled:
                chosen.append(replace(text, labels=labels))
        parts = self._parts(chosen)
        return [(text, parts[text.document]) for text in chosen]

    def _check(self, texts: Sequence[Labelled]) -> None:
        """Raise `SaevalError` for a task with one class, or with a class of fewer than 20 texts."""
        classes: dict[str, Counter[str]] = {}
        for text in texts:
            for task, label in text.labels.items():
                classes.setdefault(task, Counter())[label] += 1
        if not classes and not any(text.spans for text in texts):
            raise SaevalError(f"data '{self.name}': no text has a label; check the columns that it names")
        for task, counts in classes.items():
            if len(counts) == 1:
                only = quoted_value(next(iter(counts)))
                raise SaevalError(f"data '{self.name}': task '{task}' has one class, {only}; it needs two")
            label, least = min(counts.items(), key=lambda pair: (pair[1], pair[0]))
            if least < LEAST:
                raise SaevalError(
                    f"data '{self.name}': class {quoted_value(label)} of task '{task}' has {least} texts; each class "
                    f"needs {LEAST}. Add texts, join classes, or leave the task out"
                )

    def _sample(self, task: str, classes: Mapping[str, str]) -> set[str]:
        """Return the names that are kept of a task, from the class of each name."""
        by_class: dict[str, list[str]] = {}
        for name in sorted(classes, key=lambda name: self._hash(task, name)):
            by_class.setdefault(classes[name], []).append(name)
        sizes = {label: len(names) for label, names in by_class.items()}
        if self.balance:
            sizes = dict.fromkeys(sizes, min(sizes.values(), default=0))
        total = sum(sizes.values())
        if self.rows is not None and self.rows < total:
            sizes = {label: max(LEAST, round(self.rows * size / total)) for label, size in sizes.items()}
        return {name for label, names in by_class.items() for name in names[: sizes[label]]}

    def _parts(self, texts: Sequence[Labelled]) -> dict[str, str]:
        """Return the part of each document."""
        fit, validation = self.shares[0], self.shares[0] + self.shares[1]
        grouped = any(text.group is not None for text in texts)
        strata: dict[Any, list[str]] = {}
        for text in texts:
            key = None if grouped else tuple(sorted(text.labels.items()))
            strata.setdefault(key, []).append(text.document)
        parts: dict[str, str] = {}
        for names in strata.values():
            ordered = sorted(dict.fromkeys(names), key=lambda name: self._hash("part", name))
            for number, name in enumerate(ordered):
                # By rank, so that each stratum is cut in these proportions.
                share = (number + 0.5) / len(ordered)
                parts[name] = PARTS[(share >= fit) + (share >= validation)]
        return parts

    def _hash(self, *words: str) -> float:
        return hash_share("\0".join([str(self.draw), *words]))


class LabelledTables(LabelledTexts):
    """Labelled texts from .jsonl, .csv, .csv.zst or .parquet files.

    `path` is one table, perhaps in several files; or `tasks` (one or several globs) matches files of which each is a
    table of its own. Column `text` has the texts; `label` names one or several columns of classes, each a task. The
    classes of several files of one table must be the same. A row without a value in a column is not in that task.
    Tasks are named after the column, with `tasks` after the file (and the column if there are several).

    `spans` names a column with lists of `{start, end, label}`, in characters: each label is a task of tokens.
    `group` names a column; texts with one value are one document. `rows` is the largest number of texts of a task,
    chosen by a hash keyed by `draw`; `balance` takes as many of each class. `shares` are those of documents for
    fitting, validation and testing.
    """

    name = "labelled"

    def __init__(
        self,
        path: str | None = None,
        tasks: str | list[str] | None = None,
        text: str = "text",
        label: str | list[str] | None = None,
        spans: str | None = None,
        group: str | None = None,
        rows: int | None = None,
        balance: bool = False,
        shares: tuple[float, float, float] = (0.6, 0.15, 0.25),
        draw: int = 0,
    ) -> None:
        super().__init__(rows, balance, shares, draw)
        if (path is None) == (tasks is None):
            count = "both" if path is not None else "neither"
            raise SaevalError(f"data 'labelled': expected one of 'path' and 'tasks', found {count}")
        self.columns = [label] if isinstance(label, str) else label or ([] if spans else ["label"])
        self.text, self.spans, self.group, self.one_table = text, spans, group, path is not None
        patterns = [path] if path is not None else [tasks] if isinstance(tasks, str) else tasks or []
        key = "path" if self.one_table else "tasks"
        self.paths = list(
            dict.fromkeys(file for pattern in patterns for file in files.matching(pattern, self.name, key))
        )
        for file in self.paths:
            if not (is_csv(file) or file.suffix in (".jsonl", ".parquet")) or file.is_dir():
                raise SaevalError(f"data 'labelled': expected a .jsonl, .csv, .csv.zst or .parquet file, found {file}")
        stems = Counter(map(_stem, self.paths))
        if not self.one_table and (double := next((stem for stem, count in stems.items() if count > 1), None)):
            raise SaevalError(f"data 'labelled': two files of 'tasks' are named '{double}'; rename one of them")

    def fingerprint(self) -> str:
        choices = [self.rows, self.balance, list(self.shares), self.draw, self.one_table]
        columns = [self.text, self.columns, self.spans, self.group]
        parts = [*choices, *columns, *([_stem(path), sha256_file(path)] for path in self.paths)]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def facts(self) -> Mapping[str, Any]:
        return {"read": [path.name for path in self.paths[:20]], "files": len(self.paths), **super().facts()}

    def texts(self) -> Iterator[Labelled]:
        seen: dict[str, tuple[Path, set[str]]] = {}
        fields = [name for name in (self.text, *self.columns, self.spans, self.group) if name is not None]
        for path in self.paths:
            classes: dict[str, set[str]] = {}
            for number, where, record in records_of(path, list(dict.fromkeys(fields))):
                text = files.text_of(record[self.text], self.text, where)
                if not text:
                    continue
                labels = {
                    self._task(path, column): label
                    for column in self.columns
                    if (label := _class(record[column], column, where)) is not None
                }
                for task, label in labels.items():
                    classes.setdefault(task, set()).add(label)
                group = None if self.group is None else _class(record[self.group], self.group, where)
                spans = {}
                if self.spans:
                    # Every text of the file belongs to the task of each label.
                    marked = _spans(record[self.spans], text, self.spans, where)
                    spans = {label: marked.get(label, []) for label in self._span_labels}
                yield Labelled(f"{path.name}:{number}", text, labels, group, spans)
            for task, found in classes.items():
                other, known = seen.setdefault(task, (path, found))
                if known != found:
                    alone = [f"{_classes(found - known)} in {path.name} alone"] if found - known else []
                    alone += [f"{_classes(known - found)} in {other.name} alone"] if known - found else []
                    raise SaevalError(
                        f"{path}: the classes of '{task}' differ from those in {other.name}: {', '.join(alone)}; "
                        "make them the same, or name files that are tables of their own with 'tasks'"
                    )

    @cached_property
    def _span_labels(self) -> list[str]:
        """All labels of stretches of text in the files, sorted."""
        assert self.spans is not None
        found: set[str] = set()
        for path in self.paths:
            for _, where, record in records_of(path, [self.text, self.spans]):
                text = files.text_of(record[self.text], self.text, where)
                found |= set(_spans(record[self.spans], text, self.spans, where)) if text else set()
        return sorted(found)

    def _task(self, path: Path, column: str) -> str:
        if self.one_table:
            return column
        return _stem(path) if len(self.columns) == 1 else f"{_stem(path)}/{column}"


def _stem(path: Path) -> str:
    return path.name.removesuffix(".zst").rpartition(".")[0]


def _classes(classes: set[str]) -> str:
    shown = [quoted_value(label) for label in sorted(classes)[:5]]
    return " ".join([*shown, f"and {len(classes) - 5} more"] if len(classes) > 5 else shown)


def _class(value: Any, column: str, where: str) -> str | None:
    """Return a class as text, or None for null and empty text; `SaevalError` for numbers with decimals, lists, ..."""
    if value is None or value == "":
        return None
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, int | str):
        kinds = "text, a whole number, true or false"
        raise SaevalError(f"{where}: expected a class in '{column}' ({kinds}), found {quoted_value(value)}")
    return files.text_of(str(value), column, where)


def _spans(value: Any, text: str, column: str, where: str) -> dict[str, list[tuple[int, int]]]:
    """Return the stretches of each label; `SaevalError` for one that is outside the text."""
    if isinstance(value, str):  # a CSV file
        try:
            value = json.loads(value)
        except ValueError:
            raise SaevalError(f"{where}: '{column}' is not JSON, found {quoted_value(value)}") from None
    spans: dict[str, list[tuple[int, int]]] = {}
    for span in value if isinstance(value, list) else [value] if value else []:
        if not isinstance(span, dict) or not {"start", "end", "label"} <= set(span):
            raise SaevalError(f"{where}: expected {{start, end, label}} in '{column}', found {quoted_value(span)}")
        start, end, label = span["start"], span["end"], _class(span["label"], column, where)
        whole = all(isinstance(edge, int) and not isinstance(edge, bool) for edge in (start, end))
        if not whole or not 0 <= start < end <= len(text):
            raise SaevalError(f"{where}: the span [{start}, {end}) is not inside the text of {len(text)} characters")
        if label is not None:
            spans.setdefault(label, []).append((start, end))
    return spans
