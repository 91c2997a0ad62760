"""Llama Scope's files with random weights, and OpenMOSS' inference written out."""

from __future__ import annotations

import json
import math
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from checkpoints import D, Formula, N, random_tensors

SHAPES = {"encoder.weight": (N, D), "encoder.bias": (N,), "decoder.weight": (D, N), "decoder.bias": (D,)}
HOOK = "blocks.7.hook_resid_post"
CONFIG = {
    "hook_point_in": HOOK, "hook_point_out": HOOK, "use_decoder_bias": True, "expansion_factor": 8, "d_model": D,
    "d_sae": N, "act_fn": "jumprelu", "jump_relu_threshold": 0.35, "norm_activation": "dataset-wise",
    "apply_decoder_bias_to_pre_encoder": False, "dataset_average_activation_norm": {"in": 2.5, "out": 2.5},
    "sparsity_include_decoder_norm": True, "use_glu_encoder": False, "top_k": 50,
}  # fmt: skip


def write(folder: Path, unit: bool = False, **changes) -> Path:
    (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    tensors = random_tensors(SHAPES)
    if unit:
        tensors["decoder.weight"] /= tensors["decoder.weight"].norm(dim=0)
    save_file(tensors, folder / "checkpoints" / "final.safetensors")
    (folder / "hyperparams.json").write_text(json.dumps({**CONFIG, **changes}))
    return folder


def formula(folder: Path) -> Formula:
    """OpenMOSS' inference: parameters standardised by the mean norms, decoder columns of norm 1, then the threshold.

    Its features are in the units of the model's activations; they come back to those of training by their ratio.
    """
    t = load_file(folder / "checkpoints" / "final.safetensors")
    said = json.loads((folder / "hyperparams.json").read_text())
    means = said["dataset_average_activation_norm"]
    s_in, s_out = math.sqrt(D) / means["in"], math.sqrt(D) / means["out"]
    encoder, bias = t["encoder.weight"], t["encoder.bias"] / s_in
    decoder, offset = t["decoder.weight"] * s_in / s_out, t["decoder.bias"] / s_out
    units = torch.full((N,), s_in)
    if said["sparsity_include_decoder_norm"]:
        norms = decoder.norm(dim=0)
        encoder, bias, decoder, units = encoder * norms[:, None], bias * norms, decoder / norms, s_in / norms

    def encode(x):
        if said["apply_decoder_bias_to_pre_encoder"]:
            x = x - t["decoder.bias"] / s_in
        pre = x @ encoder.T + bias
        return torch.where(pre > said["jump_relu_threshold"], pre, 0.0) * units

    return Formula(encode, lambda acts: (acts / units) @ decoder.T + offset)
