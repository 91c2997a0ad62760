"""Descriptions of how formats store the tensors of dense SAEs."""

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
    """The key and shape of each tensor in a format's files, and the variants of its formula."""

    stored: Mapping[str, tuple[str, str]]
    """Tensor name (`W_enc`, `b_enc`, `threshold`, `b_gate`, ...) -> its key in the file and its shape in letters.

    `d` is d_in and `n` is d_sae: the weight of `nn.Linear(d_in, d_sae)` is `nd`, a scalar is the empty string.
    """
    pre_bias: bool = False
    """True if b_dec is subtracted from the input."""
    rescale: bool = False
    """True if features are multiplied by the norms of their decoder rows, and the rows divided by them."""
    unit_decoder: bool = False
    """True if decoder rows are divided by their norms and the features are unchanged."""

    def shapes(self, header: Header, d_in: int | None = None, d_sae: int | None = None) -> dict[str, tuple[int, ...]]:
        """Return the expected shape of each key; sizes that are None are read from the lengths of the biases."""
        sizes = {"d": d_in, "n": d_sae}
        for letter in (letter for letter, size in sizes.items() if size is None):
            key = next(key for key, shape in self.stored.values() if shape == letter)
            actual = header.shapes.get(key, (1,))  # `check` reports missing tensors
            if len(actual) != 1 or actual[0] < 1:
                raise SaevalError(f"{header.path}: '{key}' is {list(actual)}, expected one dimension, {_WORDS[letter]}")
            sizes[letter] = actual[0]
        return {key: tuple(int(sizes[letter] or 0) for letter in shape) for key, shape in self.stored.values()}

    def check(
        self, header: Header, d_in: int | None = None, d_sae: int | None = None, *, kind: str, sizes: str
    ) -> tuple[int, int]:
        """Return d_in and d_sae; `SaevalError` for the first missing, unexpected or wrongly shaped tensor."""
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
        """Return the SAE of a file that passed `check`: TopK if `k` is given, else the activation its tensors imply."""
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
        """Return the tensors of a file that passed `check`, with the names and shapes of `DenseSAE`."""
        keys = {name: key for name, (key, _) in self.stored.items()}
        read = header.read(list(keys.values()), device, dtype)
        tensors = {name: read[key] for name, key in keys.items()}
        for name, shape in _CANONICAL.items():
            if name in tensors and self.stored[name][1] != shape:
                tensors[name] = tensors[name].T
        if self.unit_decoder:
            tensors["W_dec"] = tensors["W_dec"] / tensors["W_dec"].norm(dim=1, keepdim=True).clamp(min=1e-12)
        return tensors
