"""Llama Scope: `hyperparams.json` and `checkpoints/final.safetensors`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saeval.plugin import SAEInfo, SaevalError
from saeval_formats.fields import Fields
from saeval_formats.folders import FolderLoader, holding
from saeval_formats.reference import TranscoderReference, folder_of, json_object, parsed
from saeval_formats.tensor_layout import TensorLayout
from saeval_formats.tensors import Header

if TYPE_CHECKING:
    import torch

    from saeval_formats.dense import DenseSAE

CONFIG, WEIGHTS = "hyperparams.json", "checkpoints/final.safetensors"
_LAYOUT = TensorLayout(
    {
        "W_enc": ("encoder.weight", "nd"),
        "b_enc": ("encoder.bias", "n"),
        "W_dec": ("decoder.weight", "dn"),
        "b_dec": ("decoder.bias", "d"),
    }
)


@dataclass(frozen=True)
class Config:
    """The checked settings of `hyperparams.json`."""

    d_in: int
    d_sae: int
    threshold: float
    """In units of the model's activations, for decoder columns of norm 1."""
    s_in: float
    """√d_in / mean norm: the factor of inputs in training; `s_out` is that of outputs."""
    s_out: float
    by_decoder_norm: bool
    """True if the threshold applies to features times the norms of their decoder columns."""
    pre_bias: bool
    hook_name: str | None
    input_hook: str | None
    facts: Mapping[str, Any]

    @property
    def numeric(self) -> list[Any]:
        return [self.threshold, self.s_in, self.s_out, self.by_decoder_norm, self.pre_bias]


class LlamaScope(FolderLoader):
    """JumpReLU SAEs and transcoders of OpenMOSS' Llama Scope.

    `path` is an SAE's folder (`hyperparams.json`, `checkpoints/final.safetensors`), or a folder of such folders with
    `sites`, a glob or a list of globs. `hook_name` and `input_hook` replace the hooks of the config. Inputs x and
    reconstructions x̂ have the model's scale; features have that of training, s = √d / mean norm times larger:
    pre = (s_in·x) W_encᵀ + b_enc, acts = pre·1[pre > θ], x̂ = (acts W_decᵀ + b_dec) / s_out. The file's single
    threshold t is in units of the model, for decoder columns of norm 1. As in OpenMOSS' inference code,
    θ = t·s_out / ‖column‖, or t·s_in without `sparsity_include_decoder_norm`; SAELens uses t·s, which is the same for
    columns of norm 1.
    """

    name, entry = "llama_scope", TranscoderReference
    markers = (CONFIG,)

    def info(self, reference: Mapping[str, Any]) -> SAEInfo:
        options, config, header = _opened(reference)
        transcoder = config.input_hook is not None
        return SAEInfo(
            hook_name=options.hook_name or config.hook_name,
            input_hook=options.input_hook or config.input_hook if transcoder else None,
            d_in=config.d_in,
            d_sae=config.d_sae,
            d_out=config.d_in,
            sha256=header.identity(*config.numeric, transcoder),
            architecture="jumprelu_transcoder" if transcoder else "jumprelu",
            facts=config.facts,
        )

    def load(self, reference: Mapping[str, Any], device: str = "cpu", dtype: torch.dtype | None = None) -> DenseSAE:
        """Load in `dtype`, float32 by default. `hook_name` is empty if neither config nor entry names a hook."""
        from saeval_formats.dense import DenseSAE, JumpReLU  # late: reading headers needs no torch
        from saeval_formats.folding import scaled

        options, config, header = _opened(reference)
        tensors = _LAYOUT.canonical(header, device, dtype)
        norms = tensors["W_dec"].norm(dim=-1)
        if config.pre_bias:  # subtracted from the scaled input, so a constant shift of b_enc
            tensors["b_enc"] = tensors["b_enc"] - tensors["b_dec"] @ tensors["W_enc"]
        units = config.s_out / norms if config.by_decoder_norm else norms.new_tensor(config.s_in).expand_as(norms)
        tensors = scaled(tensors, config.s_in, config.s_out)
        return DenseSAE(
            options.hook_name or config.hook_name or "",
            tensors["W_enc"],
            tensors["b_enc"],
            tensors["W_dec"],
            tensors["b_dec"],
            # A column of zeros has an infinite threshold: the feature contributes nothing and is never active.
            JumpReLU(config.threshold * units),
            transcoder=config.input_hook is not None,
        )


def _opened(reference: Mapping[str, Any]) -> tuple[TranscoderReference, Config, Header]:
    options = parsed(TranscoderReference, reference, "llama_scope", needs=f"the folder with {CONFIG}")
    folder = folder_of(options.path, "llama_scope", f"{CONFIG} and {WEIGHTS}")
    config = _config(holding(folder, "llama_scope", (CONFIG,)))
    header = Header.of(folder / WEIGHTS)
    _LAYOUT.check(header, config.d_in, config.d_sae, kind=CONFIG, sizes=CONFIG)
    return options, config, header


def _config(path: Path) -> Config:
    config = Fields(path, json_object(path))
    config.choice("act_fn", ("jumprelu",), "jumprelu")
    if config.flag("use_glu_encoder", default=False) or not config.flag("use_decoder_bias", default=True):
        raise SaevalError(f"{path}: 'use_glu_encoder' and SAEs without a decoder bias are not supported")
    d_in = config.whole("d_model")
    by_dataset = config.choice("norm_activation", ("dataset-wise", "inference"), "dataset-wise") == "dataset-wise"
    norms = config.inside("dataset_average_activation_norm")
    s_in, s_out = (math.sqrt(d_in) / norms.positive(end) if by_dataset else 1.0 for end in ("in", "out"))
    reads = config.text("hook_point_in")
    writes = config.text("hook_point_out") if "hook_point_out" in config.values else reads
    return Config(
        d_in=d_in,
        d_sae=config.whole("d_sae") if "d_sae" in config.values else d_in * config.whole("expansion_factor"),
        threshold=_threshold(config),
        s_in=s_in,
        s_out=s_out,
        by_decoder_norm=config.flag("sparsity_include_decoder_norm", default=True),
        pre_bias=config.flag("apply_decoder_bias_to_pre_encoder"),  # required: the library's default has changed
        hook_name=writes,
        input_hook=reads if reads != writes else None,
        facts=config.facts({"jump_relu_threshold": None, "top_k": config.count, "norm_activation": None}),
    )


def _threshold(config: Fields) -> float:
    """Return the threshold; `SaevalError` for 0, OpenMOSS' default until the threshold is calibrated to `top_k`."""
    threshold = config.amount("jump_relu_threshold")
    if threshold == 0:
        raise SaevalError(
            f"{config.path}: 'jump_relu_threshold' is 0, the library's default: it was never calibrated, and without "
            "calibration every positive feature is active; set the calibrated threshold"
        )
    return threshold
