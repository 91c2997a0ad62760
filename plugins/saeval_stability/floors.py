"""Null models: random features like those of a dictionary, unrelated to any other dictionary."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from saeval.plugin import hashed, normal, torch

if TYPE_CHECKING:
    from torch import Tensor

    Spaces = Mapping[str, Float[Tensor, "n d"]]
    """Directions of the same features in several spaces, such as `decoder` and `encoder`."""


def rotations(spaces: Spaces, seed: int, draws: int) -> Iterator[Spaces]:
    """Apply one random orthogonal map per width to all directions, uniform over the orthogonal group.

    The geometry within the dictionary is kept, between encoder and decoder too; any relation to another SAE is lost.
    """
    for draw in range(draws):
        rotation = {d: _rotation(hashed(seed, "rotation", draw, d), d) for d in {x.shape[1] for x in spaces.values()}}
        yield {name: x @ rotation[x.shape[1]].to(x) for name, x in spaces.items()}


def _rotation(key: np.ndarray, d: int) -> Float[Tensor, "d d"]:
    """The Q of a Gaussian matrix, with the signs that make it uniform (Mezzadri 2007)."""
    q, r = torch.linalg.qr(normal(hashed(key, np.arange(d)), d))
    signs = torch.where(r.diagonal() < 0, -1.0, 1.0)
    return torch.mul(q, signs)


def gaussians(spaces: Spaces, seed: int, draws: int) -> Iterator[Spaces]:
    """Gaussian features with the mean and covariance of the given unit directions, jointly over the spaces.

    A direction that all features share, which raises the similarity of any two dictionaries, is thus in the floor too.
    """
    unit = torch.cat([torch.nn.functional.normalize(x.double(), dim=1) for x in spaces.values()], 1)
    n, mean = len(unit), unit.mean(0)
    root = torch.linalg.qr((unit - mean) / n**0.5, mode="r").R  # rootᵀ root is the covariance, of any rank
    widths = [x.shape[1] for x in spaces.values()]
    for draw in range(draws):
        noise = normal(hashed(seed, "gaussian", draw, np.arange(n)), len(root), device=unit.device)
        parts = (mean + noise @ root).split(widths, 1)
        yield {name: part.to(x.dtype) for (name, x), part in zip(spaces.items(), parts, strict=True)}
