"""Vectors with a given angle and norm, row by row. x and x̂ are `[n, d]`, float64."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jaxtyping import Bool, Float

from saeval.plugin import torch

if TYPE_CHECKING:
    from torch import Tensor

LOST = 1e-9
"""Relative size below which the part of a direction perpendicular to x counts as 0."""
ROUNDING = 1e-13
"""Relative rounding error of float64 in a perpendicular part that is exactly 0."""
TOLERANCE = 1e-3
"""Largest relative difference between ‖x'−x‖ and ‖δ‖."""


def unit(x: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    """x/‖x‖; zeros for x = 0."""
    norm = x.norm(dim=-1, keepdim=True)
    return torch.where(norm > 0, x / norm, torch.zeros_like(x))


def perpendicular(g: Float[Tensor, "n d"], u: Float[Tensor, "n d"]) -> tuple[Float[Tensor, "n d"], Bool[Tensor, "n"]]:
    """The unit vector along the part of g perpendicular to the unit (or zero) vector u, and where that part exists."""
    g = unit(g)
    across = g - (g * u).sum(-1, keepdim=True) * u
    across = across - (across * u).sum(-1, keepdim=True) * u  # again: the first leaves rounding errors of g's size
    return unit(across), across.norm(dim=-1) > LOST


def matched(x: Float[Tensor, "n d"], x_hat: Float[Tensor, "n d"], g: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    """x' = x + p·u + ‖δ⊥‖·v with the cosine to x and the norm of x̂, and ‖x'−x‖ = ‖x̂−x‖.

    u = x/‖x‖, δ = x̂ − x, p = δ·u, δ⊥ = δ − p·u, v the unit vector along the part of g perpendicular to u. Any
    cosine is matched, including negative ones, and nothing cancels for x̂ near x. For x = 0, x' = ‖x̂‖·g/‖g‖.
    If x̂ is a multiple of x (such as 0), no other vector matches it, and x' = x̂.
    """
    u = unit(x)
    delta = x_hat - x
    along = (delta * u).sum(-1, keepdim=True) * u
    across = (delta - along).norm(dim=-1, keepdim=True)
    alone = across <= ROUNDING * delta.norm(dim=-1, keepdim=True)
    return torch.where(alone, x_hat, x + along + across * perpendicular(g, u)[0])


def at_cosine(x: Float[Tensor, "n d"], g: Float[Tensor, "n d"], cosine: float, ratio: float) -> Float[Tensor, "n d"]:
    """x' = r‖x‖(c·u + √(1−c²)·v), with cosine c to x and r times its norm; zeros for x = 0."""
    u = unit(x)
    sine = ((1 - cosine) * (1 + cosine)) ** 0.5
    result: Tensor = ratio * x.norm(dim=-1, keepdim=True) * (cosine * u + sine * perpendicular(g, u)[0])
    return result


def scaled_to(x: Float[Tensor, "n d"], target: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    """x with the norm of `target`; zeros for x = 0."""
    scaled: Tensor = unit(x) * target.norm(dim=-1, keepdim=True)
    return scaled


def cosines(x: Float[Tensor, "*b d"], x_hat: Float[Tensor, "*b d"]) -> Float[Tensor, "*b"]:
    """x·x̂ / ‖x‖‖x̂‖; NaN if either is zero."""
    x, x_hat = x.double(), x_hat.double()
    cosine: Tensor = (x * x_hat).sum(-1) / (x.norm(dim=-1) * x_hat.norm(dim=-1))
    return cosine.clamp(-1, 1)


def verify(new: Float[Tensor, "n d"], x: Float[Tensor, "n d"], x_hat: Float[Tensor, "n d"], dtype: torch.dtype) -> None:
    """Raise `ValueError` if ‖x'−x‖ differs from ‖x̂−x‖ by more than 1e-3 and the rounding of the model's dtype."""
    wanted, moved = (x_hat - x).norm(dim=-1), (new.to(dtype).double() - x).norm(dim=-1)
    rounding = torch.finfo(dtype).eps * (x.norm(dim=-1) + wanted)
    equal = (moved - wanted).abs() <= TOLERANCE * wanted + rounding  # False for NaN
    if not bool(equal.all()):
        row = int((~equal).nonzero()[0, 0])
        raise ValueError(
            f"matched noise moves a token by {float(moved[row]):.6g}, the substitute by {float(wanted[row]):.6g}; "
            f"expected the same to {TOLERANCE:g} ({int((~equal).sum())} of {len(equal)} tokens)"
        )
