"""Gemma Scope (`params.npz`) and Gemma Scope 2 (`config.json` and `params.safetensors`)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saeval.plugin import SAEInfo, SaevalError, searched_in
from saeval_formats.fields import Fields
from saeval_formats.folders import FolderLoader, holding
from saeval_formats.reference import AskedTranscoder, json_object, parsed
from saeval_formats.tensor_layout import TensorLayout
from saeval_formats.tensors import Header

if TYPE_CHECKING:
    import torch

    from saeval_formats.dense import DenseSAE

ARRAYS, TENSORS, CONFIG = "params.npz", "params.safetensors", "config.json"
_SHAPES = {"W_enc": "dn", "b_enc": "n", "W_dec": "nd", "b_dec": "d", "threshold": "n"}
_FIRST = TensorLayout({name: (name, shape) for name, shape in _SHAPES.items()})
_SECOND = TensorLayout({name: (name.lower(), shape) for name, shape in _SHAPES.items()})
_AFFINE = TensorLayout({**_SECOND.stored, "W_skip": ("affine_skip_connection", "dd")})

_MLP_OUT = "blocks.{}.hook_mlp_out"
_FIRST_SITES: Mapping[str, tuple[str, str | None]] = {
    "res": ("blocks.{}.hook_resid_post", None),
    "att": ("blocks.{}.attn.hook_z", None),
    "mlp": (_MLP_OUT, None),
    "transcoders": (_MLP_OUT, "blocks.{}.ln2.hook_normalized"),
}
"""By the end of the repository's name, as `gemma-scope-2b-pt-res`: the hook it replaces, the one it reads."""
_SECOND_SITES: Mapping[str, tuple[str, str | None]] = {
    "resid_post": ("blocks.{}.hook_resid_post", None),
    "attn_out": ("blocks.{}.attn.hook_z", None),
    "mlp_out": (_MLP_OUT, None),
    "transcoder": (_MLP_OUT, "model.layers.{}.pre_feedforward_layernorm"),
}
"""By the folder, as `resid_post_all/layer_9_width_16k_l0_small`, where there is no config."""


@dataclass(frozen=True)
class Found:
    """What folder and config tell of an SAE."""

    layout: TensorLayout
    hook_name: str | None = None
    input_hook: str | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)


class GemmaScope(FolderLoader):
    """JumpReLU SAEs and transcoders: pre·1[pre > θ] with pre = x W_enc + b_enc, relu; x̂ = acts W_dec + b_dec.

    b_dec is not subtracted from x; transcoders of Gemma Scope 2 may add x·affine_skip_connection. An SAE's hook is
    told by its config, or by folders named as the repositories are: `gemma-scope-2b-pt-res/layer_20/width_16k/...`.
    """

    name, entry = "gemma_scope", AskedTranscoder
    markers = (ARRAYS, TENSORS)
    companions = (f"../{CONFIG}",)

    def info(self, reference: Mapping[str, Any]) -> SAEInfo:
        asked, found, header, (d_in, d_sae) = _opened(reference)
        reads = asked.input_hook or found.input_hook
        kind = f"jumprelu{'_skip' * ('W_skip' in found.layout.stored)}{'_transcoder' * (reads is not None)}"
        return SAEInfo(
            hook_name=asked.hook_name or found.hook_name,
            input_hook=reads,
            d_in=d_in,
            d_sae=d_sae,
            d_out=d_in,
            sha256=header.identity(kind),
            architecture=kind,
            facts=found.facts,
        )

    def load(self, reference: Mapping[str, Any], device: str = "cpu", dtype: torch.dtype | None = None) -> DenseSAE:
        """In float32 unless `dtype` is given. The hook's name is empty where nobody gave one."""
        from saeval_formats.dense import DenseSAE, JumpReLU  # late: reading headers needs no torch

        asked, found, header, _ = _opened(reference)
        tensors = found.layout.canonical(header, device, dtype)
        skip = tensors.get("W_skip")
        return DenseSAE(
            asked.hook_name or found.hook_name or "",
            tensors["W_enc"],
            tensors["b_enc"],
            tensors["W_dec"],
            tensors["b_dec"],
            JumpReLU(tensors["threshold"]),
            transcoder=(asked.input_hook or found.input_hook) is not None,
            W_skip=None if skip is None else skip.T,  # stored as [d_in, d_out]
        )


def _opened(reference: Mapping[str, Any]) -> tuple[AskedTranscoder, Found, Header, tuple[int, int]]:
    asked = parsed(AskedTranscoder, reference, "gemma_scope", needs=f"the folder with {ARRAYS} or {TENSORS}")
    path = asked.path.expanduser()
    if not path.exists():
        raise SaevalError(
            f"gemma_scope: {path}: expected a folder with {ARRAYS} or {TENSORS}, found nothing{searched_in(path)}"
        )
    file = path if path.is_file() else holding(path, "gemma_scope", (ARRAYS, TENSORS))
    first = file.suffix == ".npz"
    header = Header.of_npz(file) if first else Header.of(file)
    found = _first(file.parent) if first else _second(file.parent, header)
    said = f"that it is a {'Gemma Scope' if first else 'Gemma Scope 2'} SAE"
    sizes = found.layout.check(header, kind=said, sizes="the lengths of b_dec and b_enc")
    return asked, found, header, sizes


def _first(folder: Path) -> Found:
    """By the names of the repository and its folders."""
    place = folder.resolve().as_posix()
    if re.search(r"/embedding/", f"{place}/"):
        raise SaevalError(f"gemma_scope: {folder}: SAEs of the embedding are not supported: no model has that hook")
    named = re.search(r"gemma-scope-(\d+b)-(pt|it)-(res|att|mlp|transcoders)(?=/|$)", place)
    layer = re.search(r"/layer_(\d+)(?=/|$)", place)
    l0, width = re.search(r"/average_l0_(\d+)$", place), re.search(r"/width_(\w+?)(?=/|$)", place)
    said: dict[str, Any] = {**({"l0": int(l0[1])} if l0 else {}), **({"width": width[1]} if width else {})}
    if not named:
        return Found(_FIRST, facts=said)
    said["model_name"] = f"google/gemma-2-{named[1]}{'-it' if named[2] == 'it' else ''}"
    writes, reads = _FIRST_SITES[named[3]]
    if not layer:
        return Found(_FIRST, facts=said)
    return Found(_FIRST, writes.format(layer[1]), reads.format(layer[1]) if reads else None, said)


def _second(folder: Path, header: Header) -> Found:
    """By the config beside the parameters, else by the names of the folders."""
    path = folder / CONFIG
    layout = _AFFINE if "affine_skip_connection" in header.shapes else _SECOND
    if not path.is_file():
        place = folder.resolve().as_posix()
        named = re.search(r"/(resid_post|attn_out|mlp_out|transcoder)(?:_all)?/layer_(\d+)_[^/]*$", place)
        if not named:
            return Found(layout)
        writes, reads = _SECOND_SITES[named[1]]
        return Found(layout, writes.format(named[2]), reads.format(named[2]) if reads else None)
    said = Fields(path, json_object(path))
    said.choice("architecture", ("jump_relu",), "jump_relu")
    said.choice("type", ("sae", "transcoder"), "sae")  # the others read or give several hooks at once
    affine = said.maybe(said.flag, "affine_connection")
    if affine not in (None, layout is _AFFINE):
        held = "holds an" if layout is _AFFINE else "holds no"
        raise SaevalError(
            f"{path}: 'affine_connection: {affine}', but {header.path.name} {held} affine_skip_connection"
        )
    entered, left = (_module(said.text(f"hf_hook_point_{end}")) for end in ("in", "out"))
    facts = said.facts({"model_name": said.text, "width": None, "l0": said.positive})
    return Found(layout, left or entered, entered if left not in (None, entered) else None, facts)


def _module(hook_point: str | None) -> str | None:
    """`model.layers.9.output` as the path of a module, with `:in` for its input."""
    if not hook_point:
        return None
    path, _, end = hook_point.rpartition(".")
    return {"output": path, "input": f"{path}:in"}.get(end, hook_point)
