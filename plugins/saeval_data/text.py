"""Text from files, folders and Hugging Face datasets."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from saeval.data import Document, Source
from saeval.errors import SaevalError
from saeval.fingerprint import sha256_file
from saeval_data import files

_KINDS = (".txt", ".jsonl", ".parquet")
_COMMIT = re.compile(r"[0-9a-f]{40}")


class Text(Source):
    """Text from `path` (a .txt, .jsonl or .parquet file, a folder of .txt files, a dataset folder), or by `name`.

    `name`, `config`, `split` and `revision` are those of a dataset on the Hugging Face hub; `split` also picks one of
    a dataset folder's (`train` by default). A record of `field` is a document. A .txt file is one document, or
    one for each piece between `separator`s.
    """

    name = "text"

    def __init__(
        self,
        path: str | None = None,
        name: str | None = None,
        config: str | None = None,
        split: str | None = None,
        revision: str | None = None,
        field: str = "text",
        separator: str | None = None,
    ) -> None:
        if (path is None) == (name is None):
            found = "both" if path is not None else "neither"
            raise SaevalError(f"data 'text': expected one of 'path' and 'name', found {found}")
        if separator == "":
            raise SaevalError("data 'text': 'separator' is empty; leave it out to keep a file as one document")
        self.path = None if path is None else files.existing(path, self.name)
        self.dataset_name = name
        self.config = config
        self.split = split
        self.revision = revision
        self.field = field
        self.separator = separator
        if self.path is not None and (config is not None or revision is not None):
            raise SaevalError("data 'text': 'config' and 'revision' go with 'name', not with 'path'")
        if self.path is not None and self.path.is_file() and self.path.suffix not in _KINDS:
            raise SaevalError(f"data 'text': expected a {', '.join(_KINDS)} file or a folder, found {self.path}")

    def fingerprint(self) -> str:
        """Hash of the files' contents and of what cuts them; a hub dataset counts by its commit."""
        parts: list[Any] = [self.field, self.separator, self._split]
        if self.path is None:
            parts += [self.dataset_name, self.config, self._commit]
        else:
            root = self.path.parent if self.path.is_file() else self.path
            parts += [[file.relative_to(root).as_posix(), sha256_file(file)] for file in self._files]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def documents(self, split: Literal["evaluation", "fit"]) -> Iterator[Document]:
        if self.path is None or self._is_dataset:
            yield from self._of_dataset()
            return
        root = self.path.parent if self.path.is_file() else self.path
        for file in self._files:
            yield from self._of_file(file, file.relative_to(root).as_posix())

    def facts(self) -> Mapping[str, Any]:
        if self.path is None:
            return {"dataset": self.dataset_name, "config": self.config, "split": self._split, "revision": self._commit}
        return {"path": str(self.path), "files": len(self._files)}

    @property
    def _split(self) -> str:
        return self.split or "train"

    @cached_property
    def _is_dataset(self) -> bool:
        """A folder that the datasets library reads: without .txt files, or saved by `save_to_disk`."""
        if self.path is None or self.path.is_file():
            return False
        return self._saved or not any(self.path.rglob("*.txt"))

    @property
    def _saved(self) -> bool:
        assert self.path is not None
        return (self.path / "state.json").is_file() or (self.path / "dataset_dict.json").is_file()

    @cached_property
    def _files(self) -> list[Path]:
        assert self.path is not None
        if self.path.is_file():
            return [self.path]
        found = sorted(file for file in self.path.rglob("*" if self._is_dataset else "*.txt") if file.is_file())
        found = [file for file in found if not any(p.startswith(".") for p in file.relative_to(self.path).parts)]
        if not found:
            raise SaevalError(f"data 'text': the folder {self.path} holds neither .txt files nor a dataset")
        return found

    def _of_file(self, file: Path, name: str) -> Iterator[Document]:
        if file.suffix == ".txt":
            yield from self._of_text(file, name)
            return
        jsonl = file.suffix == ".jsonl"
        for number, record in files.jsonl_records(file) if jsonl else files.parquet_records(file, [self.field]):
            where = f"{file}:{number}" if jsonl else f"{file}: row {number}"
            yield Document(f"{name}:{number}", _string(files.field_of(record, self.field, where), self.field, where))

    def _of_text(self, file: Path, name: str) -> Iterator[Document]:
        try:
            text = file.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise SaevalError(f"{file}: not UTF-8 text (at byte {error.start}); convert it") from None
        if self.separator is None:
            yield Document(name, text)
            return
        for number, piece in enumerate(text.split(self.separator), start=1):
            if piece.strip():
                yield Document(f"{name}:{number}", piece)

    def _of_dataset(self) -> Iterator[Document]:
        rows = self._loaded
        what = self.dataset_name or str(self.path)
        if self.field not in rows.column_names:
            raise SaevalError(f"{what}: expected a column '{self.field}', found {', '.join(rows.column_names)}")
        for number, record in enumerate(rows.select_columns([self.field]), start=1):
            where = f"{what}: row {number}"
            yield Document(f"{self._split}:{number}", _string(record[self.field], self.field, where))

    @cached_property
    def _loaded(self) -> Any:
        """A `datasets.Dataset`, memory-mapped by that library."""
        import datasets  # late: heavy, and a plugin is imported for every command

        what = self.dataset_name or str(self.path)
        try:
            if self.path is None:
                return datasets.load_dataset(self.dataset_name, self.config, split=self._split, revision=self._commit)
            if not self._saved:
                return datasets.load_dataset(str(self.path.resolve()), split=self._split)
            saved = datasets.load_from_disk(str(self.path.resolve()))
        except Exception as error:  # the library raises its own kinds, hub and Arrow ones among them
            raise SaevalError(f"data 'text': {what} cannot be loaded ({_first_line(error)})") from error
        if not isinstance(saved, dict):
            return saved
        if self._split not in saved:
            raise SaevalError(f"{what}: expected a split '{self._split}', found {', '.join(saved)}; set 'split'")
        return saved[self._split]

    @cached_property
    def _commit(self) -> str:
        """The commit that `revision` (or the default branch) stands for; a full hash needs no look-up."""
        if self.revision is not None and _COMMIT.fullmatch(self.revision):
            return self.revision
        import datasets  # late: as above

        try:
            builder = datasets.load_dataset_builder(self.dataset_name, self.config, revision=self.revision)
        except Exception as error:  # as above
            raise SaevalError(
                f"data 'text': dataset {self.dataset_name} is not found ({_first_line(error)})"
            ) from error
        return str(builder.hash)


def _string(value: Any, field: str, where: str) -> str:
    if not isinstance(value, str):
        raise SaevalError(f"{where}: expected text in '{field}', found {type(value).__name__}")
    return value


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0].rstrip('.')}" if lines else type(error).__name__
