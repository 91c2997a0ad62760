"""SAELens folders: `cfg.json` and `sae_weights.safetensors`."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, ValidationError
from saeval_formats.tensors import Header

from saeval.errors import SaevalError, suggestion
from saeval.fingerprint import sha256_file
from saeval.sae import SAEInfo, SAELoader

if TYPE_CHECKING:
    import torch
    from saeval_formats.dense import Activation, DenseSAE

CONFIG, WEIGHTS, SCALER = "cfg.json", "sae_weights.safetensors", "activation_scaler.json"
_BIASES = {
    "standard": ("b_enc",),
    "topk": ("b_enc",),
    "jumprelu": ("b_enc", "threshold"),
    "gated": ("b_gate", "r_mag", "b_mag"),
}
_NORMALIZATIONS = ("none", "layer_norm", "constant_norm_rescale", "expected_average_only_in")
_RENAMED = {"hook_point": "hook_name", "hook_point_head_index": "hook_head_index"}  # before version 4


class Reference(BaseModel):
    """What a suite says of one SAE."""

    model_config = ConfigDict(extra="forbid")

    path: str
    """The folder."""
    hook_name: str | None = None
    """Instead of the one in `cfg.json`."""


@dataclass(frozen=True)
class Config:
    """What `cfg.json` says, whichever version wrote it."""

    architecture: str
    d_in: int
    d_sae: int
    apply_b_dec_to_input: bool
    normalization: str
    k: int | None
    rescale: bool
    scale: float | None
    """Factor the inputs were multiplied by in training and that is not in the weights yet."""
    hook_name: str | None
    facts: Mapping[str, Any]

    @property
    def numeric(self) -> list[Any]:
        """All that the SAE's numbers depend on besides the weights."""
        sizes = [self.architecture, self.d_in, self.d_sae, self.k]
        return [*sizes, self.apply_b_dec_to_input, self.normalization, self.rescale, self.scale]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        biases = dict.fromkeys(_BIASES[self.architecture], (self.d_sae,))
        return {"W_enc": (self.d_in, self.d_sae), "W_dec": (self.d_sae, self.d_in), "b_dec": (self.d_in,), **biases}


class SAELens(SAELoader):
    """SAEs saved by SAELens, versions 3 to 6; at hook_z their width is that of all heads together.

    `normalize_activations: expected_average_only_in` scales nothing at run time, as in the library; where the folder
    still holds the factor of an unfinished run, it is folded into the weights.
    """

    name = "saelens"

    def info(self, reference: Mapping[str, Any]) -> SAEInfo:
        asked, folder = _checked(reference)
        config = _config(folder)
        Header.of(folder / WEIGHTS).check(config.shapes, _droppable)
        identity = json.dumps([sha256_file(folder / WEIGHTS), *config.numeric])
        return SAEInfo(
            hook_name=asked.hook_name or config.hook_name,
            d_in=config.d_in,
            d_sae=config.d_sae,
            d_out=config.d_in,
            sha256=hashlib.sha256(identity.encode()).hexdigest(),
            architecture=config.architecture,
            facts=config.facts,
        )

    def load(self, reference: Mapping[str, Any], device: str = "cpu", dtype: torch.dtype | None = None) -> DenseSAE:
        """In float32 unless `dtype` is given. The hook's name is empty where nobody gave one."""
        from saeval_formats.dense import DenseSAE, Gated, JumpReLU, ReLU, TopK  # late: reading headers needs no torch

        asked, folder = _checked(reference)
        config = _config(folder)
        header = Header.of(folder / WEIGHTS)
        header.check(config.shapes, _droppable)
        tensors = header.read(config.shapes, device, dtype)
        if config.scale is not None:
            tensors["W_enc"] *= config.scale
            tensors["W_dec"] /= config.scale
            tensors["b_dec"] /= config.scale
        activations: dict[str, Any] = {
            "standard": lambda: ReLU(),
            "topk": lambda: TopK(config.k or 0),
            "jumprelu": lambda: JumpReLU(tensors["threshold"]),
            "gated": lambda: Gated(tensors["b_gate"], tensors["r_mag"], tensors["b_mag"]),
        }
        activation: Activation = activations[config.architecture]()
        return DenseSAE(
            asked.hook_name or config.hook_name or "",
            tensors["W_enc"],
            tensors.get("b_enc"),
            tensors["W_dec"],
            tensors["b_dec"],
            activation,
            apply_b_dec_to_input=config.apply_b_dec_to_input,
            normalization=config.normalization,  # type: ignore[arg-type]
            rescale_acts_by_decoder_norm=config.rescale,
        )
