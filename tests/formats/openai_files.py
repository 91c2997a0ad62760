"""Checkpoints of openai/sparse_autoencoder with random weights, written as it writes them, and its formula written out."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import relu

from checkpoints import D, Formula, K, N, random_tensors

SHAPES = {"pre_bias": (D,), "latent_bias": (N,), "encoder.weight": (N, D), "decoder.weight": (D, N)}
STATISTICS = {
    "stats_last_nonzero": torch.zeros(N, dtype=torch.long),
    "latents_activation_frequency": torch.ones(N),
    "latents_mean_square": torch.zeros(N),
}
ACTIVATIONS = {
    "TopK": {"activation": "TopK", "activation_state_dict": OrderedDict({"k": K, "postact_fn": "ReLU"})},
    "TopK-tensor": {"activation": "TopK", "activation_state_dict": {"k": torch.tensor(K)}},
    "TopK-wide": {"activation": "TopK", "activation_state_dict": {"k": N - 5, "postact_fn": "ReLU"}},  # relu matters
    "ReLU": {"activation": "ReLU", "activation_state_dict": OrderedDict()},
    "unsaid": {},
}


def state_of(kind="TopK", **changes):
    return OrderedDict({**random_tensors(SHAPES), **STATISTICS, **ACTIVATIONS[kind], **changes})


def formula_of(s) -> Formula:
    """`encode` and `decode` of sparse_autoencoder/model.py; only TopK is normalised."""
    k = s.get("activation_state_dict", {}).get("k")
    k = None if k is None else int(k)

    def encode(x):
        if k is None:
            return relu((x - s["pre_bias"]) @ s["encoder.weight"].T + s["latent_bias"])
        mu = x.mean(dim=-1, keepdim=True)
        std = ((x - mu) ** 2).sum(dim=-1, keepdim=True).div(D - 1).sqrt()
        pre = ((x - mu) / (std + 1e-5) - s["pre_bias"]) @ s["encoder.weight"].T + s["latent_bias"]
        kept = pre >= pre.topk(k, dim=-1).values[..., -1:]
        return torch.where(kept, relu(pre), 0.0), (mu, std)

    def decode(latents, info=None):
        recons = latents @ s["decoder.weight"].T + s["pre_bias"]
        return recons if info is None else recons * info[1] + info[0]

    return Formula(encode, decode)
