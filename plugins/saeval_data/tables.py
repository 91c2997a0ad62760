"""Tables of records: JSON Lines and Parquet files, folders that the datasets library reads, hub datasets."""

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
"""Names of text files that accompany data but are not data."""


def visible(folder: Path, pattern: str) -> list[Path]:
    """Return the files at any depth of a folder, sorted, without hidden ones."""
    paths = sorted(file for file in folder.rglob(pattern) if file.is_file())
    return [f for f in paths if not any(part.startswith(".") for part in f.relative_to(folder).parts)]


def format_of(folder: Path, source: str, formats: Sequence[str] = (_TEXT, *_TABLES)) -> str | None:
    """Return the format of a folder's data, by the suffixes of its files; None if it has none of these formats.

    Licences, notices and the like do not count beside tables. `SaevalError` for a folder with several formats.
    """
    data: dict[str, Path] = {}
    about: dict[str, Path] = {}
    for file in visible(folder, "*"):
        if file.suffix in formats:
            (about if file.suffix == _TEXT and _ABOUT.match(file.stem) else data).setdefault(file.suffix, file)
    data = data or about
    if len(data) > 1:
        shown = " and ".join(f"{suffix} files ({file.name}, ...)" for suffix, file in sorted(data.items()))
        raise SaevalError(
            f"data '{source}': {folder} holds {shown}; select the data, as in 'path: {folder}/**/*{min(data)}'"
        )
    return next(iter(data), None)


class Stored:
    """The files or the dataset folder that `path` matches, or the hub dataset `name`; `split` is `train` by default."""

    def __init__(
        self, source: str, path: str | None, name: str | None, config: str | None, split: str | None,
        revision: str | None,
    ) -> None:  # fmt: skip
        if (path is None) == (name is None):
            count = "both" if path is not None else "neither"
            raise SaevalError(f"data '{source}': expected one of 'path' and 'name', found {count}")
        self.paths = [] if path is None else files.matching(path, source)
        self.source, self.path, self.name = source, next(iter(self.paths), None), name
        self.config, self.split, self.revision = config, split or "train", revision
        if path is not None and (config is not None or revision is not None):
            raise SaevalError(f"data '{source}': 'config' and 'revision' go with 'name', not with 'path'")

    @property
    def label(self) -> str:
        """The dataset's name or path, for messages."""
        return self.name or str(self.path)

    @property
    def saved(self) -> bool:
        """True if `save_to_disk` wrote the folder."""
        path = self.path
        return path is not None and any((path / name).is_file() for name in ("state.json", "dataset_dict.json"))

    @cached_property
    def rows(self) -> Any:
        """The split as a `datasets.Dataset`, which memory-maps it; `SaevalError` if it cannot be loaded."""
        import datasets  # late: heavy, and every command imports plugins

        try:
            if self.path is None:
                return datasets.load_dataset(self.name, self.config, split=self.split, revision=self.commit)
            if not self.saved:
                chosen = self._data_files
                with _quietly():
                    return datasets.load_dataset(str(self.path.resolve()), split=self.split, data_files=chosen)
            saved = datasets.load_from_disk(str(self.path.resolve()))
        except SaevalError:
            raise
        except Exception as error:  # the library raises its own exceptions, the hub's, and Arrow's
            raise SaevalError(f"data '{self.source}': {self.label} cannot be loaded ({_first_line(error)})") from error
        if not isinstance(saved, dict):
            return saved
        if self.split not in saved:
            raise SaevalError(f"{self.label}: expected a split '{self.split}', found {', '.join(saved)}; set 'split'")
        return saved[self.split]

    @cached_property
    def read(self) -> list[str]:
        """The files that the rows of a folder come from, relative to it; empty for a hub dataset."""
        if self.path is None:
            return []
        resolved = None if self.saved else self._resolved(self._data_files).get(self.split, ())
        paths = [Path(f["filename"]) for f in self.rows.cache_files] if resolved is None else map(Path, resolved)
        folder = self.path.resolve()
        return [f.relative_to(folder).as_posix() if f.is_relative_to(folder) else str(f) for f in paths]

    @cached_property
    def _data_files(self) -> dict[str, list[str]] | None:
        """The files of a folder by split, if the library would choose others by default; else None."""
        from datasets.data_files import DataFilesDict, get_data_patterns  # late: as above

        assert self.path is not None
        suffix = format_of(self.path, self.source, _TABLES)
        chosen = [file for files in self._resolved(None).values() for file in files]
        if suffix is None or (chosen and all(str(file).endswith(suffix) for file in chosen)):
            return None
        folder = str(self.path.resolve())
        by_split = DataFilesDict.from_patterns(get_data_patterns(folder), folder, [suffix])
        return {split: list(map(str, files)) for split, files in by_split.items() if files}

    def _resolved(self, data_files: dict[str, list[str]] | None) -> Mapping[str, Any]:
        """Return the files that the library would read in the folder, by split."""
        import datasets  # late: as above

        assert self.path is not None
        try:
            builder = datasets.load_dataset_builder(str(self.path.resolve()), data_files=data_files)
        except Exception as error:  # as above
            raise SaevalError(f"data '{self.source}': {self.label} cannot be loaded ({_first_line(error)})") from error
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
            fault = f"data '{self.source}': dataset {self.name} was not found"
            raise SaevalError(f"{fault} ({_first_line(error)})") from error
        return str(builder.hash)

    @property
    def columns(self) -> list[str]:
        return list(self.rows.column_names)

    def records(self, fields: Sequence[str]) -> Iterator[tuple[int, str, dict[str, Any]]]:
        """Yield the row number (from 1), the place for messages, and these columns; `SaevalError` if one is missing."""
        columns = self.columns
        missing = [field for field in fields if field not in columns]
        if missing:
            raise SaevalError(f"{self.label}: expected a column '{missing[0]}', found {', '.join(columns)}")
        for number, record in enumerate(self.rows.select_columns(list(fields)), start=1):
            yield number, f"{self.label}: row {number}", record


def records_of(path: Path, fields: Sequence[str]) -> Iterator[tuple[int, str, dict[str, Any]]]:
    """Yield the number (from 1) of each record of a file, its place for messages, and these fields."""
    jsonl = path.suffix == ".jsonl"
    if jsonl:
        records = files.jsonl_records(path)
    else:
        records = files.csv_records(path) if is_csv(path) else files.parquet_records(path, list(fields))
    for number, record in records:
        where = f"{path}:{number}" if jsonl else f"{path}: row {number}"
        yield number, where, {field: files.field_of(record, field, where) for field in fields}


def is_csv(path: Path) -> bool:
    """Return True for a .csv file, perhaps compressed with zstd."""
    return path.suffixes[-1:] == [".csv"] or path.suffixes[-2:] == [".csv", ".zst"]


def columns_of(path: Path) -> list[str]:
    """Return the names of a file's columns, or of the fields in its first record."""
    if path.suffix != ".jsonl":
        return files.parquet_columns(path)
    return next((list(record) for _, record in files.jsonl_records(path) if record is not None), [])


@contextmanager
def _quietly() -> Iterator[None]:
    """Hide the datasets library's progress bar while it copies local files to its cache."""
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
