"""Hashes: of files (remembered between runs), of tensors, of plain data."""

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
    """Hex digest of a file's content; read again only when the file looks changed. `OSError` where it cannot be."""
    path = Path(path).resolve()
    found = path.stat()
    state = [str(path), found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino]
    name = hashlib.sha256(str(path).encode()).hexdigest()
    cached = cache.recall(_KIND, name, _Remembered)
    if cached is not None and cached["state"] == state:
        return str(cached["sha256"])
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    # A file changed this moment may change again within one tick of its clock: such a hash is not remembered.
    if time.time() - found.st_mtime > _SETTLED_SECONDS:
        cache.keep(_KIND, name, {"state": state, "sha256": digest})
    return digest


class _Made(BaseModel):
    made: dict[str, Any]


def cached(kind: str, key: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `make` returns, plain data with text for keys; from the cache where it was made under this key before.

    `key` is a digest of all that the data depend on. An entry that is damaged or cannot be read is made again.
    """
    kept = cache.recall(kind, key, _Made)
    if kept is None:
        kept = {"made": make()}
        cache.keep(kind, key, kept)
    found: dict[str, Any] = kept["made"]
    return found


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
