"""Vectors with a given angle and norm, row by row: x and x̂ are `[n, d]`, float64 throughout."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jaxtyping import Bool, Float

from saeval.plugin import torch

if TYPE_CHECKING:
    from torch import Tensor

LOST = 1e-9
"""A direction whose part perpendicular to x is smaller than this, relative to it, has none."""
ROUNDING = 1e-13
"""What float64 leaves of a perpendicular part that is 0, relative to the whole."""
TOLERANCE = 1e-3
"""How far ‖x'−x‖ may be from ‖δ‖, relative to it."""


def unit(x: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    """x/‖x‖; zeros where x is zero."""
    norm = x.norm(dim=-1, keepdim=True)
    return torch.where(norm > 0, x / norm, torch.zeros_like(x))


def perpendicular(g: Float[Tensor, "n d"], u: Float[Tensor, "n d"]) -> tuple[Float[Tensor, "n d"], Bool[Tensor, "n"]]:
    """The unit vector along the part of g perpendicular to the unit (or zero) vector u, and whether there is one."""
    g = unit(g)
    across = g - (g * u).sum(-1, keepdim=True) * u
    across = across - (across * u).sum(-1, keepdim=True) * u  # once more: the first leaves rounding of g's size
    return unit(across), across.norm(dim=-1) > LOST


def matched(x: Float[Tensor, "n d"], x_hat: Float[Tensor, "n d"], g: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    """x' = x + p·u + ‖δ⊥‖·v with the cosine to x and the norm of x̂, and ‖x'−x‖ = ‖x̂−x‖.

    u = x/‖x‖, δ = x̂ − x, p = δ·u, δ⊥ = δ − p·u, v the unit vector along g perpendicular to u. Every cosine
    is met, negative ones too; in this form nothing cancels for x̂ near x. For x = 0, x' = ‖x̂‖·g/‖g‖. Where
    x̂ lies on the line through 0 and x (x̂ = 0 does), no other vector matches it, and x' = x̂.
    """
    u = unit(x)
    delta = x_hat - x
    along = (delta * u).sum(-1, keepdim=True) * u
    across = (delta - along).norm(dim=-1, keepdim=True)
    alone = across <= ROUNDING * delta.norm(dim=-1, keepdim=True)
    return torch.where(alone, x_hat, x + along + across * perpendicular(g, u)[0])


def at_cosine(x: Float[Tensor, "n d"], g: Float[Tensor, "n d"], cosine: float, ratio: float) -> Float[Tensor, "n d"]:
    """x' = r‖x‖(c·u + √(1−c²)·v): the cosine c to x and r times its norm. Zero where x is."""
    u = unit(x)
    sine = ((1 - cosine) * (1 + cosine)) ** 0.5
    found: Tensor = ratio * x.norm(dim=-1, keepdim=True) * (cosine * u + sine * perpendicular(g, u)[0])
    return found


def scaled_to(x: Float[Tensor, "n d"], other: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    """x with the norm of `other`; zeros where x is zero."""
    found: Tensor = unit(x) * other.norm(dim=-1, keepdim=True)
    return found


def cosines(x: Float[Tensor, "*b d"], x_hat: Float[Tensor, "*b d"]) -> Float[Tensor, "*b"]:
    """x·x̂ / ‖x‖‖x̂‖; NaN where either is zero."""
    x, x_hat = x.double(), x_hat.double()
    found: Tensor = (x * x_hat).sum(-1) / (x.norm(dim=-1) * x_hat.norm(dim=-1))
    return found.clamp(-1, 1)


def verify(new: Float[Tensor, "n d"], x: Float[Tensor, "n d"], x_hat: Float[Tensor, "n d"], dtype: torch.dtype) -> None:
    """That what the model is given moved as far as the SAE moves it, to 1e-3 and the rounding of its dtype."""
    wanted, moved = (x_hat - x).norm(dim=-1), (new.to(dtype).double() - x).norm(dim=-1)
    rounding = torch.finfo(dtype).eps * (x.norm(dim=-1) + wanted)
    met = (moved - wanted).abs() <= TOLERANCE * wanted + rounding
    if not bool(met.all()):
        row = int((~met).nonzero()[0, 0])
        raise ValueError(
            f"matched noise moves a token by {float(moved[row]):.6g}, the substitute by {float(wanted[row]):.6g}; "
            f"expected the same to {TOLERANCE:g} ({int((~met).sum())} of {len(met)} tokens)"
        )
