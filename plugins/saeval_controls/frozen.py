"""An SAE whose decoder is random and stays so, with an encoder fitted to it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import numpy as np
from jaxtyping import Float
from pydantic import Field

from saeval.plugin import Encoding, Repeats, Sample, Substitute, Undefined, hashed, normal, torch
from saeval_controls.fitted import SAMPLE, Repeated, device_of, rows_of

if TYPE_CHECKING:
    from torch import Tensor

    from saeval.plugin import Subject

_BATCH = 512
_SECOND = 0.999, 1e-8
_FIRST = 0.9
"""Decays and the smallest divisor of Adam."""


class FrozenDecoder(Repeated):
    """An SAE with a random decoder that was not trained, and an encoder that was: what needs no features to be found.

    Its width and L0 are those of the parent SAE. Decoder rows are iid unit vectors. x̂ = TopK((x − mean) W_enc + b_enc)
    W_dec + the mean activation, with the k = round(L0 of the parent) largest positive values per token. W_enc starts at
    the transposed decoder times one least-squares scale. `epochs` epochs of Adam over up to 8192 tokens of the fit
    split lower ‖x − x̂‖². `seeds` independent draws form one row of the leaderboard; its error includes their variance.
    """

    name, version, per, standing = "frozen_decoder", 1, "sae", 3

    def __init__(
        self, seeds: Repeats = 3, seed: int = 0, epochs: Annotated[int, Field(ge=0, le=1000)] = 4,
        learning_rate: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1e-3,
    ) -> None:  # fmt: skip
        super().__init__(seeds, seed)
        self.epochs, self.learning_rate = epochs, learning_rate

    def operations(self, sae: Subject | None) -> float:
        if sae is None:
            return 0.0
        width = (sae.d_in or 0) + (sae.d_out or sae.d_in or 0)
        # An epoch takes the forward pass and twice as much for gradients; the elementwise work of Adam is as long.
        return 2.0 * SAMPLE * (sae.d_sae or 0) * width * (1 + 3 * self.epochs)

    def build(
        self, sae: Substitute, parent_l0: float, fit_inputs: Sample, fit_activations: Sample, copy: int
    ) -> Substitute:
        if sae.d_sae is None:
            raise Undefined(f"{sae.name} does not declare its width")
        device = device_of(sae)
        x, y = (rows_of(sample).to(device, torch.float32) for sample in (fit_inputs, fit_activations))
        key = hashed(self.name, self.seed, copy, np.arange(sae.d_sae))
        drawn = normal(key, y.shape[1]).to(device, torch.float32)
        k = min(max(round(parent_l0), 1), sae.d_sae)
        frozen = FittedEncoder(drawn / drawn.norm(dim=1, keepdim=True), x.mean(0), y.mean(0), k)
        frozen.start(x, y)
        with torch.enable_grad():
            frozen.fit(x, y, self.epochs, self.learning_rate, self.seed)
        return frozen


class FittedEncoder(Substitute):
    """x̂ = TopK((x − mean_in) W_enc + b_enc) W_dec + b_dec, whose decoder is given."""

    name = "frozen_decoder"

    def __init__(self, W_dec: Tensor, mean_in: Tensor, b_dec: Tensor, k: int) -> None:
        self.W_dec, self.mean_in, self.b_dec, self.k = W_dec, mean_in, b_dec, k
        self.d_sae, self.d_in = len(W_dec), len(mean_in)
        same = self.d_in == W_dec.shape[1]
        self.W_enc = W_dec.T.clone() if same else W_dec.new_zeros(self.d_in, self.d_sae)
        self.offset = W_dec.new_zeros(self.d_sae)

    def start(self, x: Float[Tensor, "n d_in"], y: Float[Tensor, "n d_out"]) -> None:
        """Give the encoder one least-squares scale; for other inputs than outputs, the best linear map first."""
        if self.d_in != self.W_dec.shape[1] or not torch.equal(x, y):
            to_output = torch.linalg.lstsq(
                (x - self.mean_in).double(), (y - self.b_dec).double(), driver="gelsd"
            ).solution
            self.W_enc = to_output.float() @ self.W_dec.T
        numerator = denominator = 0.0
        for part, goal in zip(x.split(_BATCH), y.split(_BATCH), strict=True):
            guess = self._acts(part) @ self.W_dec
            numerator += float((guess * (goal - self.b_dec)).sum(dtype=torch.float64))
            denominator += float(guess.square().sum(dtype=torch.float64))
        self.W_enc = self.W_enc * (numerator / denominator if denominator else 1.0)

    def fit(self, x: Float[Tensor, "n d_in"], y: Float[Tensor, "n d_out"], epochs: int, rate: float, seed: int) -> None:
        """Train the encoder by Adam, in an order that follows from the seed."""
        weights = [self.W_enc.clone().requires_grad_(), self.offset.clone().requires_grad_()]
        optimizer = torch.optim.Adam(weights, lr=rate, betas=(_FIRST, _SECOND[0]), eps=_SECOND[1])
        for epoch in range(epochs):
            order = np.argsort(hashed("epoch", seed, epoch, np.arange(len(x))), kind="stable")
            for part in torch.from_numpy(order).to(x.device).split(_BATCH):
                self.W_enc, self.offset = weights
                error = self._acts(x[part]) @ self.W_dec + self.b_dec - y[part]
                optimizer.zero_grad()
                error.square().sum(-1).mean().backward()
                optimizer.step()
        self.W_enc, self.offset = (weight.detach() for weight in weights)

    def _acts(self, x: Float[Tensor, "... d_in"]) -> Float[Tensor, "... d_sae"]:
        pre = (x.to(self.W_enc.dtype) - self.mean_in) @ self.W_enc + self.offset
        values, indices = pre.topk(self.k, dim=-1)
        return torch.zeros_like(pre).scatter(-1, indices, values.relu())

    def encode(self, activations: Float[Tensor, "batch seq d_in"]) -> Encoding:
        return Encoding(self._acts(activations))

    def decode(self, encoding: Encoding | None, activations: Tensor) -> Tensor:
        assert encoding is not None
        return (encoding.feature_acts @ self.W_dec + self.b_dec).to(activations.dtype)

    @property
    def device(self) -> torch.device:
        return self.W_dec.device

    @property
    def weights(self) -> dict[str, Tensor]:
        return {
            "W_enc": self.W_enc,
            "b_enc": self.offset - self.mean_in @ self.W_enc,
            "W_dec": self.W_dec,
            "b_dec": self.b_dec,
        }
