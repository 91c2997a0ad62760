"""JSON that carries a checksum of its content, so that a damaged or edited file is known as such."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from pydantic_core import ValidationError, from_json

CHECKSUM, OF_FILE = "checksum", "file_checksum"
"""Of the content, however it is laid out; of the file's bytes before it, which is much faster to compare."""


class DamagedError(Exception):
    """A file of saeval's own is not what saeval wrote; says why, without its name."""


class EarlierError(DamagedError):
    """The file has no checksum: an earlier version of saeval wrote it, or something else overwrote it."""


def sealed(record: Mapping[str, Any], indent: int | None = None) -> bytes:
    """A JSON file of `record`, plain data, with its checksums."""
    record = {name: value for name, value in record.items() if name not in (CHECKSUM, OF_FILE)}
    text = json.dumps({**record, CHECKSUM: _checksum(record)}, indent=indent, allow_nan=False)
    body = text.removesuffix("}").rstrip().encode()
    return body + _tail(body)


def _tail(body: bytes) -> bytes:
    return f', "{OF_FILE}": "{hashlib.sha256(body).hexdigest()}"}}\n'.encode()


_TAIL = len(_tail(b""))


def is_whole(content: bytes) -> bool:
    """Whether a file's bytes are those that were written; one that was laid out anew may still be sound."""
    return content.endswith(_tail(content[:-_TAIL]))


def unsealed(content: bytes) -> dict[str, Any]:
    """The record in such a file, however it is laid out; `DamagedError` where checksum and content disagree."""
    record = parsed(content)
    if CHECKSUM not in record:
        raise EarlierError("it has no checksum (written by an earlier saeval, or overwritten)")
    checksum = record.pop(CHECKSUM)
    record.pop(OF_FILE, None)
    if is_whole(content):
        return record
    try:
        own = _checksum(record)
    except (ValueError, RecursionError) as error:  # a number that JSON has no word for, such as 1e999
        raise DamagedError(f"its content cannot be read ({error})") from None
    if checksum != own:
        raise DamagedError("its content does not match its checksum")
    return record


def parsed(content: bytes) -> dict[str, Any]:
    """The mapping in a JSON file, without NaN; `DamagedError` for anything else."""
    try:
        record = _json(content)
    except RecursionError:
        raise DamagedError("it is nested too deeply") from None
    except ValueError as error:
        raise DamagedError(f"it is not valid JSON ({str(error)[:100]})") from None
    if not isinstance(record, dict):
        raise DamagedError(f"it holds a {type(record).__name__}, not an object")
    return record


def _json(content: bytes) -> Any:
    try:
        return from_json(content, allow_inf_nan=False)  # twice as fast as json, which has the better words
    except ValueError:
        return json.loads(content.decode("utf-8-sig"), parse_constant=_refused)


def validated(check: Callable[[Any], object], record: Any) -> None:
    """`DamagedError` with the first thing that pydantic's `check` finds wrong."""
    try:
        check(record)
    except ValidationError as error:
        from saeval.base.parameters import faults  # late: it imports pydantic, and a kept text has no form to check

        raise DamagedError(faults(error, record)[0].sentence) from None


def _refused(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON")


def _checksum(record: Mapping[str, Any]) -> str:
    text = json.dumps(record, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
