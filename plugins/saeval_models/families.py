"""The modules at TransformerLens' hooks in each model family, and the translation of hook names."""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

from saeval.plugin import ModelSpec

End = Literal["in", "out", "normalized"]
"""A module's input, its output, or a norm's output before its gain and bias."""
ModuleEnd = tuple[str, End]
"""A module's path relative to its block (empty for the block itself), and an end of the module."""

RESID_PRE, RESID_MID, RESID_POST, ATTN_OUT = "hook_resid_pre", "hook_resid_mid", "hook_resid_post", "hook_attn_out"
MLP_BRANCH, MLP_NORMALIZED, MLP_IN = "hook_mlp_in", "ln2.hook_normalized", "mlp.hook_in"
"""The path into the MLP: the input of its norm, the norm's output before gain and bias, the MLP's input.

New activations at `hook_mlp_in` change the input of the MLP's norm, not the residual stream.
"""
FINAL_NORMALIZED = "ln_final.hook_normalized"
"""The output of the norm after the last block, before its gain and bias."""
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
"""The sites of any family."""


@dataclass(frozen=True)
class Family:
    """The module names of a model family."""

    base: str
    """The full model's attribute that holds the base model."""
    blocks: str
    """The path of the list of blocks in the base model."""
    sites: Mapping[str, tuple[ModuleEnd, ...]]
    """TransformerLens suffix -> the places with that activation; the first is hooked, the others are aliases."""
    unit: float = 1.0
    """The norm weight for a gain of 1: 0 if the norms store the gain minus 1."""
    norm: str = ""
    """The path of the norm after the last block in the base model; empty if there is none."""

    def canonical(self, hook_name: str) -> str:
        """Return the canonical name of a site: its TransformerLens name, else the module path in the full model.

        A path means the module's output, with `:in` its input, and may start at the base model. Names of sites that
        are not inside a block are returned unchanged.
        """
        if self.norm and hook_name.removesuffix(":out") in self._final:
            return f"{self.base}.{self.norm}" if self.base else self.norm
        match = re.fullmatch(r"blocks\.(\d+)\.(.+)", hook_name)
        if match:
            suffix = _BRIDGE_SPELLINGS.get(match[2], match[2])
            return f"blocks.{int(match[1])}.{suffix}" if suffix in self.sites else hook_name
        path, _, end = hook_name.partition(":")
        # In a vision-language model, the list of blocks is deeper than in the language model alone.
        parent, _, last = self.blocks.rpartition(".")
        blocks = rf"(?:{re.escape(parent)}\.)?{re.escape(last)}" if parent else re.escape(last)
        match = re.fullmatch(rf"{blocks}\.(\d+)(?:\.(.+))?", path.removeprefix(f"{self.base}."))
        if not match or end not in ("", "in", "out"):
            return hook_name
        return self.name(int(match[1]), (match[2] or "", "in" if end == "in" else "out"))

    @property
    def _final(self) -> tuple[str, ...]:
        """The names of the output of the norm after the last block."""
        return f"{self.base}.{self.norm}", self.norm, self.norm.rpartition(".")[2], "ln_final.hook_out"

    def name(self, block: int, place: ModuleEnd) -> str:
        """Return the canonical name of a place in a block."""
        for suffix, places in self.sites.items():
            if place in places:
                return f"blocks.{block}.{suffix}"
        path, end = place
        return f"{self.base}.{self.blocks}.{block}.{path}" + (":in" if end == "in" else "")


class FamilySpec(ModelSpec):
    """A model whose hooks have the names of its family."""

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
        except Exception:  # the check of hooks reports a forward pass that fails
            return {}

    @abstractmethod
    def _same_tensors(self) -> Mapping[str, str]:
        """Return the canonical hook of each hook that is the same tensor as another block's."""


def _family(
    base: str, blocks: str, attn: str, proj: str, down: str, *, norm: str | None, parallel: bool = False,
    up: str | None = None, act: str | None = None, attn_norm: str | None = None, mlp_norm: str | None = None,
    unit: float = 1.0, final: str = "ln_f",
) -> Family:  # fmt: skip
    """Return a family by its module names.

    `norm` is the norm that only the MLP reads; None if attention reads it too. Its input is the block's input in
    `parallel` blocks, otherwise the stream between attention and MLP. `proj` and `down` are the last projections of
    attention and MLP, `up` is the only module that reads the MLP's input, and `act` is the module whose output `down`
    reads. `attn_norm` and `mlp_norm` are between a branch and its sum with the residual stream; `final` is the norm
    after the last block.
    """
    mlp_norm_sites: dict[str, tuple[ModuleEnd, ...]] = {}
    if norm:
        # MLP_BRANCH precedes RESID_MID, also at the norm's input: replacing that input does not change the stream.
        mlp_norm_sites = {MLP_BRANCH: ((norm, "in"),), MLP_NORMALIZED: ((norm, "normalized"),)}
        if not parallel:
            mlp_norm_sites[RESID_MID] = ((norm, "in"),)
    sites: dict[str, tuple[ModuleEnd, ...]] = {
        RESID_PRE: (("", "in"),),
        **mlp_norm_sites,
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
    """Return the family of a Hugging Face `model_type`; None if it is not in the table."""
    if model_type == "gpt_neox":
        return _neox(bool(config.get("use_parallel_residual", True)))
    return _FAMILIES.get(model_type)
