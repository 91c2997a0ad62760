"""Centred writing weights, for SAEs that were trained on models processed by TransformerLens."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from saeval.plugin import SaevalError
from saeval_models.families import Family
from saeval_models.pretrained import base_of

_WRITING = ("attn.hook_z", "mlp.hook_post")
"""The inputs of a block's two writing projections."""
_FINAL_NORMS = ("ln_f", "final_layer_norm", "norm")


@torch.no_grad()
def centre_writing_weights(module: Any, family: Family, name: str) -> None:
    """Subtract the mean over d_model from all weights that write to the residual stream.

    The residual stream then has mean zero at each position. The model's output does not change, because the LayerNorms
    that read the stream subtract the mean themselves. This is TransformerLens' `center_writing_weights`, the default
    of `HookedTransformer.from_pretrained`. `SaevalError` for models without LayerNorm, whose output would change, and
    for families whose writing weights are unknown.
    """
    _, base = base_of(module)
    norm = next((getattr(base, norm) for norm in _FINAL_NORMS if hasattr(base, norm)), None)
    if not isinstance(norm, nn.LayerNorm):
        kind = type(norm).__name__ if norm is not None else "no known norm"
        raise SaevalError(
            f"'center_writing_weights' of model '{name}' needs LayerNorm, but the model has {kind}; remove it"
        )
    if not set(_WRITING) <= set(family.sites):
        model_type = module.config.model_type
        raise SaevalError(
            f"'center_writing_weights' of model '{name}': the writing weights of {model_type} are unknown; remove it, "
            "or save centred weights and set 'path' to their folder"
        )
    _untie(module)
    written: list[Any] = [module.get_input_embeddings(), getattr(base, "wpe", None)]
    for block in base.get_submodule(family.blocks):
        written += [block.get_submodule(family.sites[site][0][0]) for site in _WRITING]
    for part in written:
        if part is not None:
            width = module.get_input_embeddings().weight.shape[1]
            _centre(part.weight, width, transposed=isinstance(part, nn.Linear))
            if getattr(part, "bias", None) is not None:
                part.bias -= part.bias.mean()


def _centre(weight: Tensor, d_model: int, *, transposed: bool) -> None:
    """Centre a weight: `nn.Linear` stores [d_model, n]; embeddings and GPT-2's own layers store [n, d_model]."""
    axis = 0 if transposed else 1
    assert weight.shape[axis] == d_model
    weight -= weight.mean(axis, keepdim=True)


def _untie(module: Any) -> None:
    """Copy the weights of an unembedding that shares them with the embedding: the unembedding must not be centred."""
    head = module.get_output_embeddings()
    if head is not None and head.weight is module.get_input_embeddings().weight:
        head.weight = nn.Parameter(head.weight.clone(), requires_grad=False)
