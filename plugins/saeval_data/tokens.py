"""Token ids from files: one document per row or line."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from saeval.plugin import DataKind, Document, SaevalError, Source, quoted_value, sha256_file, suggestion
from saeval_data import files
from saeval_data.tables import columns_of

_FIELDS = ("tokens", "input_ids")
_LARGEST_ID = 2**31 - 1
_MASK = "attention_mask"
_UNUSED = (
    "labels", "loss_mask", "completion_mask", "assistant_masks", "prompt_mask", "special_tokens_mask", "position_ids",
    "token_type_ids", "segment_ids", "seq_idx",
)  # fmt: skip
"""Columns that a trainer uses and saeval ignores."""


class Tokens(Source):
    """Token ids from a `.npy` array `[documents, length]`, or from lists in `.jsonl` or `.parquet` files.

    `path` may contain globs, such as `shards/*.parquet`. `field` names the column of lists (`tokens` or `input_ids` by
    default). `documents` assigns rows to documents: it names the column with the document's name, or for `.npy` the
    path of a 1-D `.npy` array. Without it, each row is a document. If a record has an `attention_mask`, tokens at
    either end where the mask is 0 are padding and are left out.
    """

    name = "tokens"
    kind: ClassVar[DataKind] = "tokens"

    def __init__(self, path: str, field: str | None = None, documents: str | None = None) -> None:
        self.paths = files.matching(path, self.name)
        for file in self.paths:
            if file.suffix not in (".npy", ".jsonl", ".parquet") or file.is_dir():
                raise SaevalError(f"data 'tokens': expected a .npy, .jsonl or .parquet file, found {file}")
            if file.suffix == ".npy" and field is not None:
                raise SaevalError(f"data 'tokens': 'field' is for .jsonl and .parquet files, and {file} has no fields")
        self.field = field
        self.owners = documents
        self._owned_by_array = documents is not None and any(file.suffix == ".npy" for file in self.paths)
        if self._owned_by_array and len(self.paths) > 1:
            raise SaevalError(f"data 'tokens': 'documents' needs a single .npy file, but {path} matches several")
        if documents is not None and self._owned_by_array:
            files.existing(documents, self.name)

    def fingerprint(self) -> str:
        names = self.owners
        if names is not None and self._owned_by_array:
            names = sha256_file(Path(names).expanduser())
        parts: list[Any] = [part for path in self.paths for part in (path.name, sha256_file(path))]
        return hashlib.sha256(json.dumps([*parts, self.field, names]).encode()).hexdigest()

    def documents(self, split: Literal["evaluation", "fit"]) -> Iterator[Document]:
        for path in self.paths:
            yield from self._of_array(path) if path.suffix == ".npy" else self._of_records(path)

    def facts(self) -> Mapping[str, Any]:
        unused = []
        for path in self.paths:
            columns = [] if path.suffix == ".npy" else columns_of(path)
            names = [f"'{name}'" for name in _UNUSED if name in columns and name not in (self.field, self.owners)]
            if names:
                unused.append(f"{path}: columns {', '.join(names)} are not used: every token except padding counts")
        read = {"read": [path.name for path in self.paths[:20]], "files": len(self.paths)}
        return {**read, "unused": unused[:3]} if unused else read

    def _of_array(self, path: Path) -> Iterator[Document]:
        rows = _array(path)
        if rows.ndim != 2:
            raise SaevalError(f"{path}: expected an array [documents, length], found shape {list(rows.shape)}")
        names = self._names(path, len(rows))
        for index, row in enumerate(rows):
            yield Document(names[index], tokens=_ids(row, f"{path}: row {index + 1}"))

    def _names(self, path: Path, rows: int) -> list[str]:
        if self.owners is None:
            return [f"{path.name}:{index + 1}" for index in range(rows)]
        path = Path(self.owners).expanduser()
        owners = _array(path)
        if owners.shape != (rows,):
            raise SaevalError(
                f"{path}: expected {rows} entries, one document per row, found shape {list(owners.shape)}"
            )
        return [str(owner) for owner in owners.tolist()]

    def _of_records(self, path: Path) -> Iterator[Document]:
        jsonl = path.suffix == ".jsonl"
        field = self.field
        columns = [] if jsonl else files.parquet_columns(path)
        if field is None and not jsonl:
            field = _default_field(columns, str(path))
        masked = [_MASK] if _MASK in columns and field != _MASK else []
        wanted = [*(name for name in (field, self.owners) if name is not None), *masked]
        records = files.jsonl_records(path) if jsonl else files.parquet_records(path, wanted)
        for number, record in records:
            where, name = f"{path}:{number}" if jsonl else f"{path}: row {number}", f"{path.name}:{number}"
            if record is None:
                yield Document(name)
                continue
            field = field or _default_field(list(record), where)
            tokens = files.field_of(record, field, where)
            owner = None if self.owners is None else files.field_of(record, self.owners, where)
            name = name if owner is None else str(files.text_of(str(owner), str(self.owners), where))
            if tokens is None:
                yield Document(name)
                continue
            if not isinstance(tokens, list):
                raise SaevalError(f"{where}: expected a list of token ids in '{field}', found {type(tokens).__name__}")
            ids, mask = _integers(tokens, where), record.get(_MASK)
            if mask is not None and field != _MASK:
                ids = ids[_attended(mask, len(ids), where)]
            yield Document(name, tokens=_ids(ids, where))


def _attended(mask: Any, length: int, where: str) -> slice:
    """Return the slice of tokens between the padding at either end of an attention mask."""
    if not isinstance(mask, list) or any(not isinstance(entry, int) or entry not in (0, 1) for entry in mask):
        raise SaevalError(f"{where}: expected a list of 0 and 1 in '{_MASK}'")
    if len(mask) != length:
        raise SaevalError(f"{where}: '{_MASK}' has {len(mask)} entries for {length} tokens; write the file again")
    ones = np.flatnonzero(mask)
    if not len(ones):
        return slice(0)
    first, last = int(ones[0]), int(ones[-1])
    if len(ones) != last - first + 1:
        hole = first + mask[first:].index(0)
        raise SaevalError(
            f"{where}: '{_MASK}' is 0 at position {hole}, between tokens where it is 1; remove these tokens"
        )
    return slice(first, last + 1)


def _default_field(fields: list[str], where: str) -> str:
    for field in _FIELDS:
        if field in fields:
            return field
    near = suggestion("tokens", fields)
    raise SaevalError(f"{where}: expected a field 'tokens' or 'input_ids'{near}; name it with 'field'")


def _array(path: Path) -> np.ndarray[Any, Any]:
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)  # type: ignore[no-any-return]
    except (ValueError, OSError, EOFError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise SaevalError(f"{path}: not a readable .npy array of plain numbers ({reason}); save it again") from None


def _integers(tokens: list[Any], where: str) -> np.ndarray[Any, Any]:
    for position, token in enumerate(tokens):
        if not isinstance(token, int) or isinstance(token, bool):
            value = f"{quoted_value(token)} at position {position}"
            raise SaevalError(f"{where}: expected integer token ids, found {value}")
    try:
        return np.array(tokens, dtype=np.int64)
    except OverflowError:
        raise SaevalError(f"{where}: a token id is larger than {_LARGEST_ID}; check the file") from None


def _ids(tokens: np.ndarray[Any, Any], where: str) -> np.ndarray[Any, Any]:
    """Return token ids as int32; `SaevalError` for values that cannot be token ids."""
    if not np.issubdtype(tokens.dtype, np.integer):
        raise SaevalError(f"{where}: expected integer token ids, found dtype {tokens.dtype}")
    if tokens.size and int(tokens.min()) < 0:
        position = int(np.argmax(tokens < 0))
        raise SaevalError(
            f"{where}: negative token id {int(tokens[position])} at position {position}; remove padding "
            "(documents of different lengths need .jsonl or .parquet)"
        )
    if tokens.size and int(tokens.max()) > _LARGEST_ID:
        raise SaevalError(f"{where}: a token id is larger than {_LARGEST_ID}; check the file")
    return tokens.astype(np.int32)
