"""A table of records: a JSON Lines or Parquet file, a folder that the datasets library reads, a dataset of the hub."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from saeval.plugin import SaevalError
from saeval_data import files

_COMMIT = re.compile(r"[0-9a-f]{40}")
_TEXT, _TABLES = ".txt", (".arrow", ".jsonl", ".parquet")
_ABOUT = re.compile(
    r"(?:licen[cs]e|notice|copying|copyright|readme|citation|authors|changes|changelog|requirements)\b", re.I
)
"""Texts that stand beside data and are none."""


def visible(folder: Path, pattern: str) -> list[Path]:
    """The files in a folder and below, in order, without what is hidden."""
    found = sorted(file for file in folder.rglob(pattern) if file.is_file())
    return [f for f in found if not any(part.startswith(".") for part in f.relative_to(folder).parts)]


def format_of(folder: Path, source: str, formats: Sequence[str] = (_TEXT, *_TABLES)) -> str | None:
    """The format of a folder's data, by the endings of its files; None where it holds none of these.

    A licence, a notice or the like is no data where there are tables. `SaevalError` for a folder of several formats.
    """
    there: dict[str, Path] = {}
    about: dict[str, Path] = {}
    for file in visible(folder, "*"):
        if file.suffix in formats:
            (about if file.suffix == _TEXT and _ABOUT.match(file.stem) else there).setdefault(file.suffix, file)
    there = there or about
    if len(there) > 1:
        shown = " and ".join(f"{suffix} files ({file.name}, ...)" for suffix, file in sorted(there.items()))
        raise SaevalError(
            f"data '{source}': {folder} holds {shown}; say which are the data, as in 'path: {folder}/**/*{min(there)}'"
        )
    return next(iter(there), None)


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
                files = self._data_files
                with _quietly():
                    return datasets.load_dataset(str(self.path.resolve()), split=self.split, data_files=files)
            saved = datasets.load_from_disk(str(self.path.resolve()))
        except SaevalError:
            raise
        except Exception as error:  # the library raises its own kinds, hub and Arrow ones among them
            raise SaevalError(f"data '{self.source}': {self.what} cannot be loaded ({_first_line(error)})") from error
        if not isinstance(saved, dict):
            return saved
        if self.split not in saved:
            raise SaevalError(f"{self.what}: expected a split '{self.split}', found {', '.join(saved)}; set 'split'")
        return saved[self.split]

    @cached_property
    def read(self) -> list[str]:
        """The files that the rows of a folder come from, relative to it; none for a dataset of the hub."""
        if self.path is None:
            return []
        if self.saved:
            files = [Path(file["filename"]) for file in self.rows.cache_files]
        else:
            files = [Path(file) for file in self._resolved(self._data_files).get(self.split, ())]
        folder = self.path.resolve()
        return [f.relative_to(folder).as_posix() if f.is_relative_to(folder) else str(f) for f in files]

    @cached_property
    def _data_files(self) -> dict[str, list[str]] | None:
        """The files of a folder by their splits, where the library by itself would take others; else None."""
        from datasets.data_files import DataFilesDict, get_data_patterns  # late: as above

        assert self.path is not None
        suffix = format_of(self.path, self.source, _TABLES)
        chosen = [file for files in self._resolved(None).values() for file in files]
        if suffix is None or (chosen and all(str(file).endswith(suffix) for file in chosen)):
            return None
        folder = str(self.path.resolve())
        found = DataFilesDict.from_patterns(get_data_patterns(folder), folder, [suffix])
        return {split: list(map(str, files)) for split, files in found.items() if files}

    def _resolved(self, data_files: dict[str, list[str]] | None) -> Mapping[str, Any]:
        """What the library would read of the folder, by its splits."""
        import datasets  # late: as above

        assert self.path is not None
        try:
            builder = datasets.load_dataset_builder(str(self.path.resolve()), data_files=data_files)
        except Exception as error:  # as above
            raise SaevalError(f"data '{self.source}': {self.what} cannot be loaded ({_first_line(error)})") from error
        return builder.config.data_files or {}

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


@contextmanager
def _quietly() -> Iterator[None]:
    """No progress bar of the library's while it copies local files to its cache."""
    import datasets  # late: as above

    shown = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0].rstrip('.')}" if lines else type(error).__name__
