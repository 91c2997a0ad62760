"""Zip archives of arrays and tensors: whether what is in them is what was written."""

from __future__ import annotations

import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from saeval.base.lazy_torch import torch


def archive_damage(path: Path, loaded: Any = None) -> str | None:
    """What is wrong with an archive's members, in a few words; None where nothing is, or where the file is no archive.

    Readers that map a file into memory look at no checksum and at no length, so that a flipped bit or the bytes of a
    neighbour would be weights. `loaded` is what torch made of the file: each tensor's storage has a member of its size.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            sizes = Counter(one.file_size for one in archive.infolist() if "/data/" in one.filename)
            if (member := archive.testzip()) is not None:
                return f"the checksum of '{member}' in it is wrong"
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError, RuntimeError, ValueError):
        return None  # what is wrong with the archive itself is said by its reader
    storages = {one.data_ptr(): one.nbytes() for one in _storages(loaded) if one.nbytes() and one.device.type == "cpu"}
    if Counter(storages.values()) - sizes:
        return "a tensor in it is not as long as its shape says"
    return None


def load_tensors_only(path: Path) -> Any:
    """What torch reads of a file, mapped into memory where it can be: tensors and plain data, and nothing is executed.

    Raises whatever torch does for a file that is damaged or asks for more.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except RuntimeError:  # files from before torch 1.6 cannot be mapped
        return torch.load(path, map_location="cpu", weights_only=True)


def _storages(loaded: Any) -> Iterator[Any]:
    """The storages of all tensors in what was loaded, however nested."""
    if isinstance(loaded, Mapping):
        loaded = list(loaded.values())
    if isinstance(loaded, list | tuple):
        for one in loaded:
            yield from _storages(one)
    elif hasattr(loaded, "untyped_storage") and str(getattr(loaded, "layout", "")) == "torch.strided":
        yield loaded.untyped_storage()
