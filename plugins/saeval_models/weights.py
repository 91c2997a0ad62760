"""The weight files of a local folder: selection, integrity, shapes and tensors."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from saeval.plugin import BYTE_ORDER_MARK, SaevalError, archive_damage, load_tensors_only, read_json, torch

_KINDS = ("model.safetensors", "pytorch_model.bin")
"""Weight files in transformers' order of preference; an index beside each may name shards instead."""

_LONGEST_HEADER = 100_000_000
"""Maximum size of a safetensors header in bytes, by that format."""


def weight_files(folder: Path) -> list[Path]:
    """Return the files that transformers would read; `SaevalError` if none exists, or any is missing or truncated."""
    for kind in _KINDS:
        index = folder / f"{kind}.index.json"
        if (folder / kind).is_file():
            files = [folder / kind]
        elif index.is_file():
            files = _shards(index)
        else:
            continue
        for file in files:
            if file.suffix == ".safetensors":
                check_whole(file)
        return sorted([*files, index] if files[0].name != kind else files)
    raise SaevalError(f"{folder} has no weights: expected model.safetensors or pytorch_model.bin, or their shards")


def _shards(index: Path) -> list[Path]:
    try:
        names = sorted(set(plain_json(index)["weight_map"].values()))
    except (KeyError, TypeError, AttributeError):
        raise SaevalError(f"{index} is not an index of weights: it has no 'weight_map'; save the model again") from None
    if not names:
        raise SaevalError(f"{index} names no weights; save the model again")
    for name in names:
        # Checkpoints are untrusted: only files in the same folder are read.
        if not isinstance(name, str) or name in ("", ".", "..") or name != Path(name).name or "\\" in name:
            raise SaevalError(f"{index} names '{name}', which is not a file in its folder; save the model again")
    files = [index.parent / name for name in names]
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        shown = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        raise SaevalError(f"{index} names {shown}, which are missing from the folder; copy or download the model again")
    return files


def plain_json(path: Path) -> Any:
    """Return the content of a JSON file that transformers also reads; `SaevalError` if it has a byte order mark."""
    content = read_json(path)
    with path.open("rb") as file:
        if file.read(len(BYTE_ORDER_MARK)) == BYTE_ORDER_MARK:
            raise SaevalError(
                f"{path} starts with a byte order mark, which transformers cannot read; save it as UTF-8 without one"
            )
    return content


def shapes(files: Iterable[Path]) -> dict[str, tuple[int, ...]]:
    """Return the shape of each tensor in weight files by name, without reading values."""
    by_name: dict[str, tuple[int, ...]] = {}
    for file in files:
        if file.suffix == ".safetensors":
            by_name |= {name: tuple(entry["shape"]) for name, entry in check_whole(file).items()}
        elif file.suffix == ".bin":
            by_name |= {name: tuple(tensor.shape) for name, tensor in _unpickled(file).items()}
    return by_name


def tensors(files: Iterable[Path], names: Collection[str]) -> dict[str, torch.Tensor]:
    """Return the tensors with these names in weight files; missing ones are left out."""
    from safetensors import safe_open  # late: not needed to list adapters

    loaded: dict[str, torch.Tensor] = {}
    for file in files:
        if file.suffix == ".safetensors":
            with safe_open(file, framework="pt") as opened:
                loaded |= {name: opened.get_tensor(name) for name in opened.keys() if name in names}  # noqa: SIM118
        elif file.suffix == ".bin":
            loaded |= {name: tensor.clone() for name, tensor in _unpickled(file).items() if name in names}
    return loaded


def _unpickled(file: Path) -> Mapping[str, torch.Tensor]:
    """Return the memory-mapped tensors of a pickled file without executing it; `SaevalError` if it holds more."""
    try:
        content = load_tensors_only(file)
        plain = isinstance(content, Mapping) and all(isinstance(value, torch.Tensor) for value in content.values())
    except Exception:  # torch raises arbitrary exceptions on damaged bytes
        plain = False
    if not plain:
        raise SaevalError(
            f"{file}: damaged, or a pickle with more than tensors, which is not run; save the model as safetensors"
        )
    return {str(name): tensor for name, tensor in content.items()}


def check_checksums(files: Iterable[Path]) -> None:
    """Raise `SaevalError` for a pickled file with a wrong checksum; safetensors have no checksums."""
    for file in files:
        if file.suffix == ".bin" and (fault := archive_damage(file, _unpickled(file))) is not None:
            raise SaevalError(f"{file}: damaged ({fault}); copy it again")


def check_whole(file: Path) -> dict[str, Any]:
    """Return the header's entries of a safetensors file; `SaevalError` if the file's size does not match the header."""
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
        raise SaevalError(f"{file} is truncated or not a safetensors file; copy or download it again")
    if 8 + length + max(ends) != size:
        raise SaevalError(f"{file} has {size} bytes, but its header requires {8 + length + max(ends)}; copy it again")
    return {name: entry for name, entry in header.items() if name != "__metadata__"}
