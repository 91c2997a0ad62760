"""Controls that know the true features: with their true activations, or with the best encoder that was found."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from jaxtyping import Float, UInt64
from pydantic import Field

from saeval.plugin import Control, Encoding, Sample, Substitute, Undefined, hashed, torch

if TYPE_CHECKING:
    from torch import Tensor

    from saeval_synthetic.world import World

_FITTED = 1024
"""Tokens of the fit split on which encoders are compared."""


class _TrueDictionary(Substitute):
    """x̂ = Σ_j f_j d_j + bias with the true directions d_j."""

    def __init__(self, truth: World, name: str) -> None:
        self.truth, self.name = truth, name
        self.d_sae, self.d_in = truth.directions.shape
        self.W_dec, self.b_dec = torch.from_numpy(truth.directions), torch.from_numpy(truth.bias)

    def decode(self, encoding: Encoding | None, activations: Float[Tensor, "batch seq d"]) -> Tensor:
        assert encoding is not None
        acts = encoding.feature_acts
        return (acts @ self.W_dec.to(acts) + self.b_dec.to(acts)).to(activations)

    @property
    def weights(self) -> Mapping[str, Tensor]:
        return {"W_dec": self.W_dec, "b_dec": self.b_dec}


class _Full(_TrueDictionary):
    token_keys: UInt64[np.ndarray, "batch seq"] | None = None

    def at(self, token_keys: UInt64[np.ndarray, "batch seq"]) -> Substitute:
        bound = copy.copy(self)
        bound.token_keys = token_keys
        return bound

    def encode(self, activations: Float[Tensor, "batch seq d"]) -> Encoding:
        if self.token_keys is None:
            raise ValueError(f"{self.name} knows the features of a token by its key: call at(token_keys) first")
        fires = self.truth.features(self.token_keys.ravel())
        acts = torch.zeros(self.token_keys.size, self.truth.n)
        acts[torch.from_numpy(fires.row), torch.from_numpy(fires.feature)] = torch.from_numpy(fires.value)
        return Encoding(acts.view(*self.token_keys.shape, -1).to(activations.device))


class OracleFull(Control):
    """The true features with their true activations: the score of an SAE without a fault.

    Its reconstruction lacks only the noise. Only for data with a ground truth.
    """

    name, version, per = "oracle_full", 1, "hook"

    def build(self, truth: World) -> Substitute:
        return _Full(truth, self.name)


@dataclasses.dataclass(frozen=True)
class Encoder:
    """Activations of the true directions, from the activations x alone.

    `steps` of 0: max(0, ⟨x − bias, d_j⟩), where it exceeds `threshold`. Else the non-negative least-squares codes with
    an L1 penalty, after that many steps of FISTA (Beck and Teboulle 2009), where they exceed it.
    """

    threshold: float
    penalty: float = 0.0
    steps: int = 0

    def __call__(self, x: Float[Tensor, "n d"], directions: Float[Tensor, "m d"]) -> Float[Tensor, "n m"]:
        acts = self.codes(x, directions)
        return torch.where(acts > self.threshold, acts, acts.new_zeros(()))

    def codes(self, x: Float[Tensor, "n d"], directions: Float[Tensor, "m d"]) -> Float[Tensor, "n m"]:
        """Return the activations before the threshold."""
        if not self.steps:
            return (x @ directions.T).relu()
        step = 1 / float(torch.linalg.matrix_norm(directions.T @ directions, 2))
        codes = ahead = x.new_zeros(len(x), len(directions))
        momentum = 1.0
        for _ in range(self.steps):
            ahead = ahead + step * ((x - ahead @ directions) @ directions.T - self.penalty)
            following, later = ahead.relu(), (1 + (1 + 4 * momentum**2) ** 0.5) / 2
            ahead = following + (momentum - 1) / later * (following - codes)
            codes, momentum = following, later
        return codes


class _Found(_TrueDictionary):
    def __init__(self, truth: World, name: str, encoder: Encoder) -> None:
        super().__init__(truth, name)
        self.encoder = encoder

    def encode(self, activations: Float[Tensor, "batch seq d"]) -> Encoding:
        directions = self.W_dec.to(activations.device)
        flat = activations.reshape(-1, activations.shape[-1]).float() - self.b_dec.to(activations.device)
        acts = torch.cat([self.encoder(part, directions) for part in flat.split(_FITTED)])
        return Encoding(acts.view(*activations.shape[:-1], -1))


class OracleDictionary(Control):
    """The true directions with the best encoder that was found: what no encoder of a trained SAE need exceed by far.

    Encoders of two kinds are tried: a threshold on the projections (`threshold`), and non-negative sparse coding with
    `steps` steps of FISTA (`pursuit`). Of all thresholds and penalties of these kinds, the one stays that has the
    largest F1 against the true features, over all pairs of token and feature, on up to 1,024 tokens of the fit split.
    It may be below 1 where directions overlap. `pursuit` takes `steps` times the time of `threshold`. Only for data
    with a ground truth.
    """

    name, version, per = "oracle_dictionary", 1, "hook"

    def __init__(
        self,
        encoder: Literal["best", "threshold", "pursuit"] = "best",
        steps: Annotated[int, Field(ge=1, le=1000)] = 30,
    ) -> None:
        self.encoder, self.steps = encoder, steps

    def build(self, truth: World, fit_activations: Sample) -> Substitute:
        if not len(fit_activations.rows):
            raise Undefined("the fit split has no token in its mask")
        part = slice(_FITTED)
        x = torch.from_numpy(fit_activations.rows[part]).float() - torch.from_numpy(truth.bias)
        fires = truth.features(hashed(fit_activations.sequence_ids[part], fit_activations.positions[part]))
        true = torch.zeros(len(x), truth.n, dtype=torch.bool)
        true[torch.from_numpy(fires.row), torch.from_numpy(fires.feature)] = True
        scale, directions = (
            float(np.median(fires.value)) if len(fires.value) else 1.0,
            torch.from_numpy(truth.directions),
        )
        tried = [Encoder(0.0)] if self.encoder != "pursuit" else []
        if self.encoder != "threshold":
            tried += [Encoder(0.0, penalty * scale, self.steps) for penalty in (0.02, 0.05, 0.1, 0.2, 0.4)]
        best, score = tried[0], -1.0
        for encoder in tried:
            codes = encoder.codes(x, directions)
            threshold, reached = _best_threshold(codes, true)
            if reached > score:
                best, score = dataclasses.replace(encoder, threshold=threshold), reached
        return _Found(truth, self.name, best)


def _best_threshold(codes: Float[Tensor, "n m"], true: Tensor) -> tuple[float, float]:
    """Return the threshold with the largest F1 over all pairs of token and feature, and that F1."""
    positive = codes > 0
    values, order = codes[positive].sort(descending=True)
    hits = true[positive][order].cumsum(0).double()
    if not len(values):
        return 0.0, 0.0
    chosen = torch.arange(1, len(values) + 1, dtype=torch.float64)
    f1 = 2 * hits / (chosen + int(true.sum()))
    at = int(f1.argmax())
    below = float(values[at + 1]) if at + 1 < len(values) else 0.0
    return (float(values[at]) + below) / 2, float(f1[at])
