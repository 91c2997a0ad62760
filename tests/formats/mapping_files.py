"""Files of tensors in layouts that no library writes, the entries that name their tensors, and the formula."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, relu

from checkpoints import D, Formula, K, N, random_tensors

TENSORS = {"W_enc": "enc.weight.T", "b_enc": "enc.bias", "W_dec": "dec.weight.T", "b_dec": "dec.bias"}
SHAPES = {"W_enc": (D, N), "b_enc": (N,), "W_dec": (N, D), "b_dec": (D,)}
VECTORS = ("threshold", "b_gate", "r_mag", "b_mag")


def canonical(d_out: int = D) -> dict[str, Tensor]:
    """The tensors that an entry may name, as the formula reads them."""
    shapes = {**SHAPES, "W_dec": (N, d_out), "b_dec": (d_out,), "W_skip": (d_out, D), **dict.fromkeys(VECTORS, (N,))}
    tensors = random_tensors(shapes)
    return {**tensors, "threshold": tensors["threshold"].abs()}


def plain() -> dict[str, Tensor]:
    """The tensors that `TENSORS` names."""
    return {slot: tensor for slot, tensor in canonical().items() if slot in TENSORS}


def linear(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The four tensors as `nn.Linear` modules `enc` and `dec` hold them."""
    weights = {"enc.weight": tensors["W_enc"].T.contiguous(), "dec.weight": tensors["W_dec"].T.contiguous()}
    return {**weights, "enc.bias": tensors["b_enc"], "dec.bias": tensors["b_dec"]}


def write(path: Path, tensors: Mapping[str, Tensor]) -> str:
    """Write a file in the format that its suffix names; a `.pt` file nests by the first dot of the names."""
    if path.suffix == ".safetensors":
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    elif path.suffix == ".npz":
        np.savez(path, **{name: tensor.numpy() for name, tensor in tensors.items()})
    else:
        nested: dict[str, Any] = {"step": 7, "config": {"k": K, "name": "mine"}}
        for name, tensor in tensors.items():
            outer, _, inner = name.partition(".")
            nested.setdefault(outer, {})[inner] = tensor
        torch.save(nested, path)
    return str(path)


def formula(t: Mapping[str, Tensor], kind: str = "topk", theta: Any = 0.0, **options: Any) -> Formula:
    """activation(x̃ W_enc + b_enc) and acts W_dec + b_dec, for the tensors that `t` has."""
    b_enc, b_dec = t.get("b_enc", torch.zeros(N)), t.get("b_dec", torch.zeros(t["W_dec"].shape[1]))
    normalization, transcoder = options.get("normalization", "none"), options.get("transcoder", False)

    def encode(x: Tensor) -> Any:
        shift, factor = torch.zeros(()), torch.ones(())
        if normalization == "layer_norm":
            shift = x.mean(-1, keepdim=True)
            factor = 1 / (x.std(-1, keepdim=True) + 1e-5)
        elif normalization == "constant_norm_rescale":
            factor = D**0.5 / x.norm(dim=-1, keepdim=True)
        elif normalization != "none":
            factor = torch.tensor(normalization["scale"])
        scaled = (x - shift) * factor
        projected = (scaled - b_dec if options.get("apply_b_dec_to_input") else scaled) @ t["W_enc"]
        pre = projected + b_enc
        if kind in ("jumprelu", "batchtopk"):
            acts = torch.where(pre > theta, relu(pre), 0.0)
        elif kind == "gated":
            acts = relu(projected * t["r_mag"].exp() + t["b_mag"]) * (projected + t["b_gate"] > 0)
        elif kind == "relu":
            acts = relu(pre)
        elif kind == "groupmax":
            groups = relu(pre).unflatten(-1, (8, -1))
            acts = torch.where(groups == groups.amax(-1, keepdim=True), groups, 0.0).flatten(-2)
        else:
            rank = pre.abs() if kind == "abstopk" else pre
            kept = rank >= rank.topk(K, dim=-1).values[..., -1:]
            acts = torch.where(kept, pre if kind == "abstopk" else relu(pre), 0.0)
        # layer_norm is undone by its std, not by the std plus epsilon
        undo = x.std(-1, keepdim=True) if normalization == "layer_norm" else 1 / factor
        return acts, (x, shift, undo)

    def decode(acts: Tensor, context: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        x, shift, undo = context
        x_hat = acts @ t["W_dec"] + b_dec
        x_hat = x_hat if transcoder else x_hat * undo + shift
        return x_hat + x @ t["W_skip"].T if "W_skip" in t else x_hat

    return Formula(encode, decode)
