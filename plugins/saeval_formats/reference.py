"""What a suite says of a checkpoint, and the small files beside its weights: each fault one sentence."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from saeval.errors import SaevalError, suggestion


class Asked(BaseModel):
    """Keys that every local format takes."""

    model_config = ConfigDict(extra="forbid")

    path: Path
    hook_name: str | None = None
    """Instead of the checkpoint's own."""


A = TypeVar("A", bound=BaseModel)


def parsed(cls: type[A], reference: Mapping[str, Any], format: str, *, needs: str) -> A:
    """The reference as `cls`; `SaevalError` names the first key at fault. `needs` says what `path` is."""
    try:
        return cls(**reference)
    except ValidationError as error:
        fault = error.errors()[0]
        key = ".".join(str(part) for part in fault["loc"])
        if fault["type"] == "extra_forbidden":
            raise SaevalError(f"{format}: unknown key '{key}'{suggestion(key, cls.model_fields)}") from None
        if fault["type"] == "missing":
            what = f", {needs}" if key == "path" else ""
            raise SaevalError(f"{format}: expected the key '{key}'{what}") from None
        raise SaevalError(f"{format}: '{key}': {fault['msg']}, found {fault['input']!r}") from None


def folder_of(path: Path, format: str, holds: str) -> Path:
    """The folder at `path`; `SaevalError` where there is none."""
    folder = path.expanduser()
    if not folder.is_dir():
        found = "a file" if folder.exists() else "nothing"
        raise SaevalError(f"{format}: {folder}: expected a folder with {holds}, found {found}")
    return folder


def json_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file; `SaevalError` where there is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SaevalError(f"{path}: no such file; check 'path'") from None
    except (OSError, ValueError, RecursionError) as error:  # bad JSON, or bytes that are no UTF-8
        raise SaevalError(f"{path}: broken JSON ({error}); copy it again") from None
    if not isinstance(found, dict):
        raise SaevalError(f"{path}: expected a JSON object, found {type(found).__name__}")
    return found


def whole(path: Path, key: str, found: Any) -> int:
    """A positive whole number out of a file."""
    if not isinstance(found, int) or isinstance(found, bool) or found < 1:
        raise SaevalError(f"{path}: expected a positive whole number in '{key}', found {found!r}")
    return found


def flag(path: Path, raw: Mapping[str, Any], key: str, default: bool) -> bool:
    """A truth value out of a file."""
    found = raw.get(key, default)
    if not isinstance(found, bool):
        raise SaevalError(f"{path}: expected true or false in '{key}', found {found!r}")
    return found
