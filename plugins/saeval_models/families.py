"""The names of hooks: TransformerLens', and paths of modules."""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Literal

from saeval.plugin import ModelSpec

End = Literal["in", "out", "normalized", "scaled"]
"""A module's input, its output, a norm's output before its gain and bias, or an output times the family's `scale`."""
ModuleEnd = tuple[str, End]
"""A module's path relative to its block (empty for the block itself), and an end of the module."""

RESID_PRE, RESID_MID, RESID_POST = "hook_resid_pre", "hook_resid_mid", "hook_resid_post"
ATTN_OUT, MLP_OUT = "hook_attn_out", "hook_mlp_out"
"""The terms that a block adds to the residual stream: after a norm or a factor that is between a branch and the sum."""
Z, MLP_POST = "attn.hook_z", "mlp.hook_post"
"""The inputs of the last projections of attention and MLP."""
MLP_BRANCH, MLP_NORMALIZED, MLP_IN = "hook_mlp_in", "ln2.hook_normalized", "mlp.hook_in"
"""The path into the MLP: the input of its norm, the norm's output before gain and bias, the MLP's input.

New activations at `hook_mlp_in` change the input of the MLP's norm, not the residual stream.
"""
FINAL_NORMALIZED = "ln_final.hook_normalized"
"""The output of the norm after the last block, before its gain and bias."""
SUFFIXES = (
    RESID_PRE, RESID_MID, RESID_POST, ATTN_OUT, MLP_OUT, Z, MLP_POST,
    MLP_BRANCH, MLP_NORMALIZED, MLP_IN,
)  # fmt: skip

_BRIDGE_SPELLINGS = {
    "hook_in": RESID_PRE,
    "hook_out": RESID_POST,
    "attn.o.hook_in": Z,
    "mlp.out.hook_in": MLP_POST,
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
    scale: float = 1.0
    """The factor between the output of attention or MLP and the residual stream, as in Granite."""
    norm: str = ""
    """The path of the norm after the last block in the base model; empty if there is none."""

    @classmethod
    def read(cls, plain: Mapping[str, Any]) -> Family:
        """Return the family that `written` wrote, perhaps to JSON."""
        sites = {suffix: tuple((path, end) for path, end in places) for suffix, places in plain["sites"].items()}
        return cls(**{**plain, "sites": sites})

    def written(self) -> dict[str, Any]:
        """Return the family as plain data."""
        return asdict(self)

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


class NoGraph(Exception):  # noqa: N818 (it is an answer, which is not to be remembered)
    """The pass failed; `family` has the sites of any family."""

    def __init__(self, family: Family) -> None:
        super().__init__()
        self.family = family


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
