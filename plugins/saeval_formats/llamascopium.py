"""Sparse dictionaries of Llamascopium: `config.json` and `sae_weights.safetensors`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from saeval.plugin import SaevalError
from saeval_formats.dense import Activation, TopK
from saeval_formats.fields import Fields
from saeval_formats.folders import FolderLoader, holding
from saeval_formats.folding import scaled
from saeval_formats.reference import TranscoderReference, folder_of, json_object, parsed, several_hooks
from saeval_formats.tensor_layout import Checkpoint, TensorLayout
from saeval_formats.tensors import Header, Tensors, state_dict, unpickled_dict

CONFIG, MODEL, WEIGHTS = "config.json", "lm_config.json", ("sae_weights.safetensors", "sae_weights.pt")
DISTRIBUTED = "sae_weights.dcp"
_STORED = {"W_enc": ("W_E", "dn"), "b_enc": ("b_E", "n"), "W_dec": ("W_D", "nd"), "b_dec": ("b_D", "d")}
_THRESHOLD = ("activation_function.log_jumprelu_threshold", "n")
_NORM = "dataset_average_activation_norm."
_REFUSED = {
    "batchtopk": "a token's features would depend on the other tokens of its batch; convert it to 'jumprelu'",
    "batch-wise": "a token's features would depend on the other tokens of its batch",
}


class Llamascopium(FolderLoader):
    """SAEs and transcoders of OpenMOSS' Llamascopium (formerly lm-saes), with ReLU, JumpReLU or TopK.

    `path` is an SAE's folder, or a folder of SAEs' folders with `sites`, a glob or a list of globs. Features are those
    of the library's `encode`: activation(s_in·x W_E + b_E), with s = √d / mean norm for `dataset-wise`, √d / ‖x‖ for
    `token-wise`, and 1 for `inference`; x̂ = (acts W_D + b_D) / s_out. With `sparsity_include_decoder_norm`, the
    threshold or TopK applies to pre-activations times the norms of their decoder rows.
    Crosscoders, cross-layer transcoders, Lorsa and MOLT are refused: they are not substitutes of one hook.
    """

    name, entry = "llamascopium", TranscoderReference
    markers = WEIGHTS

    def opened(self, reference: Mapping[str, Any]) -> Checkpoint:
        options = parsed(TranscoderReference, reference, "llamascopium", needs=f"the folder with {CONFIG}")
        folder = folder_of(options.path, "llamascopium", f"{CONFIG} and {WEIGHTS[0]}")
        if not (folder / CONFIG).is_file():
            holding(folder, "llamascopium", WEIGHTS)  # raises the error for a folder of several SAEs
        config = Fields(folder / CONFIG, json_object(folder / CONFIG))
        if (kind := config.values.get("sae_type")) in ("clt", "crosscoder", "lorsa", "molt"):
            raise several_hooks(config.path, kind)
        config.choice("sae_type", ("sae",))
        if (folder / DISTRIBUTED).exists():
            remedy = f"save it as {WEIGHTS[0]} with the library's save_checkpoint()"
            raise SaevalError(f"{folder / DISTRIBUTED}: is a checkpoint of several processes; {remedy}")
        file = holding(folder, "llamascopium", WEIGHTS)
        for key in ("act_fn", "norm_activation"):
            if isinstance(value := config.values.get(key), str) and value in _REFUSED:
                raise SaevalError(f"{config.path}: '{key}: {value}' is not supported: {_REFUSED[value]}")
        if config.flag("use_glu_encoder", default=False):
            raise SaevalError(
                f"{config.path}: 'use_glu_encoder' is not supported: its features are products of two layers"
            )
        activation = config.choice("act_fn", ("relu", "jumprelu", "topk"))
        normalization = config.choice("norm_activation", ("dataset-wise", "token-wise", "inference"))
        by_norm = config.flag("sparsity_include_decoder_norm")
        reads, writes = (config.text(f"hook_point_{end}") for end in ("in", "out"))
        for key, hook in (("hook_point_in", reads), ("hook_point_out", writes)):
            if not hook:
                raise config.fault(key, "text")
        transcoder = reads != writes
        if transcoder and normalization == "token-wise":
            fault = "the scale of a transcoder's input does not determine that of its output"
            raise SaevalError(f"{config.path}: 'norm_activation: token-wise' is not for transcoders: {fault}")

        whole = Header.of(file) if file.suffix == ".safetensors" else _torch_header(file)
        norms = {name: shape for name, shape in whole.shapes.items() if name.startswith(_NORM)}
        weights = {name: shape for name, shape in whole.shapes.items() if name not in norms}
        stored = {**_STORED, **({"log_threshold": _THRESHOLD} if activation == "jumprelu" else {})}
        if not config.flag("use_decoder_bias"):
            del stored["b_dec"]
        layout, d_in = TensorLayout(stored), config.whole("d_model")
        d_sae = int(d_in * config.positive("expansion_factor"))
        k = config.k(d_sae, "top_k") if activation == "topk" else None
        header = Header(file, weights, whole.dtypes, whole.fetch)
        sizes = layout.check(header, d_in, d_sae, kind=f"'act_fn' and 'use_decoder_bias' of {CONFIG}", sizes=CONFIG)
        s_in = s_out = 1.0
        if normalization == "dataset-wise":
            s_in, s_out = (_scale(whole, config, hook, d_in) for hook in (reads, writes))

        def ranked(tensors: Tensors) -> Activation:
            return TopK(k or 0, tensors["W_dec"].norm(dim=-1) if by_norm else None)

        def folded(tensors: Tensors) -> Tensors:
            if "threshold" in tensors and by_norm:  # a row of zeros contributes nothing and is never active
                tensors = {**tensors, "threshold": tensors["threshold"] / tensors["W_dec"].norm(dim=-1)}
            return scaled(tensors, s_in, s_out)

        model = folder / MODEL
        facts = Fields(model, json_object(model) if model.is_file() else {})
        return Checkpoint(
            header,
            layout,
            sizes,
            f"{activation if activation != 'relu' else 'standard'}{'_transcoder' * transcoder}",
            options.hook_name or writes,
            (options.input_hook or reads) if transcoder else None,
            numeric=(activation, k, normalization, by_norm, transcoder, "b_dec" in stored, reads, writes),
            facts={**facts.facts({"model_name": facts.text}), **({"k": k} if k else {})},
            activation=ranked if k else None,
            normalization="constant_norm_rescale" if normalization == "token-wise" else "none",
            folded=folded,
        )


def _torch_header(file: Path) -> Header:
    """Return the header of a file that the library wrote with `torch.save`: `{"sae": state dict, "version": ...}`."""
    content = unpickled_dict(file)
    if not isinstance(state := content.get("sae"), dict):
        raise SaevalError(f"{file}: expected a dict of tensors in 'sae', found {type(state).__name__}; check 'use'")
    return Header.of_tensors(file, state_dict(file, {str(key): value for key, value in state.items()}))


def _scale(header: Header, config: Fields, hook: str | None, d_in: int) -> float:
    """Return √d / mean norm of a hook's activations in training."""
    name = f"{_NORM}{hook}"
    if name not in header.shapes:
        present = ", ".join(name for name in header.shapes if name.startswith(_NORM))
        known = f"; the file has {present}" if present else ""
        raise SaevalError(
            f"{header.path}: no '{name}', which 'norm_activation: dataset-wise' of {config.path} needs{known}"
        )
    value = header.read([name], "cpu")[name]
    if value.numel() != 1:
        raise SaevalError(f"{header.path}: '{name}' is {list(value.shape)}, expected one number")
    return math.sqrt(d_in) / Fields(header.path, {name: float(value)}).positive(name)
