"""Records of JSON Lines and Parquet files, read one by one; what is wrong is told with its file and line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from saeval.errors import SaevalError, expanded
from saeval.textfile import MARK, check_encoding

Record = tuple[int, dict[str, Any]]


def existing(path: str, source: str) -> Path:
    """The path, `~` expanded; `SaevalError` where nothing is there."""
    found = expanded(path)
    if not found.exists():
        raise SaevalError(f"data '{source}': no such file or folder: {path}; check 'path'")
    return found


def field_of(record: dict[str, Any], field: str, where: str) -> Any:
    """`record[field]`; `SaevalError` names the fields there are."""
    if field not in record:
        there = ", ".join(record) or "no field at all"
        raise SaevalError(f"{where}: expected a field '{field}', found {there}")
    return record[field]


def jsonl_records(path: Path) -> Iterator[Record]:
    """Line number (from 1) and object of each line that is not blank."""
    with path.open("rb") as file:
        check_encoding(path, file.read(4))
        file.seek(0)
        for number, line in enumerate(file, start=1):
            line = line.removeprefix(MARK) if number == 1 else line
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except ValueError as error:  # bad JSON, or bytes that are no UTF-8
                raise SaevalError(f"{path}:{number}: broken JSON ({error}); every line must be one object") from None
            if not isinstance(record, dict):
                raise SaevalError(f"{path}:{number}: expected a JSON object, found {type(record).__name__}")
            yield number, record


def parquet_records(path: Path, fields: list[str]) -> Iterator[Record]:
    """Row number (from 1) and these columns of each row."""
    import pyarrow as pa  # late: heavy, and a plugin is imported for every command
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(path)
        columns = file.schema_arrow.names
        missing = [field for field in fields if field not in columns]
        if missing:
            raise SaevalError(f"{path}: expected a column '{missing[0]}', found {', '.join(columns)}")
        number = 0
        for batch in file.iter_batches(batch_size=1024, columns=fields):
            for record in batch.to_pylist():
                number += 1
                yield number, record
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise SaevalError(f"{path}: not a readable Parquet file ({reason}); write or copy it again") from None


def parquet_columns(path: Path) -> list[str]:
    """The names of a Parquet file's columns."""
    import pyarrow as pa  # late: as above
    import pyarrow.parquet

    try:
        return list(pyarrow.parquet.read_schema(path).names)
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise SaevalError(f"{path}: not a readable Parquet file ({reason}); write or copy it again") from None
