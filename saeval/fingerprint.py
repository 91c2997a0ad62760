"""Hashes: of files (remembered between runs), of tensors, of plain data."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

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


def remembered(kind: str, key: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `make` returns, plain data with text for keys; from the cache where it was made under this key before.

    `key` is a digest of all that the data depend on. An entry that is damaged or cannot be read is made again.
    """
    entry = cache_dir() / kind / f"{key}.json"
    try:
        found = json.loads(entry.read_text(encoding="utf-8"))
        kept = found.get("made") if isinstance(found, dict) else None
        if isinstance(kept, dict) and found["sha256"] == digest_of(kept):
            return kept
    except (OSError, ValueError, KeyError, RecursionError):
        pass
    made = make()
    _remember(entry, {"sha256": digest_of(made), "made": made})
    return made


def tensors_sha256(tensors: Mapping[str, Any]) -> str:
    """Hash of named tensors: names, shapes, dtypes, bytes. What is no tensor is passed over."""
    import torch  # late: files are hashed without it

    digest = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        if isinstance(value, torch.Tensor):
            digest.update(f"{name} {tuple(value.shape)} {value.dtype}\n".encode())
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def digest_of(value: Any) -> str:
    """Hash of plain data, the same in every process."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()
