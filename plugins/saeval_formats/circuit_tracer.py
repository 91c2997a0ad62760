"""Per-layer transcoders of circuit-tracer: `config.yaml` and one file per layer, `layer_{i}.safetensors`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from saeval.plugin import SaevalError
from saeval_formats.fields import Fields
from saeval_formats.layer_files import LayerFileLoader
from saeval_formats.reference import TranscoderReference, parsed, several_hooks, yaml_object
from saeval_formats.tensor_layout import Checkpoint, TensorLayout
from saeval_formats.tensors import Header

CONFIG = "config.yaml"
_THRESHOLD = "activation_function.threshold"
_STORED = {"W_enc": ("W_enc", "nd"), "b_enc": ("b_enc", "n"), "W_dec": ("W_dec", "nd"), "b_dec": ("b_dec", "d")}
_CROSS_LAYER = re.compile(r"[Wb]_(?:enc|dec)_\d+")


class CircuitTracer(LayerFileLoader):
    """Per-layer transcoders of circuit-tracer, with ReLU or JumpReLU and with or without a skip connection.

    `path` is a file, or the folder of the files and of `config.yaml` with `sites`. Features are relu(x W_encᵀ + b_enc),
    0 unless above the threshold if the file has one, x̂ = acts W_dec + b_dec, plus x W_skipᵀ. Early files, whose W_dec
    is transposed, are read too. The config names the model and the hooks of all layers. Formulas:
    `single_layer_transcoder.py`.
    """

    name, entry, pattern = "circuit_tracer", TranscoderReference, re.compile(r"layer_(\d+)\.safetensors")
    companions = (f"../{CONFIG}",)

    def opened(self, reference: Mapping[str, Any]) -> Checkpoint:
        options = parsed(TranscoderReference, reference, "circuit_tracer", needs="the file layer_{i}.safetensors")
        path = options.path.expanduser()
        if path.is_dir() and not self._files(path) and _config(path).values.get("transcoders"):
            remedy = "read each by the format of its repository, such as gemma_scope"
            raise SaevalError(f"{path / CONFIG}: 'transcoders' lists files of other repositories; {remedy}")
        file, layer = self.file(path)
        header = Header.of(file)
        if any(_CROSS_LAYER.fullmatch(name) for name in header.shapes):
            raise several_hooks(file, "clt")
        config = _config(file.parent)
        if layer is None and "W_enc" not in header.shapes:
            raise SaevalError(f"{file}: expected a file named layer_0.safetensors with the tensor 'W_enc'; check 'use'")
        stored = dict(_STORED)
        width, features = (header.shapes.get(name, ()) for name in ("b_dec", "b_enc"))
        if header.shapes.get("W_dec") == (*width, *features):
            stored["W_dec"] = ("W_dec", "dn")
        if (threshold := header.shapes.get(_THRESHOLD)) is not None:
            stored["threshold"] = (_THRESHOLD, "n" if threshold == features else "1" * len(threshold))
        if "W_skip" in header.shapes:
            stored["W_skip"] = ("W_skip", "od")
        layout = TensorLayout(stored)
        sizes = layout.check(header, kind="'use'", sizes="the lengths of b_dec and b_enc")
        writes, reads = (_hook(config.text(f"feature_{end}_hook"), layer) for end in ("output", "input"))
        kind = f"{'jumprelu_' * ('threshold' in stored)}{'skip_' * ('W_skip' in stored)}transcoder"
        facts = config.facts({"model_name": config.text})
        hook_name, input_hook = options.hook_name or writes, options.input_hook or reads
        if input_hook is None:
            fault = f"no 'feature_input_hook' in {file.parent / CONFIG}" if layer else "no layer in the file's name"
            raise SaevalError(f"{file}: {fault}; add 'input_hook:', the hook that the transcoder reads")
        return Checkpoint(header, layout, sizes, kind, hook_name, input_hook, numeric=(kind,), facts=facts)


def _config(folder: Path) -> Fields:
    """Return the config in a folder, empty if there is none; `SaevalError` if it is not of per-layer transcoders."""
    path = folder / CONFIG
    config = Fields(path, yaml_object(path) if path.is_file() else {})
    if config.values.get("model_kind") == "cross_layer_transcoder":
        raise several_hooks(path, "clt")
    config.choice("model_kind", ("transcoder_set",), "transcoder_set")
    return config


def _hook(within: str | None, layer: str | None) -> str | None:
    """Return the hook of a layer, from its name within a block."""
    # The library's name for the output of the MLP module, which has no hook of that name in TransformerLens.
    within = "hook_mlp_out" if within == "mlp.hook_out" else within
    return f"blocks.{layer}.{within}" if within and layer else None
