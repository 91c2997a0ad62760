"""Gemma Scope (`params.npz`) and Gemma Scope 2 (`config.json` and `params.safetensors`)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from saeval.plugin import SaevalError
from saeval_formats.fields import Fields
from saeval_formats.folders import FolderLoader, holding
from saeval_formats.reference import TranscoderReference, folder_of, json_object, parsed, several_hooks
from saeval_formats.tensor_layout import Checkpoint, TensorLayout
from saeval_formats.tensors import Header

ARRAYS, TENSORS, CONFIG = "params.npz", "params.safetensors", "config.json"
_SHAPES = {"W_enc": "dn", "b_enc": "n", "W_dec": "nd", "b_dec": "d", "threshold": "n"}
_FIRST = TensorLayout({name: (name, shape) for name, shape in _SHAPES.items()})
_SECOND = TensorLayout({name: (name.lower(), shape) for name, shape in _SHAPES.items()})
_AFFINE = TensorLayout({**_SECOND.stored, "W_skip": ("affine_skip_connection", "do")})

_MLP_OUT = "blocks.{}.hook_mlp_out"
_FIRST_SITES: Mapping[str, tuple[str, str | None]] = {
    "res": ("blocks.{}.hook_resid_post", None),
    "att": ("blocks.{}.attn.hook_z", None),
    "mlp": (_MLP_OUT, None),
    "transcoders": (_MLP_OUT, "blocks.{}.ln2.hook_normalized"),
}
"""Last word of the repository's name (`gemma-scope-2b-pt-res`) -> the hook that is replaced, the hook that is read."""
_SECOND_SITES: Mapping[str, tuple[str, str | None]] = {
    "resid_post": ("blocks.{}.hook_resid_post", None),
    "attn_out": ("blocks.{}.attn.hook_z", None),
    "mlp_out": (_MLP_OUT, None),
    "transcoder": (_MLP_OUT, "model.layers.{}.pre_feedforward_layernorm"),
}
"""Folder's name (`resid_post_all/layer_9_width_16k_l0_small`) -> the same, for SAEs without a config."""


@dataclass(frozen=True)
class Description:
    """The facts about an SAE in the names of its folders and in its config."""

    layout: TensorLayout
    hook_name: str | None = None
    input_hook: str | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)


class GemmaScope(FolderLoader):
    """JumpReLU SAEs and transcoders of Gemma Scope 1 and 2: acts = relu(pre)·1[pre > θ], pre = x W_enc + b_enc.

    x̂ = acts W_dec + b_dec; b_dec is not subtracted from x. Transcoders of Gemma Scope 2 may add
    x·affine_skip_connection. `path` is an SAE's folder, or a folder of such folders with `sites`, a glob or a list of
    globs. The hooks are read from the config, or from folders named as in the published repositories
    (`gemma-scope-2b-pt-res/layer_20/width_16k/...`).
    """

    name, entry = "gemma_scope", TranscoderReference
    markers = (ARRAYS, TENSORS)
    companions = (f"../{CONFIG}",)

    def opened(self, reference: Mapping[str, Any]) -> Checkpoint:
        options = parsed(TranscoderReference, reference, "gemma_scope", needs=f"the folder with {ARRAYS} or {TENSORS}")
        file = options.path.expanduser()
        if not file.is_file():
            file = holding(folder_of(file, "gemma_scope", f"{ARRAYS} or {TENSORS}"), "gemma_scope", (ARRAYS, TENSORS))
        first = file.suffix == ".npz"
        header = Header.of_npz(file) if first else Header.of(file)
        description = _first(file.parent) if first else _second(file.parent, header)
        kind = f"that it is a {'Gemma Scope' if first else 'Gemma Scope 2'} SAE"
        layout, hook_name = description.layout, options.hook_name or description.hook_name
        sizes = layout.check(header, kind=kind, sizes="the lengths of b_dec and b_enc")
        reads = options.input_hook or description.input_hook
        kind = f"jumprelu{'_skip' * ('W_skip' in layout.stored)}{'_transcoder' * (reads is not None)}"
        return Checkpoint(header, layout, sizes, kind, hook_name, reads, numeric=(kind,), facts=description.facts)


def _first(folder: Path) -> Description:
    """Describe an SAE of Gemma Scope 1 by the names of the repository and its folders."""
    place = folder.resolve().as_posix()
    if re.search(r"/embedding/", f"{place}/"):
        raise SaevalError(f"gemma_scope: {folder}: SAEs of the embedding are not supported: no model has that hook")
    repository = re.search(r"gemma-scope-(\d+b)-(pt|it)-(res|att|mlp|transcoders)(?=/|$)", place)
    layer = re.search(r"/layer_(\d+)(?=/|$)", place)
    l0, width = re.search(r"/average_l0_(\d+)$", place), re.search(r"/width_(\w+?)(?=/|$)", place)
    facts: dict[str, Any] = {**({"l0": int(l0[1])} if l0 else {}), **({"width": width[1]} if width else {})}
    if repository:
        facts["model_name"] = f"google/gemma-2-{repository[1]}{'-it' if repository[2] == 'it' else ''}"
    if not repository or not layer:
        return Description(_FIRST, facts=facts)
    writes, reads = _FIRST_SITES[repository[3]]
    return Description(_FIRST, writes.format(layer[1]), reads.format(layer[1]) if reads else None, facts)


def _second(folder: Path, header: Header) -> Description:
    """Describe an SAE of Gemma Scope 2 by the config beside the parameters, else by the names of its folders."""
    path, place = folder / CONFIG, folder.resolve().as_posix()
    if several := re.search(r"/(clt|crosscoder)(?:/[^/]*_l0_[^/]*)?$", place):
        raise several_hooks(header.path, several[1])
    layout = _AFFINE if "affine_skip_connection" in header.shapes else _SECOND
    if not path.is_file():
        match = re.search(r"/(resid_post|attn_out|mlp_out|transcoder)(?:_all)?/layer_(\d+)_[^/]*$", place)
        if not match:
            return Description(layout)
        writes, reads = _SECOND_SITES[match[1]]
        return Description(layout, writes.format(match[2]), reads.format(match[2]) if reads else None)
    config = Fields(path, json_object(path))
    config.choice("architecture", ("jump_relu",), "jump_relu")
    if (kind := config.values.get("type")) in ("clt", "crosscoder"):
        raise several_hooks(path, kind)
    config.choice("type", ("sae", "transcoder"), "sae")
    affine = config.maybe(config.flag, "affine_connection")
    if affine not in (None, layout is _AFFINE):
        has = "has an" if layout is _AFFINE else "has no"
        raise SaevalError(f"{path}: 'affine_connection: {affine}', but {header.path.name} {has} affine_skip_connection")
    input_hook, output_hook = (_module(config.text(f"hf_hook_point_{end}")) for end in ("in", "out"))
    reads = input_hook if output_hook not in (None, input_hook) else None
    facts = config.facts({"model_name": config.text, "width": None, "l0": config.positive})
    return Description(layout, output_hook or input_hook, reads, facts)


def _module(hook_point: str | None) -> str | None:
    """Return `model.layers.9.output` as the path of a module, with `:in` for its input."""
    if not hook_point:
        return None
    path, _, end = hook_point.rpartition(".")
    return {"output": path, "input": f"{path}:in"}.get(end, hook_point)
