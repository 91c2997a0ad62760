"""TransformerLens models as `HookedModel`s, whose sites are HookPoints with their own names."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from saeval.plugin import Batch, SaevalError
from saeval_models.families import (
    ATTN_OUT,
    FINAL_NORMALIZED,
    MLP_BRANCH,
    MLP_IN,
    MLP_NORMALIZED,
    MLP_OUT,
    RESID_MID,
    RESID_POST,
    SUFFIXES,
    Family,
    ModuleEnd,
)
from saeval_models.hooked import HookedModel, Site
from saeval_models.pretrained import PretrainedCausal, base_of, final_sites

# These hook points do not fire by default, so the modules themselves are hooked.
_MODULES: Mapping[str, ModuleEnd] = {MLP_BRANCH: ("ln2", "in"), MLP_IN: ("mlp", "in")}


def lens_sites(
    owner: Any, suffixes: Iterable[str], modules: Mapping[str, ModuleEnd] = _MODULES, unit: float = 1.0
) -> dict[str, Site]:
    """Return the sites of `suffixes` in a TransformerLens model, at its HookPoints or at one of `modules`.

    A HookPoint is an identity module, so its output is the activation.
    """
    sites: dict[str, Site] = {}
    points = owner.hook_dict
    for index, block in enumerate(owner.blocks):
        for suffix in suffixes:
            name = f"blocks.{index}.{suffix}"
            path, end = modules.get(suffix, ("", "out"))
            module = getattr(block, path, None) if path else points.get(name)
            if module is not None:
                sites[name] = Site(module, end, index, suffix, unit)
        if f"blocks.{index}.{ATTN_OUT}" not in sites:
            sites.pop(f"blocks.{index}.{RESID_MID}", None)
    return sites


class _Sites(dict[str, Site]):
    """The sites of a bridge. Others are refused when they are used: hooks are known before there is a bridge."""

    def __missing__(self, name: str) -> Site:
        raise SaevalError(f"'{name}' has no activations in this TransformerBridge; use 'huggingface'")


def bridged(bridge: Any, family: Family, expected: Mapping[str, Tensor] | None = None) -> PretrainedCausal:
    """Return a TransformerBridge as a model for capture and resume.

    The bridge replaces the Hugging Face model's modules with its components, so the model's forward pass and its list
    of blocks are those of the bridge. With `expected`, the activations of the same model without a bridge in a short
    pass, only sites with the same activations remain; `SaevalError` if the bridge computes something else.
    """
    module = bridge.original_model
    name, base = base_of(module)
    blocks = base.get_submodule(family.blocks)
    # A bridge's `hook_normalized` may not be on the path of its norm's output.
    modules = {**_MODULES, MLP_NORMALIZED: ("ln2", "normalized")}
    # A bridge computes a scaled output twice, for its hook and for the block.
    suffixes = [s for s in family.sites if family.scale == 1 or s not in (ATTN_OUT, MLP_OUT, RESID_MID)]
    sites = {**lens_sites(bridge, suffixes, modules, family.unit), **final_sites(name, base, family, len(blocks))}
    model = PretrainedCausal(module, blocks, sites)
    if expected is not None:
        activations = model.short_activations()
        same = {n for n in activations.keys() & expected.keys() if model.agree(activations[n][0], expected[n][0])}
        if f"blocks.{len(blocks) - 1}.{RESID_POST}" not in same:
            raise SaevalError(f"transformer_lens computes other states than transformers in a {type(module).__name__}")
        model.sites = _Sites({name: site for name, site in sites.items() if name in same})
    return model


def _gained(norm: Any, value: Float[Tensor, "batch seq d_model"]) -> Float[Tensor, "batch seq d_model"]:
    """Return a TransformerLens norm's output from the activation at its hook: apply its gain and bias, if any."""
    value = value.to(norm.cfg.dtype)
    value = value * norm.w if hasattr(norm, "w") else value
    return value + norm.b if hasattr(norm, "b") else value


class _Reached(Exception):  # noqa: N818 (not an error)
    """Ends a forward pass at the unembedding; its argument is the input of the unembedding."""


class HookedTransformerModel(HookedModel):
    """A user's `HookedTransformer` (transformer-lens 3), with its weights as processed by the user."""

    def __init__(self, module: Any) -> None:
        from transformer_lens.utilities.architectures import POST_NORM_ARCHITECTURES  # late: gone in 4.0

        # In these, ln2 comes after the MLP, which reads the residual stream directly.
        post_norm = module.cfg.original_architecture in POST_NORM_ARCHITECTURES
        modules = {**_MODULES, MLP_BRANCH: ("mlp", "in")} if post_norm else _MODULES
        sites = lens_sites(module, SUFFIXES, modules)
        if (point := module.hook_dict.get(FINAL_NORMALIZED)) is not None:
            rest = functools.partial(_gained, module.ln_final)
            sites[FINAL_NORMALIZED] = Site(point, "out", len(module.blocks), rest=rest, norm=module.ln_final)
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
        raise RuntimeError("the model never reached its unembedding")

    def _inputs(self, batch: Batch) -> dict[str, Any]:
        # Always passed: without it, a tokenizer that pads on the left makes the model guess a mask from token ids.
        return {"attention_mask": batch.real.long()}

    def head(self, final: Float[Tensor, "batch seq d_model"], batch: Batch | None = None) -> Tensor:
        with self.evaluating():
            logits: Tensor = self.module.unembed(final)
        cap = self.module.cfg.output_logits_soft_cap
        return cap * torch.tanh(logits / cap) if cap > 0 else logits

    def logits(self, batch: Batch) -> Float[Tensor, "batch seq vocab"]:
        """Return the logits of a plain pass through the whole model."""
        with self.evaluating():
            return self.module(batch.tokens, return_type="logits", **self._inputs(batch))  # type: ignore[no-any-return]
