"""safetensors files: what the header says, checked before any weight is read."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

from safetensors import SafetensorError, safe_open

from saeval.errors import SaevalError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

_FLOATS = {"F64", "F32", "F16", "BF16"}


@dataclass(frozen=True)
class Header:
    """Names, shapes and dtypes of a file's tensors."""

    path: Path
    shapes: Mapping[str, tuple[int, ...]]
    dtypes: Mapping[str, str]

    @classmethod
    def of(cls, path: Path) -> Self:
        """`SaevalError` where there is no file, or one that is cut short or of another kind."""
        if not path.is_file():
            raise SaevalError(f"{path}: no such file; check 'path'")
        try:
            with safe_open(path, framework="np") as file:
                slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (not iterable itself)
                shapes = {name: tuple(found.get_shape()) for name, found in slices.items()}
                dtypes = {name: str(found.get_dtype()) for name, found in slices.items()}
        except (SafetensorError, OSError) as error:
            reason = str(error).splitlines()[0].rstrip(".")
            raise SaevalError(f"{path}: truncated or no safetensors file ({reason}); copy it again") from None
        return cls(path, shapes, dtypes)

    def check(self, expected: Mapping[str, tuple[int, ...]], optional: Collection[str] = ()) -> None:
        """`SaevalError` at the first tensor that is missing, unknown, of another shape, or not of floats."""
        for name in expected:
            if name not in self.shapes:
                raise SaevalError(
                    f"{self.path}: expected the tensors {', '.join(sorted(expected))}, "
                    f"found {', '.join(sorted(self.shapes)) or 'none'} ('{name}' is missing); check 'architecture'"
                )
        for name, shape in self.shapes.items():
            if name not in expected and name not in optional:
                raise SaevalError(
                    f"{self.path}: unexpected tensor '{name}' {list(shape)} beside "
                    f"{', '.join(sorted(expected))}; check 'architecture'"
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
                    "save it as W_enc [d_in, d_sae], W_dec [d_sae, d_in]"
                )
            raise SaevalError(
                f"{self.path}: '{name}' is {list(found)}, expected {list(shape)}; check 'd_in' and 'd_sae'"
            )

    def read(self, names: Collection[str], device: str, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
        """These tensors in `dtype`, float32 by default; `SaevalError` where one holds NaN or infinite values."""
        import torch  # late: headers are read without it

        wanted = dtype or torch.float32
        tensors = {}
        with safe_open(self.path, framework="pt", device=device) as file:
            for name in names:
                stored = file.get_tensor(name)
                broken = int((~torch.isfinite(stored)).sum())
                if broken:
                    raise SaevalError(
                        f"{self.path}: '{name}' holds {broken} NaN or infinite values of {stored.numel()}; "
                        "the training diverged or the file is damaged"
                    )
                tensors[name] = stored.to(wanted)
                if not torch.isfinite(tensors[name]).all():
                    raise SaevalError(f"{self.path}: '{name}' overflows {wanted}; load it in a wider dtype")
        return tensors
