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
from saeval_formats.reference import AskedTranscoder, folder_of, json_object, parsed
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
    """What `hyperparams.json` says, checked."""

    d_in: int
    d_sae: int
    threshold: float
    """In the units of activations as the model has them, for decoder columns of norm 1."""
    s_in: float
    """√d_in / mean norm: what inputs were multiplied by in training; so were outputs by `s_out`."""
    s_out: float
    by_decoder_norm: bool
    """Whether the threshold is for features times the norms of their decoder columns."""
    pre_bias: bool
    hook_name: str | None
    input_hook: str | None
    facts: Mapping[str, Any]

    @property
    def numeric(self) -> list[Any]:
        return [self.threshold, self.s_in, self.s_out, self.by_decoder_norm, self.pre_bias]


class LlamaScope(FolderLoader):
    """JumpReLU SAEs and transcoders of OpenMOSS' Llama Scope, for activations as the model has them.

    In training's units, with s = √d / mean norm: pre = (s_in·x) W_encᵀ + b_enc, features pre·1[pre > θ],
    x̂ = (acts W_decᵀ + b_dec) / s_out. The one threshold t of the file is in raw units and for unit decoder columns,
    as OpenMOSS' inference applies it: θ = t·s_out / ‖column‖, or t·s_in without `sparsity_include_decoder_norm`.
    For an SAE with unit columns that is t·s, as SAELens has it. Features are in training's units.
    """

    name, entry = "llama_scope", AskedTranscoder
    markers = (CONFIG,)

    def info(self, reference: Mapping[str, Any]) -> SAEInfo:
        asked, config, header = _opened(reference)
        transcoder = config.input_hook is not None
        return SAEInfo(
            hook_name=asked.hook_name or config.hook_name,
            input_hook=asked.input_hook or config.input_hook if transcoder else None,
            d_in=config.d_in,
            d_sae=config.d_sae,
            d_out=config.d_in,
            sha256=header.identity(*config.numeric, transcoder),
            architecture="jumprelu_transcoder" if transcoder else "jumprelu",
            facts=config.facts,
        )

    def load(self, reference: Mapping[str, Any], device: str = "cpu", dtype: torch.dtype | None = None) -> DenseSAE:
        """In float32 unless `dtype` is given. The hook's name is empty where nobody gave one."""
        from saeval_formats.dense import DenseSAE, JumpReLU  # late: reading headers needs no torch
        from saeval_formats.folding import scaled

        asked, config, header = _opened(reference)
        tensors = _LAYOUT.canonical(header, device, dtype)
        norms = tensors["W_dec"].norm(dim=-1)
        if config.pre_bias:  # it comes off the input in training's units: a constant
            tensors["b_enc"] = tensors["b_enc"] - tensors["b_dec"] @ tensors["W_enc"]
        units = config.s_out / norms if config.by_decoder_norm else norms.new_tensor(config.s_in).expand_as(norms)
        tensors = scaled(tensors, config.s_in, config.s_out)
        return DenseSAE(
            asked.hook_name or config.hook_name or "",
            tensors["W_enc"],
            tensors["b_enc"],
            tensors["W_dec"],
            tensors["b_dec"],
            # A column of zeros has an infinite threshold: such a feature adds nothing, and is never active.
            JumpReLU(config.threshold * units),
            transcoder=config.input_hook is not None,
        )


def _opened(reference: Mapping[str, Any]) -> tuple[AskedTranscoder, Config, Header]:
    asked = parsed(AskedTranscoder, reference, "llama_scope", needs=f"the folder with {CONFIG}")
    folder = folder_of(asked.path, "llama_scope", f"{CONFIG} and {WEIGHTS}")
    config = _config(holding(folder, "llama_scope", (CONFIG,)))
    header = Header.of(folder / WEIGHTS)
    _LAYOUT.check(header, config.d_in, config.d_sae, kind=CONFIG, sizes=CONFIG)
    return asked, config, header


def _config(path: Path) -> Config:
    said = Fields(path, json_object(path))
    said.choice("act_fn", ("jumprelu",), "jumprelu")
    if said.flag("use_glu_encoder", default=False) or not said.flag("use_decoder_bias", default=True):
        raise SaevalError(f"{path}: 'use_glu_encoder' and SAEs without a decoder bias are not supported")
    d_in = said.whole("d_model")
    by_dataset = said.choice("norm_activation", ("dataset-wise", "inference"), "dataset-wise") == "dataset-wise"
    norms = said.inside("dataset_average_activation_norm")
    s_in, s_out = (math.sqrt(d_in) / norms.positive(end) if by_dataset else 1.0 for end in ("in", "out"))
    reads = said.text("hook_point_in")
    writes = said.text("hook_point_out") if "hook_point_out" in said.values else reads
    return Config(
        d_in=d_in,
        d_sae=said.whole("d_sae") if "d_sae" in said.values else d_in * said.whole("expansion_factor"),
        threshold=_threshold(said),
        s_in=s_in,
        s_out=s_out,
        by_decoder_norm=said.flag("sparsity_include_decoder_norm", default=True),
        pre_bias=said.flag("apply_decoder_bias_to_pre_encoder"),  # no default: it has been either in the library's time
        hook_name=writes,
        input_hook=reads if reads != writes else None,
        facts=said.facts({"jump_relu_threshold": None, "top_k": said.count, "norm_activation": None}),
    )


def _threshold(said: Fields) -> float:
    """The threshold, which OpenMOSS' library leaves at its default of 0 until it is calibrated to `top_k`."""
    found = said.amount("jump_relu_threshold")
    if found == 0:
        raise SaevalError(
            f"{said.path}: 'jump_relu_threshold' is 0, the library's default: it was never calibrated, and without it "
            "every positive feature is active; set the calibrated threshold"
        )
    return found
