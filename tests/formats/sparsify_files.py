"""Checkpoints of sparsify with random weights, written as it writes them, and its formulas written out."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from checkpoints import D, Formula, K, N, random_tensors

SHAPES = {"encoder.weight": (N, D), "encoder.bias": (N,), "W_dec": (N, D), "b_dec": (D,)}
CONFIG = {
    "activation": "topk", "expansion_factor": 4, "normalize_decoder": True, "num_latents": N, "k": K,
    "multi_topk": False, "skip_connection": False, "transcode": False, "d_in": D,
}  # fmt: skip


def write(folder: Path, seed: int = 0, **changes) -> Path:
    config = {**CONFIG, **changes}
    folder.mkdir(parents=True, exist_ok=True)
    shapes = {**SHAPES, **({"W_skip": (D, D)} if config["skip_connection"] else {})}
    save_file(random_tensors(shapes, seed), folder / "sae.safetensors")
    (folder / "cfg.json").write_text(json.dumps(config))
    return folder


def signed_formula(folder: Path) -> Formula:
    """`sae.py` of early versions: no relu, and the k largest in magnitude."""
    t = load_file(folder / "sae.safetensors")

    def encode(x):
        pre = (x - t["b_dec"]) @ t["encoder.weight"].T + t["encoder.bias"]
        indices = pre.abs().topk(K, dim=-1).indices
        return torch.zeros_like(pre).scatter(-1, indices, pre.gather(-1, indices))

    return Formula(encode, lambda acts: acts @ t["W_dec"] + t["b_dec"])


def formula(folder: Path, activation="topk", transcode=False) -> Formula:
    t = load_file(folder / "sae.safetensors")

    def encode(x):
        pre = torch.relu((x if transcode else x - t["b_dec"]) @ t["encoder.weight"].T + t["encoder.bias"])
        kept = torch.zeros_like(pre)
        if activation == "topk":
            values, indices = pre.topk(K, dim=-1)
        else:
            size = N // 8
            groups = [pre[..., start : start + size].max(dim=-1) for start in range(0, N, size)]
            values = torch.stack([group.values for group in groups], dim=-1)
            indices = torch.stack([group.indices + i * size for i, group in enumerate(groups)], dim=-1)
        return kept.scatter(-1, indices, values), x

    def decode(acts, x):
        x_hat = acts @ t["W_dec"] + t["b_dec"]
        return x_hat + x @ t["W_skip"].mT if "W_skip" in t else x_hat

    return Formula(encode, decode)
