"""Files of named tensors: what the header says, checked before any weight is used."""

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

_DTYPES = {"torch.float64": "F64", "torch.float32": "F32", "torch.float16": "F16", "torch.bfloat16": "BF16"}
_NUMPY_DTYPES = {"float64": "F64", "float32": "F32", "float16": "F16"}
_FLOATS = set(_DTYPES.values())
_WRAPPERS = ("module.", "_orig_mod.")
"""What DataParallel and torch.compile put before the name of every tensor of the module that they wrap."""


@dataclass(frozen=True)
class Header:
    """Names, shapes and dtypes of a file's tensors."""

    path: Path
    shapes: Mapping[str, tuple[int, ...]]
    dtypes: Mapping[str, str]
    """In the spelling of safetensors: F32, F16, BF16, F64."""
    fetch: Callable[[Collection[str], str], Mapping[str, Tensor]]
    """Tensors as they are stored, by name, on a device."""

    @classmethod
    def of(cls, path: Path) -> Self:
        """Of a safetensors file; `SaevalError` where there is none, or one that is cut short or of another kind."""
        if not path.is_file():
            raise SaevalError(f"{path}: no such file{searched_in(path)}; check 'path'")
        try:
            with safe_open(path, framework="np") as file:
                slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (not iterable itself)
                shapes = {name: tuple(found.get_shape()) for name, found in slices.items()}
                dtypes = {name: str(found.get_dtype()) for name, found in slices.items()}
        except (SafetensorError, OSError) as error:
            reason = str(error).splitlines()[0].rstrip(".")
            raise SaevalError(f"{path}: truncated or no safetensors file ({reason}); copy it again") from None

        stored = unwrapped(path, shapes)

        def fetch(names: Collection[str], device: str) -> dict[str, Tensor]:
            with safe_open(path, framework="pt", device=device) as file:
                return {name: file.get_tensor(stored[name]) for name in names}

        return cls(path, _renamed(shapes, stored), _renamed(dtypes, stored), fetch)

    @classmethod
    def of_npz(cls, path: Path) -> Self:
        """Of a NumPy archive, whose arrays are never unpickled_dict; `SaevalError` as for safetensors."""
        if not path.is_file():
            raise SaevalError(f"{path}: no such file{searched_in(path)}; check 'path'")
        shapes, dtypes = {}, {}
        try:
            with zipfile.ZipFile(path) as archive:
                for member in archive.namelist():
                    with archive.open(member) as file:
                        shape, dtype = _npy_header(file)
                    shapes[member.removesuffix(".npy")] = shape
                    dtypes[member.removesuffix(".npy")] = _NUMPY_DTYPES.get(dtype.name, dtype.name)
        except Exception as error:  # numpy's and zipfile's readers raise what they like on damaged bytes
            reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
            raise SaevalError(f"{path}: truncated or no npz file ({reason[:200]}); copy it again") from None

        _check_members(path)
        stored = unwrapped(path, shapes)

        def fetch(names: Collection[str], device: str) -> dict[str, Tensor]:
            try:
                with np.load(path, allow_pickle=False) as archive:
                    return {name: torch.from_numpy(archive[stored[name]]).to(device) for name in names}
            except Exception as error:  # as above
                reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
                raise SaevalError(f"{path}: damaged ({reason[:200]}); copy it again") from None

        return cls(path, _renamed(shapes, stored), _renamed(dtypes, stored), fetch)

    @classmethod
    def of_tensors(cls, path: Path, tensors: Mapping[str, Tensor]) -> Self:
        """Of tensors already in memory (or memory-mapped), read from `path`."""
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        dtypes = {name: _DTYPES.get(str(tensor.dtype), str(tensor.dtype)) for name, tensor in tensors.items()}

        def fetch(names: Collection[str], device: str) -> dict[str, Tensor]:
            # Copied: memory-mapped weights would change under a run whose file is overwritten.
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
        """`SaevalError` at the first tensor that is missing, unknown, of another shape, or not of floats.

        For the sentences: `layout` is how the format stores them, `kind` what says which tensors there should be,
        `sizes` what says how large they should be.
        """
        first = next(iter(expected), "")
        prefixes = [name.removesuffix(first) for name in self.shapes if name.endswith(f".{first}")]
        if prefix := next((p for p in prefixes if all(f"{p}{name}" in self.shapes for name in expected)), None):
            raise SaevalError(
                f"{self.path}: every tensor's name begins with '{prefix}', after a module that held the SAE; save the "
                "state_dict() of the SAE itself"
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
            found = self.shapes[name]
            if found == shape:
                continue
            if found == shape[::-1]:
                raise SaevalError(
                    f"{self.path}: '{name}' is transposed: found {list(found)}, expected {list(shape)}; "
                    f"save it as {layout or 'W_enc [d_in, d_sae], W_dec [d_sae, d_in]'}"
                )
            raise SaevalError(f"{self.path}: '{name}' is {list(found)}, expected {list(shape)}; check {sizes}")

    def identity(self, *numeric: Any) -> str:
        """Hash of the file and of all else that the SAE's numbers depend on: plain data."""
        return hashlib.sha256(json.dumps([sha256_file(self.path), *numeric]).encode()).hexdigest()

    def read(self, names: Collection[str], device: str, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
        """These tensors in `dtype`, float32 by default; `SaevalError` where one holds NaN or infinite values."""
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


def unwrapped(path: Path, names: Collection[str]) -> dict[str, str]:
    """The name in the file by the name without the prefixes of `_WRAPPERS`, however many every tensor has.

    `SaevalError` where only some of the tensors have one, for then it is unclear which module is meant.
    """
    stored = {name: name for name in names}
    while prefix := next((p for p in _WRAPPERS if any(name.startswith(p) for name in stored)), None):
        bare = next((name for name in stored if not name.startswith(prefix)), None)
        if bare is not None:
            wrapped = next(name for name in stored if name.startswith(prefix))
            raise SaevalError(
                f"{path}: '{stored[wrapped]}' has the prefix '{prefix}' of a wrapped module and '{stored[bare]}' has "
                "not; save the state_dict() of one module"
            )
        stored = {name.removeprefix(prefix): found for name, found in stored.items()}
    return stored


def _renamed(found: Mapping[str, V], stored: Mapping[str, str]) -> dict[str, V]:
    return {name: found[original] for name, original in stored.items()}


def _finite(tensor: Tensor) -> bool:
    """Whether no entry is NaN or infinite: the extremes tell, in a tenth of the time that looking at each takes."""
    return not tensor.numel() or bool(torch.stack(tensor.aminmax()).isfinite().all())


def _npy_header(file: Any) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and dtype out of the first bytes of an array file; `ValueError` where they are none."""
    version = np.lib.format.read_magic(file)
    reader = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = reader(file)
    return shape, dtype


def unpickled_dict(path: Path) -> dict[str, Any]:
    """The dict in a `.pt` file, tensors memory-mapped; nothing in it is executed.

    `SaevalError` where there is no file, one that is damaged or holds anything but a dict, and for one that asks
    for more than tensors and plain data.
    """
    if not path.is_file():
        raise SaevalError(f"{path}: no such file{searched_in(path)}; check 'path'")
    try:
        found = load_tensors_only(path)
    except pickle.UnpicklingError as error:
        reason = _refusal(str(error))
        raise SaevalError(
            f"{path}: holds more than tensors ({reason}), which would mean running code from the file; "
            "load it where you trust it and save its state_dict()"
        ) from None
    except Exception as error:  # torch's readers raise what they like on damaged bytes
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        raise SaevalError(f"{path}: truncated or no torch file ({reason[:200]}); copy it again") from None
    if not isinstance(found, dict):
        raise SaevalError(f"{path}: expected a dict of tensors, found {type(found).__name__}; save its state_dict()")
    _check_members(path, found)
    return {str(key): value for key, value in found.items()}


def _check_members(path: Path, loaded: Any = None) -> None:
    if (fault := archive_damage(path, loaded)) is not None:
        raise SaevalError(f"{path}: damaged ({fault}); copy it again")


def state_dict(path: Path, found: Mapping[str, Any]) -> dict[str, Tensor]:
    """What was unpickled, as the tensors that it should be, by their names without the prefixes of wrapped modules.

    `SaevalError` for anything else among them.
    """
    for key, value in found.items():
        if not isinstance(value, torch.Tensor):
            raise SaevalError(
                f"{path}: expected a tensor in '{key}', found {type(value).__name__}; save a state_dict()"
            )
        odd = {"without values": value.is_meta, "nested": value.is_nested, "sparse": value.layout != torch.strided}
        for kind in (kind for kind, found in odd.items() if found):
            raise SaevalError(f"{path}: expected a plain tensor in '{key}', found one that is {kind}; convert it")
    return _renamed(found, unwrapped(path, found))


def _refusal(message: str) -> str:
    """The global that an unpickler refused, out of its advice."""
    named = re.search(r"GLOBAL ([\w.]+)", message)  # torch's UnpicklingError has no attribute for it
    return f"it names {named[1]}" if named else "its pickle is not one of plain data"
