"""Llamascopium's folders with random weights, and `SparseAutoEncoder` of Llamascopium 2.0.0b34 written out."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from checkpoints import D, Formula, K, N, random_tensors

HOOK, READS = "blocks.7.hook_resid_post", "blocks.7.ln2.hook_normalized"
CONFIG = {
    "sae_type": "sae", "d_model": D, "expansion_factor": N / D, "use_decoder_bias": True, "act_fn": "relu",
    "norm_activation": "dataset-wise", "sparsity_include_decoder_norm": True, "top_k": K, "hook_point_in": HOOK,
    "hook_point_out": HOOK, "use_glu_encoder": False,
}  # fmt: skip
NORMS = {HOOK: 3.5, READS: 2.5}


def config_of(**changes: Any) -> dict[str, Any]:
    return {**CONFIG, **changes}


def tensors_of(config: dict[str, Any]) -> dict[str, Tensor]:
    tensors = random_tensors({"W_E": (D, N), "b_E": (N,), "W_D": (N, D), "b_D": (D,), "log": (N,)})
    log_threshold = tensors.pop("log") - 1
    if not config["use_decoder_bias"]:
        del tensors["b_D"]
    if config["act_fn"] == "jumprelu":
        tensors["activation_function.log_jumprelu_threshold"] = log_threshold
    hooks = {config["hook_point_in"], config["hook_point_out"]}
    return tensors | {f"dataset_average_activation_norm.{hook}": torch.tensor(NORMS[hook]) for hook in hooks if hook}


def write(folder: Path, torch_file: bool = False, **changes: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    config = config_of(**changes)
    if torch_file:
        torch.save({"sae": tensors_of(config), "version": "2.0.0b34"}, folder / "sae_weights.pt")
    else:
        save_file(tensors_of(config), folder / "sae_weights.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "lm_config.json").write_text(json.dumps({"model_name": "Qwen/Qwen3-1.7B", "max_length": 2048}))
    return folder


def formula(**changes: Any) -> Formula:
    """`normalize_activations`, `encode`, `decode` and `denormalize_activations`."""
    config = config_of(**changes)
    t = tensors_of(config)
    norms = t["W_D"].norm(dim=1) if config["sparsity_include_decoder_norm"] else torch.ones(N)

    def scale(x: Tensor, hook: str) -> Tensor:
        if config["norm_activation"] == "token-wise":
            return math.sqrt(D) / x.norm(dim=-1, keepdim=True)
        mean = NORMS[hook] if config["norm_activation"] == "dataset-wise" else math.sqrt(D)
        return torch.tensor(math.sqrt(D) / mean)

    def encode(x: Tensor) -> Any:
        hidden = ((x * scale(x, config["hook_point_in"])) @ t["W_E"] + t["b_E"]) * norms
        if config["act_fn"] == "jumprelu":
            acts = hidden * hidden.gt(t["activation_function.log_jumprelu_threshold"].exp())
        else:
            acts = hidden * hidden.gt(0)
        if config["act_fn"] == "topk":
            acts = torch.where(acts >= acts.topk(K, dim=-1).values[..., -1:], acts, 0.0)
        return acts / norms, scale(x, config["hook_point_out"])

    return Formula(encode, lambda acts, s: (acts @ t["W_D"] + t.get("b_D", torch.zeros(D))) / s)
