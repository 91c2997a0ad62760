"""Values that a config may not have, changes of tensors, and what an example gives then."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from examples import Example
from saeval.registry.discovery import Plugins
from saeval.registry.registry import Registry

REGISTRY = Registry(Plugins())
ODD: list[Any] = [None, [], {}, "x", "8", True, False, -1, 0, 1.5, 10**30, 10**400, math.nan, math.inf, "../../etc"]
DEFAULTED = {
    "apply_b_dec_to_input",
    "normalize_activations",
    "rescale_acts_by_decoder_norm",
    "reshape_activations",
    "transcode",
    "signed",
    "activation",
    "skip_connection",
    "affine_connection",
}
"""Config keys that the libraries fill in where they are missing."""
MEASURED = {"jump_relu_threshold", "in", "out", "scaling_factor"}
"""Config keys whose every positive number makes an SAE: nothing tells a wrong one."""


def answer(example: Example, reference: Any) -> tuple[torch.Tensor, torch.Tensor]:
    loader = REGISTRY.loaders[example.format]()
    info = loader.info(reference)
    sae = loader.load(reference, "cpu", torch.float32)
    with torch.no_grad():
        encoding = sae.encode(example.x)
        decoded = sae.decode(encoding, example.x)
    assert info.d_sae == encoding.feature_acts.shape[-1]
    return encoding.feature_acts, decoded


def tensors_of(path: Path) -> dict[str, Any]:
    if path.suffix == ".safetensors":
        return dict(load_file(path))
    if path.suffix == ".npz":
        return {name: torch.from_numpy(array) for name, array in np.load(path).items()}
    return dict(torch.load(path, weights_only=True))


def write_tensors(path: Path, tensors: dict[str, Any]) -> None:
    tensors = {k: v.contiguous() if isinstance(v, torch.Tensor) else v for k, v in tensors.items()}
    if path.suffix == ".safetensors":
        save_file({k: v.clone() for k, v in tensors.items()}, path)
    elif path.suffix == ".npz":
        np.savez(path, **{k: v.numpy() for k, v in tensors.items()})
    else:
        torch.save(tensors, path)
