"""Gemma Scope's files, with random weights."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from checkpoints import D, N, random_tensors

SHAPES = {"W_enc": (D, N), "b_enc": (N,), "W_dec": (N, D), "b_dec": (D,), "threshold": (N,)}
PLACE = "gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71"


def params() -> dict[str, np.ndarray]:
    found = random_tensors(SHAPES)
    found["threshold"].abs_()
    return {name: tensor.numpy() for name, tensor in found.items()}


def first(folder: Path, **changes) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / "params.npz", **{n: array for n, array in {**params(), **changes}.items() if array is not None})
    return folder


def second(folder: Path, config: dict | None = None, affine: bool = False) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name.lower(): torch.from_numpy(array) for name, array in params().items()}
    if affine:
        tensors["affine_skip_connection"] = random_tensors({"skip": (D, D)}, seed=5)["skip"]
    save_file(tensors, folder / "params.safetensors")
    if config is not None:
        (folder / "config.json").write_text(json.dumps({"architecture": "jump_relu", **config}))
    return folder
