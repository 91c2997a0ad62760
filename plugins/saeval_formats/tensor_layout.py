"""How formats store the tensors of dense SAEs, and the SAE of a checked file."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from saeval.plugin import SAEInfo, SaevalError, torch
from saeval_formats.dense import Activation, DenseSAE, Normalization
from saeval_formats.folding import rescaled
from saeval_formats.tensors import Header, Tensors

_ROWS = {"W_enc": "d", "W_dec": "n", "W_skip": "o"}
"""First dimension of each matrix of `DenseSAE`."""
_WORDS = {"d": "d_in", "n": "d_sae", "o": "d_out"}
_LARGEST_LOG = math.log(3.4028e38)
"""Larger logarithms are those of infinite float32 numbers."""


def linear(b_enc: str, b_dec: str, encoder: str = "encoder", decoder: str = "decoder") -> dict[str, tuple[str, str]]:
    """Return the keys and shapes of two modules `nn.Linear` and of the biases with these keys, for a `TensorLayout`."""
    weights = {"W_enc": (f"{encoder}.weight", "nd"), "b_enc": (b_enc, "n"), "W_dec": (f"{decoder}.weight", "dn")}
    return {**weights, "b_dec": (b_dec, "d")}


@dataclass(frozen=True)
class TensorLayout:
    """The key and shape of each tensor in a format's files, and the variants of its formula."""

    stored: Mapping[str, tuple[str, str]]
    """Tensor name (`W_enc`, `b_enc`, `threshold`, `b_gate`, ...) -> its key in the file and its shape in letters.

    `d` is d_in, `n` is d_sae, `o` is d_out: the weight of `nn.Linear(d_in, d_sae)` is `nd`, a scalar is the empty
    string. `log_threshold` holds the logarithms of `threshold`; without `b_dec`, it is zeros.
    """
    pre_bias: bool = False
    """True if b_dec is subtracted from the input."""
    rescale: bool = False
    """True if features are multiplied by the norms of their decoder rows, and the rows divided by them."""
    unit_decoder: bool = False
    """True if decoder rows are divided by their norms and the features are unchanged."""

    def check(
        self,
        header: Header,
        d_in: int | None = None,
        d_sae: int | None = None,
        d_out: int | None = None,
        *,
        kind: str,
        sizes: str,
    ) -> tuple[int, int]:
        """Return d_in and d_sae; `SaevalError` for the first missing, unexpected or wrongly shaped tensor.

        If d_in or d_sae is None, it is read from the length of a bias; if d_out is None, it is d_in.
        """
        lengths = {"d": d_in, "n": d_sae}
        for letter in (letter for letter, length in lengths.items() if length is None):
            key = next(key for key, shape in self.stored.values() if shape == letter)
            actual = header.shapes.get(key, (1,))  # missing tensors are reported below
            if len(actual) != 1 or actual[0] < 1:
                raise SaevalError(f"{header.path}: '{key}' is {list(actual)}, expected one dimension, {_WORDS[letter]}")
            lengths[letter] = actual[0]
        n, d = int(lengths["n"] or 0), int(lengths["d"] or 0)
        letters = {"d": d, "n": n, "o": d_out or d, "1": 1}
        shapes = {key: tuple(map(letters.__getitem__, shape)) for key, shape in self.stored.values()}
        written = (f"{key} [{', '.join(map(_WORDS.__getitem__, s))}]" for key, s in self.stored.values() if len(s) == 2)
        header.check(shapes, layout=", ".join(written), kind=kind, sizes=sizes)
        return d, n

    def canonical(self, header: Header, device: str, dtype: torch.dtype | None = None) -> Tensors:
        """Return the tensors of a file that passed `check`, with the names and shapes of `DenseSAE`."""
        keys = {name: key for name, (key, _) in self.stored.items()}
        read = header.read(list(keys.values()), device, dtype)
        tensors = {name: read[key] for name, key in keys.items()}
        for name, rows in _ROWS.items():
            if name in tensors and self.stored[name][1][0] != rows:
                tensors[name] = tensors[name].T
        if (log_threshold := tensors.pop("log_threshold", None)) is not None:
            if never := int((log_threshold > _LARGEST_LOG).sum()):  # as an infinite 'threshold' is refused
                raise SaevalError(
                    f"{header.path}: '{keys['log_threshold']}' holds {never} values above {_LARGEST_LOG:.4g} of "
                    f"{log_threshold.numel()}, the logarithms of infinite thresholds; check that it is the logarithm"
                )
            tensors["threshold"] = log_threshold.exp()
        tensors.setdefault("b_dec", tensors["W_dec"].new_zeros(tensors["W_dec"].shape[1]))
        if self.rescale:
            tensors = rescaled(tensors)
        if self.unit_decoder:
            tensors["W_dec"] = tensors["W_dec"] / tensors["W_dec"].norm(dim=1, keepdim=True).clamp(min=1e-12)
        return tensors


@dataclass(frozen=True)
class Checkpoint:
    """An SAE of a file, checked except for the values of its tensors."""

    header: Header
    layout: TensorLayout
    sizes: tuple[int, int]
    """d_in and d_sae."""
    architecture: str
    hook_name: str | None
    input_hook: str | None = None
    """The hook that a transcoder reads; None for other SAEs."""
    numeric: tuple[Any, ...] = ()
    """The settings, as plain data, that the SAE's outputs depend on besides the tensors."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    activation: Activation | Callable[[Tensors], Activation] | None = None
    """The activation, or a function of the stored tensors that returns it; None for the one that tensors imply."""
    normalization: Normalization = "none"
    folded: Callable[[Tensors], Tensors] = dict
    """Function of the stored tensors: those of the SAE for the model's own activations."""
    d_out: int | None = None
    """None if it is d_in."""
    unit_decoder: bool = False
    """True if the norms of the decoder rows are multiplied into the features."""

    def info(self) -> SAEInfo:
        (d_in, d_sae), d_out = self.sizes, self.d_out or self.sizes[0]
        sha256 = self.header.identity(*self.numeric)
        return SAEInfo(self.hook_name, d_in, d_sae, sha256, self.architecture, d_out, self.input_hook, self.facts)

    def load(self, device: str, dtype: torch.dtype | None) -> DenseSAE:
        stored, activation = self.layout.canonical(self.header, device, dtype), self.activation
        sae = DenseSAE.of(
            self.hook_name or "",
            self.folded(stored),
            activation if activation is None or isinstance(activation, Activation) else activation(stored),
            apply_b_dec_to_input=self.layout.pre_bias,
            normalization=self.normalization,
            transcoder=self.input_hook is not None,
        )
        return sae.with_unit_decoder() if self.unit_decoder else sae
