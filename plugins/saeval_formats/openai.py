"""Autoencoders of openai/sparse_autoencoder: one `.pt` file per layer, such as `6.pt`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from saeval.plugin import SaevalError
from saeval_formats.dense import TopK
from saeval_formats.fields import Fields
from saeval_formats.reference import LocalLoader, LocalReference, parsed
from saeval_formats.tensor_layout import Checkpoint, TensorLayout, linear
from saeval_formats.tensors import Header, state_dict, unpickled_dict

_LAYOUT = TensorLayout(linear("latent_bias", "pre_bias"), pre_bias=True)
_STATISTICS = ("stats_last_nonzero", "latents_activation_frequency", "latents_mean_square")


class Reference(LocalReference):
    """A suite's reference to one SAE."""

    path: Path
    """The file. It does not name its hook."""


class OpenAI(LocalLoader):
    """`Autoencoder`s of openai/sparse_autoencoder, with ReLU or TopK.

    As in the library's `from_state_dict`, TopK autoencoders normalise each activation by its mean and unbiased standard
    deviation before subtracting `pre_bias`, and undo this after decoding; ReLU autoencoders do not normalise.
    """

    name, entry = "openai", Reference

    def opened(self, reference: Mapping[str, Any]) -> Checkpoint:
        options = parsed(Reference, reference, "openai", needs="the .pt file")
        path = options.path.expanduser()
        content = unpickled_dict(path)
        activation, settings = content.pop("activation", "ReLU"), content.pop("activation_state_dict", {})
        weights = {key: value for key, value in state_dict(path, content).items() if key not in _STATISTICS}
        header = Header.of_tensors(path, weights)
        lengths = "'pre_bias' and 'latent_bias', whose lengths are d_in and d_sae"
        sizes = _LAYOUT.check(header, kind="'use'", sizes=lengths)
        k = _k(path, activation, settings, sizes[1])
        checkpoint = Checkpoint(header, _LAYOUT, sizes, "standard", options.hook_name, numeric=(k,))
        if k is None:
            return checkpoint
        facts = {"k": k, "normalize_activations": "layer_norm"}
        return replace(checkpoint, architecture="topk", facts=facts, activation=TopK(k), normalization="layer_norm")


def _k(path: Path, activation: Any, settings: Any, d_sae: int) -> int | None:
    """Return the k of a TopK; None for a ReLU."""
    if activation not in ("ReLU", "TopK"):  # Identity has negative features; the library loads others as ReLU
        raise SaevalError(f"{path}: 'activation' is {_shown(activation)}, expected 'ReLU' or 'TopK'")
    if activation == "ReLU":
        return None
    if not isinstance(settings, dict):
        raise SaevalError(f"{path}: expected a dict in 'activation_state_dict', found {type(settings).__name__}")
    after = settings.get("postact_fn", "ReLU")
    if after != "ReLU":
        raise SaevalError(f"{path}: 'postact_fn' of its TopK is {_shown(after)}, expected 'ReLU'")
    k = settings.get("k")
    k = k.item() if k is not None and getattr(k, "shape", None) == () else k  # some files store a tensor
    value = k if isinstance(k, int | float | None) else type(k).__name__
    return Fields(path, {"k": value}, "activation_state_dict").k(d_sae)


def _shown(value: Any) -> str:
    return repr(value) if isinstance(value, str) else type(value).__name__
