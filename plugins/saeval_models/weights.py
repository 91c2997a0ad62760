"""The weight files of a local folder: which of them are read, whether they are whole, and what is in them."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saeval.plugin import BYTE_ORDER_MARK, SaevalError, archive_damage, load_tensors_only, read_json

if TYPE_CHECKING:  # annotations only: torch is not needed to list adapters
    from torch import Tensor

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
    for name in names:
        # A checkpoint may come from anywhere: what it names is looked for beside it, and nowhere else.
        if not isinstance(name, str) or name in ("", ".", "..") or name != Path(name).name or "\\" in name:
            raise SaevalError(f"{index} names '{name}', which is no file of its own folder; save the model again")
    files = [index.parent / name for name in names]
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        shown = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        raise SaevalError(f"{index} names {shown}, which the folder lacks; copy or download the model again")
    return files


def plain_json(path: Path) -> Any:
    """What a JSON file holds that transformers reads too, which takes UTF-8 without a byte order mark alone."""
    found = read_json(path)
    with path.open("rb") as file:
        if file.read(len(BYTE_ORDER_MARK)) == BYTE_ORDER_MARK:
            raise SaevalError(
                f"{path} starts with a byte order mark, which transformers cannot read; save it as UTF-8 without one"
            )
    return found


def shapes(files: Iterable[Path]) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor in weight files, by name; no values are read."""
    found: dict[str, tuple[int, ...]] = {}
    for file in files:
        if file.suffix == ".safetensors":
            found |= {name: tuple(entry["shape"]) for name, entry in check_whole(file).items()}
        elif file.suffix == ".bin":
            found |= {name: tuple(tensor.shape) for name, tensor in _unpickled(file).items()}
    return found


def tensors(files: Iterable[Path], names: Collection[str]) -> dict[str, Tensor]:
    """The tensors of these names in weight files, those that are there."""
    from safetensors import safe_open  # late: not needed to list adapters

    found: dict[str, Tensor] = {}
    for file in files:
        if file.suffix == ".safetensors":
            with safe_open(file, framework="pt") as opened:
                found |= {name: opened.get_tensor(name) for name in opened.keys() if name in names}  # noqa: SIM118
        elif file.suffix == ".bin":
            found |= {name: tensor.clone() for name, tensor in _unpickled(file).items() if name in names}
    return found


def _unpickled(file: Path) -> Mapping[str, Tensor]:
    """The tensors of a pickled file, mapped into memory and never executed; `SaevalError` where it holds more."""
    import torch  # late: as above

    try:
        found = load_tensors_only(file)
        plain = isinstance(found, Mapping) and all(isinstance(value, torch.Tensor) for value in found.values())
    except Exception:  # torch's readers raise what they like on damaged bytes
        plain = False
    if not plain:
        raise SaevalError(
            f"{file}: damaged, or a pickle of more than tensors, which is not run; save the model as safetensors"
        )
    return {str(name): tensor for name, tensor in found.items()}


def check_checksums(files: Iterable[Path]) -> None:
    """`SaevalError` for a pickled file in which a tensor is not what was written; safetensors have no checksums."""
    for file in files:
        if file.suffix == ".bin" and (fault := archive_damage(file, _unpickled(file))) is not None:
            raise SaevalError(f"{file}: damaged ({fault}); copy it again")


def check_whole(file: Path) -> dict[str, Any]:
    """The entries of a safetensors file's header, which says how long the file is; `SaevalError` where it is not so."""
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
    return {name: entry for name, entry in header.items() if name != "__metadata__"}
