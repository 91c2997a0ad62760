"""Records of JSON Lines, CSV and Parquet files, read one by one; errors name the file and the line or row."""

from __future__ import annotations

import csv
import glob
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from saeval.plugin import (
    BYTE_ORDER_MARK,
    SaevalError,
    check_encoding,
    check_regular_file,
    expand_user,
    json_error,
    lone_surrogate,
    searched_in,
)

MOST_LINE = 256 * 2**20
"""Maximum length of a line in a JSON Lines file, in bytes."""
Record = tuple[int, dict[str, Any] | None]
"""The number of a record, from 1, and the record; None for a line that is `null`."""


def existing(path: str, source: str, key: str = "path") -> Path:
    """Return the path with `~` expanded; `SaevalError`, which names `key`, if it is no folder or regular file."""
    file = expand_user(path)
    if not file.exists():
        raise SaevalError(f"data '{source}': no such file or folder: {path}{searched_in(path)}; check '{key}'")
    if not file.is_dir():
        check_regular_file(file)
    return file


def matching(path: str, source: str, key: str = "path") -> list[Path]:
    """Return the path itself if it exists, else the paths that its globs match; file 2 comes before file 12."""
    pattern = str(expand_user(path))
    if not re.search(r"[*?[]", pattern) or Path(pattern).exists():
        return [existing(path, source, key)]
    plain = pattern.replace("[", "[[]")  # brackets may be part of a name: `run[lr=1e-4]/*.txt`
    paths = [Path(match) for match in glob.glob(pattern, recursive=True) or glob.glob(plain, recursive=True)]
    if not paths:
        raise SaevalError(f"data '{source}': nothing matches '{key}: {path}'{searched_in(path)}")
    for file in paths:
        if not file.is_dir():
            check_regular_file(file)  # reading a pipe would never end
    words = {file: re.split(r"(\d+)", str(file)) for file in paths}
    return sorted(paths, key=lambda f: [(not w.isdecimal(), int(w) if w.isdecimal() else 0, w) for w in words[f]])


def field_of(record: dict[str, Any] | None, field: str, where: str) -> Any:
    """Return `record[field]`, or None for a null record; the `SaevalError` for a missing field lists the fields."""
    if record is None:
        return None
    if field not in record:
        fields = ", ".join(record) or "no fields"
        raise SaevalError(f"{where}: expected a field '{field}', found {fields}")
    return record[field]


def text_of(value: Any, field: str, where: str) -> str | None:
    """Return a field's text, or None if it is null; `SaevalError` if it is not text or not valid Unicode."""
    if value is not None and not isinstance(value, str):
        remedy = "; join the messages of a conversation into one text" if isinstance(value, list) else ""
        raise SaevalError(f"{where}: expected text in '{field}', found {type(value).__name__}{remedy}")
    if value is not None and (half := lone_surrogate(value)):
        raise SaevalError(f"{where}: '{field}' holds '{half}', half of a surrogate pair; write the whole character")
    return value


def jsonl_records(path: Path) -> Iterator[Record]:
    """Yield the line number (from 1) and the object of each line that is not blank."""
    check_regular_file(path)
    with path.open("rb") as file:
        check_encoding(path, file.read(4))
        file.seek(0)
        for number, line in enumerate(iter(lambda: file.readline(MOST_LINE + 1), b""), start=1):
            if len(line) > MOST_LINE:
                raise SaevalError(f"{path}:{number}: longer than {MOST_LINE / 2**20:.0f} MiB; each line is one record")
            line = line.removeprefix(BYTE_ORDER_MARK) if number == 1 else line
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except (ValueError, RecursionError) as error:  # invalid JSON, or bytes that are not UTF-8
                fault = json_error(error)
                raise SaevalError(f"{path}:{number}: broken JSON ({fault}); each line must be one object") from None
            if record is not None and not isinstance(record, dict):
                raise SaevalError(f"{path}:{number}: expected a JSON object, found {type(record).__name__}")
            yield number, record


def csv_records(path: Path) -> Iterator[Record]:
    """Yield the row number (from 1) and the fields of each row of a .csv or .csv.zst file, by the names in its head."""
    import pyarrow as pa  # late: heavy, and every command imports plugins

    check_regular_file(path)
    csv.field_size_limit(MOST_LINE)
    number, head = 0, None
    try:
        with pa.input_stream(str(path), compression="zstd" if path.suffix == ".zst" else None) as stream:
            lines = io.TextIOWrapper(stream, encoding="utf-8-sig", newline="")
            for number, row in enumerate(csv.reader(lines, strict=True)):
                if head is None:
                    head = row
                elif len(row) != len(head):
                    raise SaevalError(f"{path}: row {number}: expected {len(head)} fields, found {len(row)}")
                elif row:
                    yield number, dict(zip(head, row, strict=True))
    except (pa.ArrowException, OSError, csv.Error) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise SaevalError(f"{path}: not a readable CSV file, after row {number} ({reason}); write it again") from None
    except UnicodeDecodeError as error:
        raise SaevalError(f"{path}: not UTF-8 text, after row {number} ({error.reason}); write it again") from None


def parquet_records(path: Path, fields: list[str]) -> Iterator[Record]:
    """Yield the row number (from 1) and these columns of each row."""
    import pyarrow as pa  # late: heavy, and every command imports plugins
    import pyarrow.parquet

    number = 0
    try:
        file = pyarrow.parquet.ParquetFile(path)
        columns = file.schema_arrow.names
        missing = [field for field in fields if field not in columns]
        if missing:
            raise SaevalError(f"{path}: expected a column '{missing[0]}', found {', '.join(columns)}")
        for batch in file.iter_batches(batch_size=1024, columns=fields):
            for record in batch.to_pylist():
                number += 1
                yield number, record
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(path, error) from None
    except UnicodeDecodeError as error:
        raise SaevalError(f"{path}: not UTF-8 text, after row {number} ({error.reason}); write it again") from None


def parquet_columns(path: Path) -> list[str]:
    """Return the names of a Parquet file's columns."""
    import pyarrow as pa  # late: as above
    import pyarrow.parquet

    try:
        return list(pyarrow.parquet.read_schema(path).names)
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: Exception) -> SaevalError:
    reason = str(error).splitlines()[0].rstrip(".")
    return SaevalError(f"{path}: not a readable Parquet file ({reason}); write or copy it again")
