"""The cache folder: tokens and hashes of earlier runs. All of it can be rebuilt, and a run works without it."""

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
    """Return `$SAEVAL_CACHE`, else `$XDG_CACHE_HOME/saeval`, else `~/.cache/saeval`; None without a home folder."""
    chosen = os.environ.get(VARIABLE)
    try:
        if chosen:
            return Path(chosen).expanduser()
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "saeval"
    except RuntimeError:
        return None


def recall(kind: str, name: str, model: type[BaseModel]) -> dict[str, Any] | None:
    """Return the record that `keep` wrote as `kind/name.json`, checked by `model`; None if missing or damaged."""
    folder = cache_dir()
    if folder is None:
        return None
    path = folder / kind / f"{name}.json"
    try:
        record = unsealed(path.read_bytes())
        if record.pop("of", None) != f"{kind}/{name}":
            raise DamagedError("it belongs to another file name")
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
    """Write `kind/name.json`, and before it the files `beside` it, by suffix. Warn once if that is impossible."""
    folder = cache_dir()
    if folder is None:
        _warn_once(None, "this user has no home folder")
        return
    try:
        _tidied(folder / kind)
        for suffix, content in (beside or {}).items():
            write_whole(folder / kind / f"{name}{suffix}", content, "")
        write_whole(folder / kind / f"{name}.json", sealed({**record, "of": f"{kind}/{name}"}), "")
    except Unwritable as error:
        _warn_once(folder, error.reason)


def damaged(path: Path, why: str) -> None:
    """Warn about a damaged file."""
    log.warning("%s: %s; it is rebuilt", path, why)


@functools.cache
def _tidied(folder: Path) -> None:
    """Tidy a folder once per process, since a cache holds many files."""
    tidy(folder)


def _warn_once(folder: Path | None, reason: str) -> None:
    """Warn, once per process, that a cache cannot be used."""
    if folder not in _WARNED:
        _WARNED.add(folder)
        what = "there is no cache" if folder is None else f"the cache {folder} cannot be written"
        remedy = f"tokens and hashes are computed again in every run: set {VARIABLE} to a writable folder"
        log.warning("%s (%s); %s", what, reason, remedy)


_WARNED: set[Path | None] = set()
