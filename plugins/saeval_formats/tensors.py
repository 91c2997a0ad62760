"""Files of named tensors: headers, checked before any weight is used, and safe readers."""

from __future__ import annotations

import hashlib
import json
import pickle
import re
import zipfile
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

import numpy as np
from safetensors import SafetensorError, safe_open

from saeval.plugin import SaevalError, archive_damage, load_tensors_only, searched_in, sha256_file, torch

if TYPE_CHECKING:
    from torch import Tensor

V = TypeVar("V")
Tensors = dict[str, "Tensor"]
"""Tensors by name."""

_DTYPES = {"torch.float64": "F64", "torch.float32": "F32", "torch.float16": "F16", "torch.bfloat16": "BF16"}
_NUMPY_DTYPES = {"float64": "F64", "float32": "F32", "float16": "F16"}
_FLOATS = set(_DTYPES.values())
_WRAPPERS = ("module.", "_orig_mod.")
"""Prefixes that DataParallel and torch.compile add to the names of a wrapped module's tensors."""


@dataclass(frozen=True)
class Header:
    """The names, shapes and dtypes of a file's tensors."""

    path: Path
    shapes: Mapping[str, tuple[int, ...]]
    dtypes: Mapping[str, str]
    """In safetensors' spelling: F32, F16, BF16, F64."""
    fetch: Callable[[Collection[str], str], Mapping[str, Tensor]]
    """Function of tensor names and a device: the tensors by name, in the stored dtype."""

    @classmethod
    def of(cls, path: Path, *, wrapped: bool = True) -> Self:
        """Return the header of a safetensors file; `SaevalError` if it is missing, truncated or not safetensors.

        Without `wrapped`, names keep the prefixes of wrapped modules.
        """
        _check_exists(path)
        try:
            with safe_open(path, framework="np") as file:
                slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (not iterable itself)
                shapes = {name: tuple(part.get_shape()) for name, part in slices.items()}
                dtypes = {name: str(part.get_dtype()) for name, part in slices.items()}
        except (SafetensorError, OSError) as error:
            reason = str(error).splitlines()[0].rstrip(".")
            raise SaevalError(f"{path}: truncated or not a safetensors file ({reason}); copy it again") from None

        stored = unwrapped(path, shapes) if wrapped else {name: name for name in shapes}

        def fetch(names: Collection[str], device: str) -> dict[str, Tensor]:
            with safe_open(path, framework="pt", device=device) as file:
                return {name: file.get_tensor(stored[name]) for name in names}

        return cls(path, _renamed(shapes, stored), _renamed(dtypes, stored), fetch)

    @classmethod
    def of_npz(cls, path: Path, *, wrapped: bool = True) -> Self:
        """Return the header of a NumPy archive, without unpickling anything; `SaevalError` as in `of`."""
        _check_exists(path)
        shapes, dtypes = {}, {}
        try:
            with zipfile.ZipFile(path) as archive:
                for member in archive.namelist():
                    name = member.removesuffix(".npy")
                    with archive.open(member) as file:
                        shapes[name], dtype = _npy_header(file)
                    dtypes[name] = _NUMPY_DTYPES.get(dtype.name, dtype.name)
        except Exception as error:  # numpy and zipfile raise arbitrary exceptions on damaged bytes
            raise SaevalError(f"{path}: truncated or not an npz file ({_reason(error)}); copy it again") from None

        _check_members(path)
        stored = unwrapped(path, shapes) if wrapped else {name: name for name in shapes}

        def fetch(names: Collection[str], device: str) -> dict[str, Tensor]:
            try:
                with np.load(path, allow_pickle=False) as archive:
                    arrays = {name: archive[stored[name]] for name in names}
                native = {
                    name: array.astype(array.dtype.newbyteorder("="), copy=False) for name, array in arrays.items()
                }
                return {name: torch.from_numpy(array).to(device) for name, array in native.items()}
            except Exception as error:  # as above
                raise SaevalError(f"{path}: damaged ({_reason(error)}); copy it again") from None

        return cls(path, _renamed(shapes, stored), _renamed(dtypes, stored), fetch)

    @classmethod
    def of_tensors(cls, path: Path, tensors: Mapping[str, Tensor]) -> Self:
        """Return the header of tensors that were read from `path` and are in memory (or memory-mapped)."""
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        dtypes = {name: _odd(t) or _DTYPES.get(str(t.dtype), str(t.dtype)) for name, t in tensors.items()}

        def fetch(names: Collection[str], device: str) -> dict[str, Tensor]:
            # Copied: overwriting the file during a run would change memory-mapped weights.
            return {name: tensors[name].detach().to(device, copy=True) for name in names}

        return cls(path, shapes, dtypes, fetch)

    def check(
        self,
        expected: Mapping[str, tuple[int, ...]],
        optional: Collection[str] = (),
        *,
        layout: str = "",
        kind: str = "'architecture'",
        sizes: str = "'d_in' and 'd_sae'",
    ) -> None:
        """Raise `SaevalError` for the first tensor that is missing, unexpected, of the wrong shape, or not of floats.

        For the messages: `layout` describes the format's shapes; `kind` and `sizes` name the settings that determine
        which tensors are expected, and their sizes.
        """
        first = next(iter(expected), "")
        prefixes = [name.removesuffix(first) for name in self.shapes if name.endswith(f".{first}")]
        if prefix := next((p for p in prefixes if all(f"{p}{name}" in self.shapes for name in expected)), None):
            raise SaevalError(
                f"{self.path}: every tensor's name begins with '{prefix}', the name of a module around the SAE; save "
                "the state_dict() of the SAE itself"
            )
        for name in expected:
            if name not in self.shapes:
                raise SaevalError(
                    f"{self.path}: expected the tensors {', '.join(sorted(expected))}, "
                    f"found {', '.join(sorted(self.shapes)) or 'none'} ('{name}' is missing); check {kind}"
                )
        for name, shape in self.shapes.items():
            if name not in expected and name not in optional:
                raise SaevalError(
                    f"{self.path}: unexpected tensor '{name}' {list(shape)} beside "
                    f"{', '.join(sorted(expected))}; check {kind}"
                )
            if self.dtypes[name] not in _FLOATS:
                raise SaevalError(f"{self.path}: '{name}' is {self.dtypes[name]}, expected a floating-point tensor")
        for name, shape in expected.items():
            actual = self.shapes[name]
            if actual == shape:
                continue
            if actual == shape[::-1]:
                raise SaevalError(
                    f"{self.path}: '{name}' is transposed: found {list(actual)}, expected {list(shape)}; "
                    f"save it as {layout or 'W_enc [d_in, d_sae], W_dec [d_sae, d_in]'}"
                )
            raise SaevalError(f"{self.path}: '{name}' is {list(actual)}, expected {list(shape)}; check {sizes}")

    def identity(self, *numeric: Any) -> str:
        """Return the hash of the file and of the settings that the SAE's outputs depend on, as plain data."""
        return hashlib.sha256(json.dumps([sha256_file(self.path), *numeric]).encode()).hexdigest()

    def read(self, names: Collection[str], device: str, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
        """Return these tensors in `dtype`, float32 by default; `SaevalError` if one has NaN or infinite values."""
        wanted = dtype or torch.float32
        tensors = {}
        for name, stored in self.fetch(names, device).items():
            if not _finite(stored):
                broken = int((~torch.isfinite(stored)).sum())
                raise SaevalError(
                    f"{self.path}: '{name}' holds {broken} NaN or infinite values of {stored.numel()}; "
                    "the training diverged or the file is damaged"
                )
            tensors[name] = stored.to(wanted)
            if not _finite(tensors[name]):
                raise SaevalError(f"{self.path}: '{name}' overflows {wanted}; load it in a wider dtype")
        return tensors


def _check_exists(path: Path) -> None:
    if not path.is_file():
        raise SaevalError(f"{path}: no such file{searched_in(path)}; check 'path'")


def _reason(error: Exception) -> str:
    """Return the first line of a library's message."""
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")[:200]


def unwrapped(path: Path, names: Collection[str]) -> dict[str, str]:
    """Return each tensor's name in the file by its name without all prefixes in `_WRAPPERS`.

    `SaevalError` if only some of the tensors have a prefix, because the module is then ambiguous.
    """
    stored = {name: name for name in names}
    while prefix := next((p for p in _WRAPPERS if any(name.startswith(p) for name in stored)), None):
        bare = next((name for name in stored if not name.startswith(prefix)), None)
        if bare is not None:
            wrapped = next(name for name in stored if name.startswith(prefix))
            raise SaevalError(
                f"{path}: '{stored[wrapped]}' has the prefix '{prefix}' of a wrapped module, but '{stored[bare]}' "
                "does not; save the state_dict() of one module"
            )
        stored = {name.removeprefix(prefix): original for name, original in stored.items()}
    return stored


def _renamed(values: Mapping[str, V], stored: Mapping[str, str]) -> dict[str, V]:
    return {name: values[original] for name, original in stored.items()}


def _finite(tensor: Tensor) -> bool:
    """True if no entry is NaN or infinite. The minimum and maximum suffice, ten times faster than a full check."""
    return not tensor.numel() or bool(torch.stack(tensor.aminmax()).isfinite().all())


def _odd(tensor: Tensor) -> str | None:
    """Return the kind of a tensor that has no plain values; None for a plain one."""
    odd = {"without values": tensor.is_meta, "nested": tensor.is_nested, "sparse": tensor.layout != torch.strided}
    return next((kind for kind, applies in odd.items() if applies), None)


def _npy_header(file: Any) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Return the shape and dtype in the header of an array file; `ValueError` if it has no valid header."""
    version = np.lib.format.read_magic(file)
    reader = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = reader(file)
    return shape, dtype


def unpickled_dict(path: Path) -> dict[str, Any]:
    """Return the dict in a `.pt` file, with memory-mapped tensors, without executing anything in it.

    `SaevalError` if the file is missing, damaged, not a dict, or needs more than tensors and plain data.
    """
    _check_exists(path)
    try:
        content = load_tensors_only(path)
    except pickle.UnpicklingError as error:
        match = re.search(r"GLOBAL ([\w.]+)", str(error))  # torch's UnpicklingError has no attribute for it
        reason = f"it names {match[1]}" if match else "its pickle is not plain data"
        raise SaevalError(
            f"{path}: holds more than tensors ({reason}), which could run code from the file; "
            "if you trust it, load it yourself and save its state_dict()"
        ) from None
    except Exception as error:  # torch raises arbitrary exceptions on damaged bytes
        raise SaevalError(f"{path}: truncated or not a torch file ({_reason(error)}); copy it again") from None
    if not isinstance(content, dict):
        raise SaevalError(f"{path}: expected a dict of tensors, found {type(content).__name__}; save its state_dict()")
    _check_members(path, content)
    return {str(key): value for key, value in content.items()}


def _check_members(path: Path, loaded: Any = None) -> None:
    if (fault := archive_damage(path, loaded)) is not None:
        raise SaevalError(f"{path}: damaged ({fault}); copy it again")


def state_dict(path: Path, content: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the tensors of an unpickled dict, by their names without the prefixes of wrapped modules.

    `SaevalError` if a value is not a plain tensor.
    """
    for key, value in content.items():
        if not isinstance(value, torch.Tensor):
            actual = type(value).__name__
            raise SaevalError(f"{path}: expected a tensor in '{key}', found {actual}; save a state_dict()")
        if kind := _odd(value):
            raise SaevalError(f"{path}: expected a plain tensor in '{key}', found one that is {kind}; convert it")
    return _renamed(content, unwrapped(path, content))
