"""The weight files of a local folder: which of them are read, and whether they are whole."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from saeval.errors import SaevalError
from saeval.textfile import MARK, read_json

_KINDS = ("model.safetensors", "pytorch_model.bin")
"""In the order in which transformers looks for them; an index beside each may name shards instead."""

_LONGEST_HEADER = 100_000_000
"""Bytes of a safetensors header at most, by that format."""


def weight_files(folder: Path) -> list[Path]:
    """The files that transformers would read; `SaevalError` where there are none, or not all, or not whole ones."""
    for kind in _KINDS:
        index = folder / f"{kind}.index.json"
        if (folder / kind).is_file():
            found = [folder / kind]
        elif index.is_file():
            found = _shards(index)
        else:
            continue
        for file in found:
            if file.suffix == ".safetensors":
                check_whole(file)
        return sorted([*found, index] if found[0].name != kind else found)
    raise SaevalError(f"{folder} has no weights: expected model.safetensors or pytorch_model.bin, or their shards")


def _shards(index: Path) -> list[Path]:
    try:
        names = sorted(set(plain_json(index)["weight_map"].values()))
    except (KeyError, TypeError, AttributeError):
        raise SaevalError(f"{index} is no index of weights: it has no 'weight_map'; save the model again") from None
    if not names:
        raise SaevalError(f"{index} names no weights; save the model again")
    files = [index.parent / str(name) for name in names]
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        shown = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        raise SaevalError(f"{index} names {shown}, which the folder lacks; copy or download the model again")
    return files


def plain_json(path: Path) -> Any:
    """What a JSON file holds that transformers reads too, which takes UTF-8 without a byte order mark alone."""
    found = read_json(path)
    with path.open("rb") as file:
        if file.read(len(MARK)) == MARK:
            raise SaevalError(
                f"{path} starts with a byte order mark, which transformers cannot read; save it as UTF-8 without one"
            )
    return found


def check_whole(file: Path) -> None:
    """A safetensors file says in its header how long it is."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        try:
            whole = 8 + length <= size and length <= _LONGEST_HEADER
            header: dict[str, Any] = json.loads(stream.read(length)) if whole else {}
            ends = [int(entry["data_offsets"][1]) for name, entry in header.items() if name != "__metadata__"]
        except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
            ends = []
    if not ends:
        raise SaevalError(f"{file} is no safetensors file, or is cut off; copy or download it again")
    if 8 + length + max(ends) != size:
        raise SaevalError(f"{file} has {size} bytes where its header says {8 + length + max(ends)}; copy it again")
