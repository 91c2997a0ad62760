"""How a format stores the tensors of a dense SAE, as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from saeval.plugin import SaevalError
from saeval_formats.tensors import Header

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from saeval_formats.dense import DenseSAE, Normalization

_CANONICAL = {"W_enc": "dn", "W_dec": "nd"}
_WORDS = {"d": "d_in", "n": "d_sae"}


@dataclass(frozen=True)
class TensorLayout:
    """Under which key and in which shape a format keeps each tensor, and what its formula does with them."""

    stored: Mapping[str, tuple[str, str]]
    """`W_enc`, `b_enc`, `W_dec`, `b_dec`, `threshold`, `b_gate`, `r_mag` or `b_mag`: its key and its shape in letters.

    `d` is d_in and `n` is d_sae: a weight of `nn.Linear(d_in, d_sae)` is `nd`, a scalar is empty.
    """
    pre_bias: bool = False
    """Whether b_dec is subtracted from the input."""
    rescale: bool = False
    """Whether a feature is multiplied by the norm of its decoder row, and the row divided by it."""
    unit_decoder: bool = False
    """Whether the rows of the decoder are divided by their norms, and the features left as they are."""

    def shapes(self, header: Header, d_in: int | None = None, d_sae: int | None = None) -> dict[str, tuple[int, ...]]:
        """The shape that each key should have, where nothing says the sizes from the lengths of its biases."""
        sizes = {"d": d_in, "n": d_sae}
        for letter in (letter for letter, size in sizes.items() if size is None):
            key = next(key for key, shape in self.stored.values() if shape == letter)
            found = header.shapes.get(key, (1,))  # a missing one has its own sentence
            if len(found) != 1 or found[0] < 1:
                raise SaevalError(f"{header.path}: '{key}' is {list(found)}, expected one dimension, {_WORDS[letter]}")
            sizes[letter] = found[0]
        return {key: tuple(int(sizes[letter] or 0) for letter in shape) for key, shape in self.stored.values()}

    def check(
        self, header: Header, d_in: int | None = None, d_sae: int | None = None, *, kind: str, sizes: str
    ) -> tuple[int, int]:
        """d_in and d_sae; `SaevalError` at the first tensor that is missing, unknown or of another shape."""
        shapes = self.shapes(header, d_in, d_sae)
        written = (f"{key} [{', '.join(map(_WORDS.__getitem__, s))}]" for key, s in self.stored.values() if len(s) == 2)
        header.check(shapes, layout=", ".join(written), kind=kind, sizes=sizes)
        rows, columns = shapes[self.stored["W_dec"][0]]
        return (rows, columns) if self.stored["W_dec"][1] == "dn" else (columns, rows)

    def dense(
        self,
        header: Header,
        hook_name: str,
        device: str,
        dtype: torch.dtype | None = None,
        *,
        k: int | None = None,
        normalization: Normalization = "none",
    ) -> DenseSAE:
        """The SAE in a file that passed `check`: TopK where `k` is given, else what its tensors are those of."""
        from saeval_formats.dense import DenseSAE, activation_of  # late: reading headers needs no torch

        tensors = self.canonical(header, device, dtype)
        return DenseSAE(
            hook_name,
            tensors["W_enc"],
            tensors.get("b_enc"),
            tensors["W_dec"],
            tensors["b_dec"],
            activation_of(tensors, k),
            apply_b_dec_to_input=self.pre_bias,
            normalization=normalization,
            rescale_acts_by_decoder_norm=self.rescale,
        )

    def canonical(self, header: Header, device: str, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
        """The tensors of a file that passed `check`, by their names and in the shapes of `DenseSAE`."""
        keys = {name: key for name, (key, _) in self.stored.items()}
        read = header.read(list(keys.values()), device, dtype)
        tensors = {name: read[key] for name, key in keys.items()}
        for name, shape in _CANONICAL.items():
            if name in tensors and self.stored[name][1] != shape:
                tensors[name] = tensors[name].T
        if self.unit_decoder:
            tensors["W_dec"] = tensors["W_dec"] / tensors["W_dec"].norm(dim=1, keepdim=True).clamp(min=1e-12)
        return tensors
