"""Where each model family keeps what TransformerLens names, and the translation of hook names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

from saeval.plugin import ModelSpec

End = Literal["in", "out", "normalized"]
"""A module's input; its output; or, of a norm, its output before its own gain and bias."""
ModuleEnd = tuple[str, End]
"""A module's path relative to its block (empty: the block itself), and which end of the module."""

RESID_PRE, RESID_MID, RESID_POST, ATTN_OUT = "hook_resid_pre", "hook_resid_mid", "hook_resid_post", "hook_attn_out"
MLP_BRANCH, MLP_NORMALIZED, MLP_IN = "hook_mlp_in", "ln2.hook_normalized", "mlp.hook_in"
"""The way into the MLP: what its norm reads, what that makes of it before gain and bias, what the MLP reads.

New activations at `hook_mlp_in` change what the MLP reads of the residual stream, not the stream.
"""
FINAL_NORMALIZED = "ln_final.hook_normalized"
"""What the norm after the last block makes of the residual stream, before its gain and bias."""
SUFFIXES = (
    RESID_PRE, RESID_MID, RESID_POST, ATTN_OUT, "hook_mlp_out", "attn.hook_z", "mlp.hook_post",
    MLP_BRANCH, MLP_NORMALIZED, MLP_IN,
)  # fmt: skip

_BRIDGE_SPELLINGS = {
    "hook_in": RESID_PRE,
    "hook_out": RESID_POST,
    "attn.o.hook_in": "attn.hook_z",
    "mlp.out.hook_in": "mlp.hook_post",
    "ln2.hook_in": MLP_BRANCH,
    "ln2.hook_out": MLP_IN,
}
BOUNDARIES: Mapping[str, tuple[ModuleEnd, ...]] = {RESID_PRE: (("", "in"),), RESID_POST: (("", "out"),)}
"""What can be said of any family."""


@dataclass(frozen=True)
class Family:
    """The module names of a family."""

    base: str
    """Attribute of the full model that holds the base model."""
    blocks: str
    """Path of the list of blocks in the base model."""
    sites: Mapping[str, tuple[ModuleEnd, ...]]
    """TransformerLens suffix -> the places that hold it; the first one is hooked, the others are its aliases."""
    unit: float = 1.0
    """The weight that gives the norms a gain of 1: 0 where they store the gain less 1."""
    norm: str = ""
    """Path of the norm after the last block in the base model; empty where there is none."""

    def canonical(self, hook_name: str) -> str:
        """The one spelling of a site: its TransformerLens name, else the module path from the full model's root.

        A path is the module's output, with `:in` its input, and may start at the base model. Names
        of nothing inside a block come back unchanged.
        """
        if self.norm and hook_name.removesuffix(":out") in self._final:
            return f"{self.base}.{self.norm}" if self.base else self.norm
        match = re.fullmatch(r"blocks\.(\d+)\.(.+)", hook_name)
        if match:
            suffix = _BRIDGE_SPELLINGS.get(match[2], match[2])
            return f"blocks.{int(match[1])}.{suffix}" if suffix in self.sites else hook_name
        path, _, end = hook_name.partition(":")
        # A model that sees as well has its list of blocks further down than the one that only speaks.
        parent, _, last = self.blocks.rpartition(".")
        blocks = rf"(?:{re.escape(parent)}\.)?{re.escape(last)}" if parent else re.escape(last)
        match = re.fullmatch(rf"{blocks}\.(\d+)(?:\.(.+))?", path.removeprefix(f"{self.base}."))
        if not match or end not in ("", "in", "out"):
            return hook_name
        return self.name(int(match[1]), (match[2] or "", "in" if end == "in" else "out"))

    @property
    def _final(self) -> tuple[str, ...]:
        """The names of what the norm after the last block gives."""
        return f"{self.base}.{self.norm}", self.norm, self.norm.rpartition(".")[2], "ln_final.hook_out"

    def name(self, block: int, place: ModuleEnd) -> str:
        """The canonical name of a place in a block."""
        for suffix, places in self.sites.items():
            if place in places:
                return f"blocks.{block}.{suffix}"
        path, end = place
        return f"{self.base}.{self.blocks}.{block}.{path}" + (":in" if end == "in" else "")


class FamilySpec(ModelSpec):
    """A model whose hooks are called as its family calls them."""

    @cached_property
    def _family(self) -> Family:
        raise NotImplementedError

    def canonical(self, hook_name: str) -> str:
        return self._family.canonical(hook_name)

    def site(self, hook_name: str) -> str:
        name = self.canonical(hook_name)
        return self._twins.get(name, name) if name.endswith(RESID_POST) else name

    @cached_property
    def _twins(self) -> Mapping[str, str]:
        try:
            return self._same_tensors()
        except Exception:  # a forward that cannot run so, or no model at all, which is said where hooks are checked
            return {}

    def _same_tensors(self) -> Mapping[str, str]:
        """The site of each hook that is one tensor with another block's."""
        raise NotImplementedError


def unknown_family(base: str = "", blocks: str = "") -> Family:
    """A family that knows of nothing inside the blocks."""
    return Family(base, blocks, BOUNDARIES)


def _family(
    base: str, blocks: str, attn: str, proj: str, down: str, *, norm: str | None, parallel: bool = False,
    up: str | None = None, act: str | None = None, attn_norm: str | None = None, mlp_norm: str | None = None,
    unit: float = 1.0, final: str = "ln_f",
) -> Family:  # fmt: skip
    """`norm` is read by the MLP and by nothing else, None where attention reads it too.

    In `parallel` blocks it reads the block's input, in others the stream between attention and MLP.
    `proj` and `down` are the last projections of attention and MLP, `up` the only module to read the
    MLP's input, `act` the module whose output `down` reads; `attn_norm` and `mlp_norm` come between a
    branch and its sum with the residual stream. `final` is the norm after the last block.
    """
    own_norm: dict[str, tuple[ModuleEnd, ...]] = {}
    if norm:
        # First of the two that are seen at the norm's input: to replace that input is to leave the stream alone.
        own_norm = {MLP_BRANCH: ((norm, "in"),), MLP_NORMALIZED: ((norm, "normalized"),)}
        if not parallel:
            own_norm[RESID_MID] = ((norm, "in"),)
    sites: dict[str, tuple[ModuleEnd, ...]] = {
        RESID_PRE: (("", "in"),),
        **own_norm,
        RESID_POST: (("", "out"),),
        ATTN_OUT: ((attn_norm, "out"),) if attn_norm else ((attn, "out"), (f"{attn}.{proj}", "out")),
        "hook_mlp_out": ((mlp_norm, "out"),) if mlp_norm else (("mlp", "out"), (f"mlp.{down}", "out")),
        "attn.hook_z": ((f"{attn}.{proj}", "in"),),
        MLP_IN: (("mlp", "in"), *(((norm, "out"),) if norm else ()), *(((f"mlp.{up}", "in"),) if up else ())),
        "mlp.hook_post": ((f"mlp.{down}", "in"), *(((f"mlp.{act}", "out"),) if act else ())),
    }
    return Family(base, blocks, sites, unit, final)


_GPT2 = _family("transformer", "h", "attn", "c_proj", "c_proj", norm="ln_2", up="c_fc", act="act")
_GPT_NEO = _family("transformer", "h", "attn", "attention.out_proj", "c_proj", norm="ln_2", up="c_fc", act="act")
_GPTJ = _family("transformer", "h", "attn", "out_proj", "fc_out", norm=None, parallel=True, up="fc_in", act="act")
_LLAMA = _family("model", "layers", "self_attn", "o_proj", "down_proj", norm="post_attention_layernorm", final="norm")
_GEMMA = replace(_LLAMA, unit=0.0)
_GEMMA2 = _family(
    "model", "layers", "self_attn", "o_proj", "down_proj", norm="pre_feedforward_layernorm",
    attn_norm="post_attention_layernorm", mlp_norm="post_feedforward_layernorm", unit=0.0, final="norm",
)  # fmt: skip


def _neox(parallel: bool) -> Family:
    return _family(
        "gpt_neox", "layers", "attention", "dense", "dense_4h_to_h", norm="post_attention_layernorm",
        parallel=parallel, up="dense_h_to_4h", act="act", final="final_layer_norm",
    )  # fmt: skip


_FAMILIES = {
    "gpt2": _GPT2,
    "gpt_neo": _GPT_NEO,
    "gptj": _GPTJ,
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "gemma": _GEMMA,
    "gemma2": _GEMMA2,
    "gemma3_text": _GEMMA2,
}


def known_family(model_type: str, config: Mapping[str, Any]) -> Family | None:
    """The family of a Hugging Face `model_type`; None for a family that is not in the table."""
    if model_type == "gpt_neox":
        return _neox(bool(config.get("use_parallel_residual", True)))
    return _FAMILIES.get(model_type)
