"""TransformerLens models as `HookedModel`s: sites are HookPoints under their own names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from saeval.data import Batch
from saeval_models.hooked import HookedModel, Site
from saeval_models.layouts import SUFFIXES, Layout
from saeval_models.pretrained import PretrainedCausal


def hook_point_sites(hook_points: Mapping[str, nn.Module], blocks: int, suffixes: Mapping[str, Any]) -> dict[str, Site]:
    """The sites of `suffixes` that exist; a HookPoint is an identity module, so its output is the activation."""
    names = {f"blocks.{index}.{suffix}": (index, suffix) for index in range(blocks) for suffix in suffixes}
    return {name: Site(hook_points[name], "out", *place) for name, place in names.items() if name in hook_points}


def bridged(bridge: Any, layout: Layout) -> PretrainedCausal:
    """A TransformerBridge ready for capture and resume.

    The bridge puts its components into the Hugging Face model's own places, so that the model's
    forward is the bridge's, and its list of blocks is the bridge's.
    """
    module = bridge.original_model
    blocks = module.base_model.get_submodule(layout.blocks)
    return PretrainedCausal(module, blocks, hook_point_sites(bridge.hook_dict, len(blocks), layout.sites))


class _Reached(Exception):  # noqa: N818 (not an error)
    """The unembedding has been reached; carries what it was to read."""


class HookedTransformerModel(HookedModel):
    """A user's own `HookedTransformer` (transformer-lens 3), with whatever processing its weights had."""

    def __init__(self, module: Any) -> None:
        sites = hook_point_sites(module.hook_dict, len(module.blocks), dict.fromkeys(SUFFIXES))
        super().__init__(module, module.blocks, sites)

    def _forward(self, tokens: Int[Tensor, "batch seq"], **inputs: Any) -> Float[Tensor, "batch seq d_model"]:
        def reached(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            raise _Reached(args[0])

        handle = self.module.unembed.register_forward_pre_hook(reached)
        try:
            self.module(tokens, **inputs)
        except _Reached as end:
            return end.args[0]  # type: ignore[no-any-return]
        finally:
            handle.remove()
        raise RuntimeError("the model never came to its unembedding")

    def _inputs(self, batch: Batch) -> dict[str, Any]:
        # Always given: without it a tokenizer that pads on the left makes the model guess a mask from token ids.
        return {"attention_mask": batch.real.long()}

    def head(self, final: Float[Tensor, "batch seq d_model"], batch: Batch | None = None) -> Tensor:
        logits: Tensor = self.module.unembed(final)
        cap = self.module.cfg.output_logits_soft_cap
        return cap * torch.tanh(logits / cap) if cap > 0 else logits

    def unembed(self, hidden: Float[Tensor, "n d_model"]) -> Float[Tensor, "n vocab"]:
        return self.head(hidden[None])[0]

    def logits(self, batch: Batch) -> Float[Tensor, "batch seq vocab"]:
        return self.module(batch.tokens, return_type="logits", **self._inputs(batch))  # type: ignore[no-any-return]
