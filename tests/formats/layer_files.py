"""Qwen Scope's and circuit-tracer's files, one per layer, with random weights, and their formulas written out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import save_file
from torch import relu

from checkpoints import D, Formula, K, N, random_tensors

WIDTH = 1024
REPOSITORY = f"SAE-Res-Qwen3-1.7B-Base-W1K-L0_{K}"
QWEN_SHAPES = {"W_enc": (WIDTH, D), "b_enc": (WIDTH,), "W_dec": (D, WIDTH), "b_dec": (D,)}
TRACED_SHAPES = {"W_enc": (N, D), "b_enc": (N,), "W_dec": (N, D), "b_dec": (D,)}
CONFIG = {
    "model_name": "Qwen/Qwen3-4B", "model_kind": "transcoder_set", "feature_input_hook": "mlp.hook_in",
    "feature_output_hook": "mlp.hook_out", "scan": "qwen3-4b",
}  # fmt: skip
KINDS = {
    "transcoder": {},
    "skip_transcoder": {"skip": True},
    "jumprelu_transcoder": {"threshold": (N,)},
    "jumprelu_skip_transcoder": {"threshold": (), "skip": True},
}
READS, WRITES = "blocks.3.mlp.hook_in", "blocks.3.hook_mlp_out"


def qwen(folder: Path, layer: int = 3, **changes: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"layer{layer}.sae.pt"
    tensors = {**random_tensors(QWEN_SHAPES), **changes}
    torch.save({name: tensor for name, tensor in tensors.items() if tensor is not None}, path)
    return path


def qwen_formula() -> Formula:
    """`TopKSAE` of SAELens on the tensors of its `qwen_scope_sae_huggingface_loader`."""
    t = random_tensors(QWEN_SHAPES)

    def encode(x: torch.Tensor) -> torch.Tensor:
        values, indices = (x @ t["W_enc"].T + t["b_enc"]).topk(K, dim=-1)
        return torch.zeros(*x.shape[:-1], WIDTH).scatter(-1, indices, relu(values))

    return Formula(encode, lambda acts: acts @ t["W_dec"].T + t["b_dec"])


def traced(folder: Path, layer: int = 3, kind: str = "transcoder", config: Any = CONFIG, early: bool = False) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    tensors = dict(traced_tensors(kind))
    if early:
        tensors["W_dec"] = tensors["W_dec"].T.contiguous()
    path = folder / f"layer_{layer}.safetensors"
    save_file(tensors, path)
    if config is not None:
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return path


def traced_tensors(kind: str) -> dict[str, torch.Tensor]:
    tensors = random_tensors({**TRACED_SHAPES, "W_skip": (D, D)})
    if not KINDS[kind].get("skip"):
        del tensors["W_skip"]
    if (shape := KINDS[kind].get("threshold")) is not None:
        tensors["activation_function.threshold"] = (
            random_tensors({"t": (N,)}, seed=4)["t"].abs() if shape else torch.tensor(0.3)
        )
    return tensors


def traced_formula(kind: str) -> Formula:
    """`SingleLayerTranscoder.forward` of circuit-tracer 0.5.0."""
    t = traced_tensors(kind)
    theta = t.get("activation_function.threshold")

    def encode(x: torch.Tensor) -> Any:
        pre = x @ t["W_enc"].T + t["b_enc"]
        return (relu(pre) if theta is None else pre * (pre > theta)), x

    def decode(acts: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        x_hat = acts @ t["W_dec"] + t["b_dec"]
        return x_hat + x @ t["W_skip"].T if "W_skip" in t else x_hat

    return Formula(encode, decode)
