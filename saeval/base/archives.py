"""Integrity checks of zip archives of arrays and tensors."""

from __future__ import annotations

import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from saeval.base.lazy_torch import torch


def archive_damage(path: Path, loaded: Any = None) -> str | None:
    """Return what is wrong with an archive's members, in a few words; None if nothing is, or if it is no archive.

    Readers that map a file into memory check neither checksums nor lengths, so a flipped bit or the bytes of another
    member would become weights. `loaded` is torch's content of the file: each storage must have a member of its size.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            sizes = Counter(member.file_size for member in archive.infolist() if "/data/" in member.filename)
            if (damaged := archive.testzip()) is not None:
                return f"the checksum of '{damaged}' in it is wrong"
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError, RuntimeError, ValueError):
        return None  # its reader reports damage of the archive itself
    try:
        storages = {s.data_ptr(): s.nbytes() for s in _storages(loaded) if s.nbytes() and s.device.type == "cpu"}
    except RecursionError:
        return "its dicts are nested too deeply"
    if Counter(storages.values()) - sizes:
        return "a tensor in it is shorter or longer than its shape"
    return None


def load_tensors_only(path: Path) -> Any:
    """Return the tensors and plain data in a torch file, memory-mapped if possible; nothing in it is executed.

    Raises torch's own errors if the file is damaged or holds other objects.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except RuntimeError:  # files from before torch 1.6 cannot be mapped
        return torch.load(path, map_location="cpu", weights_only=True)


def _storages(loaded: Any) -> Iterator[Any]:
    """Yield the storages of all tensors in nested lists and mappings."""
    if isinstance(loaded, Mapping):
        loaded = list(loaded.values())
    if isinstance(loaded, list | tuple):
        for item in loaded:
            yield from _storages(item)
    elif hasattr(loaded, "untyped_storage") and str(getattr(loaded, "layout", "")) == "torch.strided":
        yield loaded.untyped_storage()
