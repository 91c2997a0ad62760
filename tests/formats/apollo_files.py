"""Checkpoints of e2e_sae with random weights, written as it writes them, and its formula written out."""

from __future__ import annotations

from torch import relu

from checkpoints import D, Formula, N, random_tensors

SHAPES = {"encoder.0.weight": (N, D), "encoder.0.bias": (N,), "decoder.weight": (D, N), "decoder.bias": (D,)}
HOOKS = ("blocks.1.hook_resid_pre", "blocks.2.hook_resid_pre")
CONFIG = {
    "tlens_model_name": "gpt2-small", "tlens_model_path": None, "seed": 4, "n_samples": 400, "lr": 5e-4,
    "train_data": {"dataset_name": "some/text", "n_ctx": 1024}, "loss": {"sparsity": {"p_norm": 1.0, "coeff": 1.5}},
    "saes": {"sae_positions": ["blocks.1.hook_resid_pre"], "dict_size_to_input_ratio": 2.5},
}  # fmt: skip


def state_of(*hooks, seed=0):
    """A run's state dict: a `ModuleDict`, whose names may not hold dots."""
    parts = {hook: random_tensors(SHAPES, seed + i) for i, hook in enumerate(hooks)}
    return {f"{hook.replace('.', '-')}.{key}": t for hook, part in parts.items() for key, t in part.items()}


def published(seed=0):
    return {key.replace("encoder.0.", "encoder."): tensor for key, tensor in random_tensors(SHAPES, seed).items()}


def formula_of(seed=0) -> Formula:
    """`forward` of e2e_sae/models/sparsifiers.py: the dictionary is the decoder with columns of unit norm."""
    s = random_tensors(SHAPES, seed)
    elements = s["decoder.weight"] / s["decoder.weight"].norm(dim=0)
    return Formula(
        lambda x: relu(x @ s["encoder.0.weight"].T + s["encoder.0.bias"]),
        lambda c: c @ elements.T + s["decoder.bias"],
    )
