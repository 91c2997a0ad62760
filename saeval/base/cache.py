"""The cache folder: tokens and hashes of earlier runs. All of it can be made again, and a run goes on without it."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

from pydantic import BaseModel

from saeval.base.sealed_json import DamagedError, EarlierError, sealed, unsealed, validated
from saeval.base.whole_files import Unwritable, tidy, write_whole

log = logging.getLogger("saeval")

VARIABLE = "SAEVAL_CACHE"


def cache_dir() -> Path | None:
    """`$SAEVAL_CACHE`, else `$XDG_CACHE_HOME/saeval`, else `~/.cache/saeval`; None where nobody knows a home folder."""
    own = os.environ.get(VARIABLE)
    try:
        if own:
            return Path(own).expanduser()
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "saeval"
    except RuntimeError:
        return None


def recall(kind: str, name: str, model: type[BaseModel]) -> dict[str, Any] | None:
    """What `keep` wrote as `kind/name.json`, of the form of `model`; None where there is nothing of use."""
    folder = cache_dir()
    if folder is None:
        return None
    path = folder / kind / f"{name}.json"
    try:
        record = unsealed(path.read_bytes())
        if record.pop("of", None) != f"{kind}/{name}":
            raise DamagedError("it is the file of another name")
        validated(model.model_validate, record)
    except (OSError, EarlierError):
        return None
    except DamagedError as error:
        damaged(path, str(error))
        return None
    return record


def keep(
    kind: str, name: str, record: Mapping[str, Any], beside: Mapping[str, Callable[[IO[bytes]], object]] | None = None
) -> None:
    """Write `kind/name.json`, and before it the files `beside` it, by suffix; one warning where that is impossible."""
    folder = cache_dir()
    if folder is None:
        _go_on_without(None, "this user has no home folder")
        return
    try:
        for suffix, content in (beside or {}).items():
            _write(folder / kind / f"{name}{suffix}", content)
        _write(folder / kind / f"{name}.json", sealed({**record, "of": f"{kind}/{name}"}))
    except Unwritable as error:
        _go_on_without(folder, error.reason)


def damaged(path: Path, why: str) -> None:
    log.warning("%s: %s; it is made again", path, why)


def _write(path: Path, content: bytes | Callable[[IO[bytes]], object]) -> None:
    _tidied(path.parent)
    write_whole(path, content, "")


@functools.cache
def _tidied(folder: Path) -> None:
    """Once a process: a cache holds many files."""
    tidy(folder)


def _go_on_without(folder: Path | None, reason: str) -> None:
    """Say once a process that a cache is of no use."""
    if folder not in _SAID:
        _SAID.add(folder)
        what = "there is no cache" if folder is None else f"the cache {folder} cannot be written"
        remedy = f"tokens and hashes are made anew in every run: set {VARIABLE} to a folder that can be written"
        log.warning("%s (%s); %s", what, reason, remedy)


_SAID: set[Path | None] = set()
