"""Text from files, folders, Hugging Face datasets and memory."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator

from saeval.plugin import Document, SaevalError, Source, normalized_newlines, sha256_file, text_passages
from saeval_data import files
from saeval_data.tables import Stored, format_of, records_of, visible

_KINDS = (".txt", ".jsonl", ".parquet")
_SHOWN = 20
"""Number of files that the provenance lists; it counts all of them."""


class Text(Source):
    """Text from `path` (a .txt, .jsonl or .parquet file, a folder of .txt files, a dataset folder), or by `name`.

    `path` may contain globs, such as `corpus/*.jsonl`, that match files of one format or folders of .txt files. A
    folder may hold data of one format; a licence or notice beside tables does not count.
    `name`, `config`, `split` and `revision` select a dataset on the Hugging Face hub; `split` also selects a split of
    a dataset folder (`train` by default). In tables, the text in column `field` of each record is a document. A .txt
    file is one document, or one per piece between `separator`s.
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
        if separator == "":
            raise SaevalError("data 'text': 'separator' is empty; leave it out to keep each file as one document")
        self.stored = Stored(self.name, path, name, config, split, revision)
        self.paths = self.stored.paths
        self.path = self.paths[0] if len(self.paths) == 1 else None
        """The path if there is only one; None for several and for a hub dataset."""
        self.field = field
        self.separator = None if separator is None else normalized_newlines(separator)
        for file in self.paths:
            if file.is_file() and file.suffix not in _KINDS:
                raise SaevalError(f"data 'text': expected a {', '.join(_KINDS)} file or a folder, found {file}")
        kinds = sorted({file.suffix for file in self.paths if file.is_file()})
        if len(kinds) > 1:
            remedy = f"end it with one suffix, such as '*{kinds[0]}'"
            raise SaevalError(f"data 'text': 'path: {path}' matches {' and '.join(kinds)} files; {remedy}")
        if separator is not None and kinds and kinds != [".txt"]:
            raise SaevalError(f"data 'text': 'separator' applies to .txt files, not to {kinds[0]}; leave it out")

    def fingerprint(self) -> str:
        """Return the hash of the files' contents, `field` and `separator`; for a hub dataset, of its commit."""
        parts: list[Any] = [self.field, self.separator, self.stored.split]
        if not self.paths:
            parts += [self.stored.name, self.stored.config, self.stored.commit]
        else:
            parts += [[self._named(file), sha256_file(file)] for file in self._files]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def documents(self, split: Literal["evaluation", "fit"]) -> Iterator[Document]:
        if not self.paths or self._is_dataset:
            yield from self._of_records(self.stored.split, self.stored.records([self.field]))
            return
        for file in self._files:
            name = self._named(file)
            records = None if file.suffix == ".txt" else records_of(file, [self.field])
            yield from self._of_text(file, name) if records is None else self._of_records(name, records)

    def facts(self) -> Mapping[str, Any]:
        if not self.paths:
            hub = self.stored
            return {"dataset": hub.name, "config": hub.config, "split": hub.split, "revision": hub.commit}
        read = self.stored.read if self._is_dataset else [self._named(file) for file in self._files]
        return {"path": str(self.path or self._root), "files": len(read), "read": read[:_SHOWN]}

    @cached_property
    def _root(self) -> Path:
        """The folder that the names of documents are relative to."""
        if self.path is not None:
            return self.path.parent if self.path.is_file() else self.path
        return Path(os.path.commonpath([file.parent for file in self.paths]))

    def _named(self, file: Path) -> str:
        return file.relative_to(self._root).as_posix()

    @cached_property
    def _is_dataset(self) -> bool:
        """True for a folder that the datasets library reads: tables, or a folder written by `save_to_disk`."""
        if self.path is None or self.path.is_file():
            return False
        return self.stored.saved or format_of(self.path, self.name) != ".txt"

    @cached_property
    def _files(self) -> list[Path]:
        paths: list[Path] = []
        for path in self.paths:
            paths += visible(path, "*" if self._is_dataset else "*.txt") if path.is_dir() else [path]
        if not paths:
            raise SaevalError(
                f"data 'text': the folder {self.path or self._root} holds neither .txt files nor a dataset"
            )
        return list(dict.fromkeys(paths))

    def _of_records(self, name: str, records: Iterator[tuple[int, str, dict[str, Any]]]) -> Iterator[Document]:
        for number, where, record in records:
            yield Document(f"{name}:{number}", files.text_of(record[self.field], self.field, where))

    def _of_text(self, file: Path, name: str) -> Iterator[Document]:
        for number, piece in enumerate(text_passages(file, self.separator), start=1):
            if self.separator is None:
                yield Document(name, piece)
            elif any(part.strip() for part in ([piece] if isinstance(piece, str) else piece)):
                yield Document(f"{name}:{number}", piece)


def _listed(values: Any) -> Any:
    """Return an iterable, such as a column of a data frame or dataset, as a list; anything else unchanged."""
    whole = isinstance(values, str | bytes | Mapping) or not isinstance(values, Iterable)
    return values if whole else list(values)


class Texts(Source):
    """Text in memory: each of `texts` is a document.

    From Python, `data={"texts": ["...", "..."], "context": 128}`. `names` names the documents; texts with the same
    name belong to one document. Without `names`, each text is a document of its own. Null texts are left out and
    counted.
    """

    name = "texts"

    def __init__(
        self,
        texts: Annotated[list[str | None], BeforeValidator(_listed)],
        names: Annotated[list[str] | None, BeforeValidator(_listed)] = None,
    ) -> None:
        if not texts:
            raise SaevalError("data 'texts': the list of texts is empty")
        if names is not None and len(names) != len(texts):
            raise SaevalError(f"data 'texts': expected {len(texts)} names, one per text, found {len(names)}")
        self.names = names or [f"text {number}" for number in range(1, len(texts) + 1)]
        self.texts = [files.text_of(t, "texts", f"data 'texts': text {n}") for n, t in enumerate(texts, start=1)]

    def fingerprint(self) -> str:
        return hashlib.sha256(json.dumps([self.names, self.texts]).encode()).hexdigest()

    def documents(self, split: Literal["evaluation", "fit"]) -> Iterator[Document]:
        for name, text in zip(self.names, self.texts, strict=True):
            yield Document(name, text)

    def facts(self) -> Mapping[str, Any]:
        return {"texts": len(self.texts)}
