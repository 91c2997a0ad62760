"""A norm's value before its gain and bias: what TransformerLens calls `hook_normalized`."""

from __future__ import annotations

import copy
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn


def normalized(norm: nn.Module, args: tuple[Any, ...], unit: float) -> Float[Tensor, "batch seq d_model"]:
    """What a norm makes of its input, without its own gain and bias.

    `unit` is the weight that means a gain of 1: 1, or 0 for norms that store the gain less 1.
    The norm's own code computes it, with neutral parameters and without its hooks.
    """
    neutral = copy.copy(norm)
    neutral._parameters = dict.fromkeys(norm._parameters)
    for name, value in norm._parameters.items():
        if value is not None:
            same = torch.full_like(value, unit if name == "weight" else 0)
            neutral._parameters[name] = nn.Parameter(same, requires_grad=False)
    return neutral.forward(*args)  # type: ignore[no-any-return]


def scaled(norm: nn.Module, value: Float[Tensor, "batch seq d_model"], unit: float) -> Tensor:
    """The norm's output where `value` is what it has before its gain and bias."""
    parameters = {name: p for name, p in norm._parameters.items() if p is not None}
    weight = parameters["weight"]
    wide = torch.promote_types(weight.dtype, torch.float32)
    output = value.to(wide) * (weight.to(wide) + (1 - unit))
    if "bias" in parameters:
        output = output + parameters["bias"].to(wide)
    return output.to(value.dtype)
