"""An SAE with random directions and its parent's sparsity."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from saeval.plugin import Encoding, Sample, Substitute, Undefined, torch
from saeval_controls.fitted import Repeated, device_of, rows_of

if TYPE_CHECKING:
    from torch import Tensor


class UntrainedSAE(Substitute):
    """x̂ = scale · TopK((x − b_dec) W_enc) W_dec + b_dec with W_enc = W_decᵀ and unit decoder rows."""

    name = "random"

    def __init__(self, W_dec: Tensor, b_dec: Tensor, k: int) -> None:
        self.W_dec, self.b_dec, self.k = W_dec, b_dec, k
        self.scale = 1.0
        self.d_sae, self.d_in = W_dec.shape

    def encode(self, activations: Float[Tensor, "batch seq d"]) -> Encoding:
        pre = (activations.to(self.W_dec.dtype) - self.b_dec) @ self.W_dec.T
        values, indices = pre.topk(self.k, dim=-1)
        return Encoding(torch.zeros_like(pre).scatter(-1, indices, values.relu() * self.scale))

    def decode(self, encoding: Encoding | None, activations: Tensor) -> Tensor:
        assert encoding is not None
        return (encoding.feature_acts @ self.W_dec + self.b_dec).to(activations.dtype)

    @property
    def weights(self) -> dict[str, Tensor]:
        return {
            "W_enc": self.scale * self.W_dec.T,
            "b_enc": -self.scale * (self.b_dec @ self.W_dec.T),
            "W_dec": self.W_dec,
            "b_dec": self.b_dec,
        }


class Random(Repeated):
    """An untrained SAE of its parent's width and L0.

    iid unit decoder rows, W_enc = W_decᵀ, b_dec = the mean activation, TopK per token with k = round(L0 of
    the parent), and one least-squares scale, all computed on up to 8192 tokens sampled from the fit
    split. `seeds` independent draws form one row of the leaderboard; its error includes their variance.
    Undefined for transcoders: they read and write different activations, so encoder and decoder cannot be tied.
    """

    name, version, per, standing = "random", 1, "sae", 2

    def build(
        self, sae: Substitute, parent_l0: float, fit_inputs: Sample, fit_activations: Sample, copy: int
    ) -> UntrainedSAE:
        if not np.array_equal(fit_inputs.rows, fit_activations.rows):
            raise Undefined("the parent SAE reads other activations than it writes, so its weights cannot be tied")
        x = rows_of(fit_activations).to(device_of(sae), torch.float32)
        if sae.d_sae is None:
            raise Undefined(f"{sae.name} does not declare its width")
        k = min(max(round(parent_l0), 1), sae.d_sae)
        generator = torch.Generator().manual_seed(1000 * self.seed + copy)
        W_dec = torch.randn(sae.d_sae, x.shape[-1], generator=generator)
        W_dec = (W_dec / W_dec.norm(dim=1, keepdim=True)).to(x.device)
        untrained = UntrainedSAE(W_dec, x.double().mean(0).float(), k)
        numerator = denominator = 0.0
        for part in x.split(1024):
            guess = untrained.decode(untrained.encode(part), part) - untrained.b_dec
            numerator += float((guess * (part - untrained.b_dec)).double().sum())
            denominator += float(guess.square().double().sum())
        untrained.scale = numerator / denominator if denominator else 1.0
        return untrained
