"""Hashes of files, remembered between runs."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import time
from pathlib import Path

_SETTLED_SECONDS = 2.0


def cache_dir() -> Path:
    """`$SAEVAL_CACHE`, else `$XDG_CACHE_HOME/saeval`, else `~/.cache/saeval`; everything in it can be rebuilt."""
    own = os.environ.get("SAEVAL_CACHE")
    if own:
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "saeval"


def sha256_file(path: Path | str) -> str:
    """Hex digest of a file's content; read again only when its size or time changed. `OSError` where it cannot be."""
    path = Path(path).resolve()
    found = path.stat()
    state = [str(path), found.st_size, found.st_mtime_ns]
    entry = cache_dir() / "sha256" / f"{hashlib.sha256(str(path).encode()).hexdigest()}.json"
    try:
        remembered = json.loads(entry.read_text(encoding="utf-8"))
        if remembered["state"] == state:
            return str(remembered["sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    # A file changed this moment may change again within one tick of its clock: such a hash is not remembered.
    if time.time() - found.st_mtime > _SETTLED_SECONDS:
        _remember(entry, {"state": state, "sha256": digest})
    return digest


def _remember(entry: Path, content: dict[str, object]) -> None:
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=entry.parent, prefix=".", suffix=".json")
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(content, file)
        os.replace(temporary, entry)
    except OSError:  # a cache that cannot be written costs time, not results
        return
