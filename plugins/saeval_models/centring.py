"""Centred writing weights, for SAEs that were trained on models processed by TransformerLens."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

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
    unknown = SaevalError(
        f"'center_writing_weights' of model '{name}': the writing weights of {module.config.model_type} are unknown; "
        "remove it, or save centred weights and set 'path' to their folder"
    )
    embedding, head = module.get_input_embeddings(), module.get_output_embeddings()
    if head is not None and head.weight is embedding.weight:  # the unembedding must not be centred
        head.weight = nn.Parameter(head.weight.clone(), requires_grad=False)
    written: list[Any] = [embedding, getattr(base, "wpe", None)]
    for block in base.get_submodule(family.blocks):
        parts = dict(block.named_modules())
        paths = [family.sites[site][0][0] for site in _WRITING if site in family.sites]
        if len(paths) < len(_WRITING) or not set(paths) <= set(parts):
            raise unknown
        written += [parts[path] for path in paths]
    for part in written:
        if part is not None:
            axis = 0 if isinstance(part, nn.Linear) else 1  # embeddings and GPT-2's own layers store [n, d_model]
            assert part.weight.shape[axis] == embedding.weight.shape[1]
            part.weight -= part.weight.mean(axis, keepdim=True)
            if getattr(part, "bias", None) is not None:
                part.bias -= part.bias.mean()
    states = base(embedding.weight.new_zeros((1, 2), dtype=torch.long), output_hidden_states=True).hidden_states[:-1]
    if any(float(state.mean(-1).abs().max()) > 1e-3 * float(state.std()) for state in states):
        raise unknown  # something else writes too, such as a norm after the embedding
