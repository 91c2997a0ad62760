"""A table of records: a JSON Lines or Parquet file, a folder that the datasets library reads, a dataset of the hub."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from saeval.errors import SaevalError
from saeval_data import files

_COMMIT = re.compile(r"[0-9a-f]{40}")


class Stored:
    """A dataset folder at `path`, or the hub's dataset `name`; `split` is `train` where not given."""

    def __init__(
        self, source: str, path: Path | None, name: str | None, config: str | None, split: str | None,
        revision: str | None,
    ) -> None:  # fmt: skip
        self.source, self.path, self.name = source, path, name
        self.config, self.split, self.revision = config, split or "train", revision
        if path is not None and (config is not None or revision is not None):
            raise SaevalError(f"data '{source}': 'config' and 'revision' go with 'name', not with 'path'")

    @property
    def what(self) -> str:
        """What it is called in messages."""
        return self.name or str(self.path)

    @property
    def saved(self) -> bool:
        """Whether the folder was written by `save_to_disk`."""
        path = self.path
        return path is not None and any((path / name).is_file() for name in ("state.json", "dataset_dict.json"))

    @cached_property
    def rows(self) -> Any:
        """A `datasets.Dataset`, memory-mapped by that library; `SaevalError` where it cannot be had."""
        import datasets  # late: heavy, and a plugin is imported for every command

        try:
            if self.path is None:
                return datasets.load_dataset(self.name, self.config, split=self.split, revision=self.commit)
            if not self.saved:
                return datasets.load_dataset(str(self.path.resolve()), split=self.split)
            saved = datasets.load_from_disk(str(self.path.resolve()))
        except Exception as error:  # the library raises its own kinds, hub and Arrow ones among them
            raise SaevalError(f"data '{self.source}': {self.what} cannot be loaded ({_first_line(error)})") from error
        if not isinstance(saved, dict):
            return saved
        if self.split not in saved:
            raise SaevalError(f"{self.what}: expected a split '{self.split}', found {', '.join(saved)}; set 'split'")
        return saved[self.split]

    @cached_property
    def commit(self) -> str:
        """The commit that `revision` (or the default branch) stands for; a full hash needs no look-up."""
        if self.revision is not None and _COMMIT.fullmatch(self.revision):
            return self.revision
        import datasets  # late: as above

        try:
            builder = datasets.load_dataset_builder(self.name, self.config, revision=self.revision)
        except Exception as error:  # as above
            what = f"data '{self.source}': dataset {self.name} is not found"
            raise SaevalError(f"{what} ({_first_line(error)})") from error
        return str(builder.hash)

    @property
    def columns(self) -> list[str]:
        """The names of its columns."""
        return list(self.rows.column_names)

    def records(self, fields: Sequence[str]) -> Iterator[tuple[int, str, dict[str, Any]]]:
        """Number of the row (from 1), its place for messages, and these columns; `SaevalError` for one there is not."""
        there = self.columns
        missing = [field for field in fields if field not in there]
        if missing:
            raise SaevalError(f"{self.what}: expected a column '{missing[0]}', found {', '.join(there)}")
        for number, record in enumerate(self.rows.select_columns(list(fields)), start=1):
            yield number, f"{self.what}: row {number}", record


def records_of(path: Path, fields: Sequence[str]) -> Iterator[tuple[int, str, dict[str, Any]]]:
    """Number of the line or row (from 1), its place for messages, and these fields of each of a file's records."""
    if path.suffix == ".jsonl":
        for number, record in files.jsonl_records(path):
            where = f"{path}:{number}"
            yield number, where, {field: files.field_of(record, field, where) for field in fields}
    else:
        for number, record in files.parquet_records(path, list(fields)):
            where = f"{path}: row {number}"
            yield number, where, {field: files.field_of(record, field, where) for field in fields}


def columns_of(path: Path) -> list[str]:
    """The names of a file's columns, or of the fields of its first record."""
    return files.jsonl_columns(path) if path.suffix == ".jsonl" else files.parquet_columns(path)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0].rstrip('.')}" if lines else type(error).__name__
