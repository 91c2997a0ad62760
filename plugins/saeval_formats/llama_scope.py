"""Llama Scope: `hyperparams.json` and `checkpoints/final.safetensors`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from saeval.plugin import SaevalError
from saeval_formats.fields import Fields
from saeval_formats.folders import FolderLoader, holding
from saeval_formats.folding import scaled
from saeval_formats.reference import TranscoderReference, folder_of, json_object, parsed
from saeval_formats.tensor_layout import Checkpoint, TensorLayout, linear
from saeval_formats.tensors import Header, Tensors

CONFIG, WEIGHTS = "hyperparams.json", "checkpoints/final.safetensors"
_LAYOUT = TensorLayout(linear("encoder.bias", "decoder.bias"))


class LlamaScope(FolderLoader):
    """JumpReLU SAEs and transcoders of OpenMOSS' Llama Scope.

    `path` is an SAE's folder (`hyperparams.json`, `checkpoints/final.safetensors`), or a folder of such folders with
    `sites`, a glob or a list of globs. Inputs x and reconstructions x̂ have the model's scale; features have that of
    training, s = √d / mean norm times larger:
    pre = (s_in·x) W_encᵀ + b_enc, acts = pre·1[pre > θ], x̂ = (acts W_decᵀ + b_dec) / s_out. The file's single
    threshold t is in units of the model, for decoder columns of norm 1. As in OpenMOSS' inference code,
    θ = t·s_out / ‖column‖, or t·s_in without `sparsity_include_decoder_norm`; SAELens uses t·s, which is the same for
    columns of norm 1.
    """

    name, entry = "llama_scope", TranscoderReference
    markers = (CONFIG,)

    def opened(self, reference: Mapping[str, Any]) -> Checkpoint:
        options = parsed(TranscoderReference, reference, "llama_scope", needs=f"the folder with {CONFIG}")
        folder = folder_of(options.path, "llama_scope", f"{CONFIG} and {WEIGHTS}")
        path = holding(folder, "llama_scope", (CONFIG,))
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
        d_sae = config.whole("d_sae") if "d_sae" in config.values else d_in * config.whole("expansion_factor")
        if (threshold := config.amount("jump_relu_threshold")) == 0:
            why = "it was never calibrated, and without calibration every positive feature is active"
            default = f"{path}: 'jump_relu_threshold' is 0, the library's default"
            raise SaevalError(f"{default}: {why}; set the calibrated threshold")
        by_norm = config.flag("sparsity_include_decoder_norm", default=True)
        pre_bias = config.flag("apply_decoder_bias_to_pre_encoder")  # required: the library's default has changed
        facts = config.facts({"jump_relu_threshold": None, "top_k": config.count, "norm_activation": None})
        header = Header.of(folder / WEIGHTS)
        sizes = _LAYOUT.check(header, d_in, d_sae, kind=CONFIG, sizes=CONFIG)
        transcoder = reads not in (None, writes)

        def folded(tensors: Tensors) -> Tensors:
            norms = tensors["W_dec"].norm(dim=-1)
            if pre_bias:  # subtracted from the scaled input, so a constant shift of b_enc
                tensors["b_enc"] = tensors["b_enc"] - tensors["b_dec"] @ tensors["W_enc"]
            units = s_out / norms if by_norm else norms.new_tensor(s_in).expand_as(norms)
            # A column of zeros has an infinite threshold: the feature contributes nothing and is never active.
            return {**scaled(tensors, s_in, s_out), "threshold": threshold * units}

        kind, hook_name = "jumprelu_transcoder" if transcoder else "jumprelu", options.hook_name or writes
        input_hook = options.input_hook or reads if transcoder else None
        numeric = (threshold, s_in, s_out, by_norm, pre_bias, transcoder)
        return Checkpoint(header, _LAYOUT, sizes, kind, hook_name, input_hook, numeric, facts, folded=folded)
