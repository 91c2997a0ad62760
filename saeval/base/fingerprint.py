"""Hashes of files (cached between runs), of tensors and of plain data."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from saeval.base import cache

_SETTLED_SECONDS = 2.0
_KIND = "sha256"


class _Remembered(BaseModel):
    model_config = ConfigDict(strict=True)

    state: list[str | int]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


def sha256_file(path: Path | str) -> str:
    """Return the SHA-256 hex digest of a file, cached until its size, times or inode change. `OSError` as of `open`."""
    path = Path(path).resolve()
    status = path.stat()
    state = [str(path), status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]
    name = hashlib.sha256(str(path).encode()).hexdigest()
    cached = cache.recall(_KIND, name, _Remembered)
    if cached is not None and cached["state"] == state:
        return str(cached["sha256"])
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    # A file that just changed may change again within the same clock tick, so its hash is not cached.
    if time.time() - status.st_mtime > _SETTLED_SECONDS:
        cache.keep(_KIND, name, {"state": state, "sha256": digest})
    return digest


class _Made(BaseModel):
    made: dict[str, Any]


def cached(kind: str, key: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return the result of `make`, from the cache if it is there.

    The result is plain data with string keys. `key` is a digest of everything that it depends on, and `kind` a folder
    of the cache. A damaged entry is computed again.
    """
    entry = cache.recall(kind, key, _Made)
    if entry is None:
        entry = {"made": make()}
        cache.keep(kind, key, entry)
    result: dict[str, Any] = entry["made"]
    return result


def tensors_sha256(tensors: Mapping[str, Any]) -> str:
    """Return a hash of named tensors: names, shapes, dtypes, bytes. Other values are ignored."""
    import torch  # late: files are hashed without it

    digest = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        if isinstance(value, torch.Tensor):
            digest.update(f"{name} {tuple(value.shape)} {value.dtype}\n".encode())
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def digest_of(value: Any) -> str:
    """Return the SHA-256 hex digest of plain data; it is the same in every process."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()
