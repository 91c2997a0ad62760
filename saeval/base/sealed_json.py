"""JSON files with a checksum of their content, by which damage and edits are detected."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from pydantic_core import ValidationError, from_json

CHECKSUM, OF_FILE = "checksum", "file_checksum"
"""Keys of two checksums: of the content in any layout, and of the preceding bytes, which is faster to compare."""


class DamagedError(Exception):
    """A file is not as saeval wrote it. The message says why, without the file's name."""


class EarlierError(DamagedError):
    """A file has no checksum: an earlier version of saeval wrote it, or something else overwrote it."""


def sealed(record: Mapping[str, Any], indent: int | None = None) -> bytes:
    """Return the JSON file of `record`, plain data, with its checksums."""
    record = {name: value for name, value in record.items() if name not in (CHECKSUM, OF_FILE)}
    text = json.dumps({**record, CHECKSUM: _checksum(record)}, indent=indent, allow_nan=False)
    body = text.removesuffix("}").rstrip().encode()
    return body + _tail(body)


def _tail(body: bytes) -> bytes:
    return f', "{OF_FILE}": "{hashlib.sha256(body).hexdigest()}"}}\n'.encode()


_TAIL = len(_tail(b""))


def is_whole(content: bytes) -> bool:
    """Return True if a file's bytes are unchanged. If only its layout changed, `unsealed` still accepts it."""
    return content.endswith(_tail(content[:-_TAIL]))


def unsealed(content: bytes) -> dict[str, Any]:
    """Return the record in a sealed file, in any layout; `DamagedError` if checksum and content disagree."""
    record = parsed(content)
    if CHECKSUM not in record:
        raise EarlierError("it has no checksum (written by an earlier saeval, or overwritten)")
    checksum = record.pop(CHECKSUM)
    record.pop(OF_FILE, None)
    if is_whole(content):
        return record
    try:
        actual = _checksum(record)
    except (ValueError, RecursionError) as error:  # a number beyond JSON, such as 1e999
        raise DamagedError(f"its content cannot be read ({error})") from None
    if checksum != actual:
        raise DamagedError("its content does not match its checksum")
    return record


def parsed(content: bytes) -> dict[str, Any]:
    """Return the mapping in a JSON file; `DamagedError` for other content and for NaN."""
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
        return from_json(content, allow_inf_nan=False)  # twice as fast as json, which has better messages
    except ValueError:
        return json.loads(content.decode("utf-8-sig"), parse_constant=_refused)


def validated(check: Callable[[Any], object], record: Any) -> None:
    """Call pydantic's `check`; `DamagedError` with its first fault."""
    try:
        check(record)
    except ValidationError as error:
        from saeval.base.parameters import faults  # late: it imports pydantic, which plain text does not need

        raise DamagedError(faults(error, record)[0].sentence) from None


def _refused(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


def _checksum(record: Mapping[str, Any]) -> str:
    text = json.dumps(record, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
