"""Autoencoders of openai/sparse_autoencoder: one `.pt` file per layer, such as `6.pt`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saeval.plugin import SAEInfo, SaevalError, digest_of, sha256_file
from saeval_formats.fields import Fields
from saeval_formats.reference import LocalLoader, LocalReference, parsed
from saeval_formats.tensor_layout import TensorLayout
from saeval_formats.tensors import Header, state_dict, unpickled_dict

if TYPE_CHECKING:
    import torch

    from saeval_formats.dense import DenseSAE, Normalization

_LAYOUT = TensorLayout(
    {
        "W_enc": ("encoder.weight", "nd"),
        "b_enc": ("latent_bias", "n"),
        "W_dec": ("decoder.weight", "dn"),
        "b_dec": ("pre_bias", "d"),
    },
    pre_bias=True,
)
_STATISTICS = ("stats_last_nonzero", "latents_activation_frequency", "latents_mean_square")


class Reference(LocalReference):
    """A suite's reference to one SAE."""

    path: Path
    """The file. It does not name its hook."""


class OpenAI(LocalLoader):
    """`Autoencoder`s of openai/sparse_autoencoder, with ReLU or TopK.

    `path` is the `.pt` file. The file does not name its hook: set `hook_name`. As in the library's `from_state_dict`,
    TopK autoencoders normalise each activation by its mean and unbiased standard deviation before subtracting
    `pre_bias`, and undo this after decoding; ReLU autoencoders do not normalise.
    """

    name, entry = "openai", Reference

    def info(self, reference: Mapping[str, Any]) -> SAEInfo:
        options, header, d_in, d_sae, k = _checkpoint(reference)
        return SAEInfo(
            hook_name=options.hook_name,
            d_in=d_in,
            d_sae=d_sae,
            d_out=d_in,
            sha256=digest_of([sha256_file(header.path), k]),
            architecture="standard" if k is None else "topk",
            facts={} if k is None else {"k": k, "normalize_activations": "layer_norm"},
        )

    def load(self, reference: Mapping[str, Any], device: str = "cpu", dtype: torch.dtype | None = None) -> DenseSAE:
        """Load in `dtype`, float32 by default. `hook_name` is empty if the entry names no hook."""
        options, header, _, _, k = _checkpoint(reference)
        normalization: Normalization = "none" if k is None else "layer_norm"
        return _LAYOUT.dense(header, options.hook_name or "", device, dtype, k=k, normalization=normalization)


def _checkpoint(reference: Mapping[str, Any]) -> tuple[Reference, Header, int, int, int | None]:
    """Return the parsed reference, the file's header, d_in, d_sae, and the k of a TopK."""
    options = parsed(Reference, reference, "openai", needs="the .pt file")
    path = options.path.expanduser()
    content = unpickled_dict(path)
    activation, settings = content.pop("activation", "ReLU"), content.pop("activation_state_dict", {})
    weights = {key: value for key, value in state_dict(path, content).items() if key not in _STATISTICS}
    header = Header.of_tensors(path, weights)
    d_in, d_sae = _LAYOUT.check(
        header, kind="'use'", sizes="'pre_bias' and 'latent_bias', whose lengths are d_in and d_sae"
    )
    return options, header, d_in, d_sae, _k(path, activation, settings, d_sae)


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
