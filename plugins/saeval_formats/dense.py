"""An SAE with dense matrices: the canonical form of every checkpoint format."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from jaxtyping import Float

from saeval.plugin import Encoding, Substitute, torch

if TYPE_CHECKING:
    from torch import Tensor

Normalization = Literal["none", "layer_norm", "constant_norm_rescale"]
_NORMALIZATIONS: Mapping[Normalization, str] = {
    "none": "without input normalisation",
    "layer_norm": "with layer norm of its input",
    "constant_norm_rescale": "with each input scaled to norm √d_in",
}

# Formulas that divide by a norm must return zeros for a zero vector, not NaN.
_TINY = 1e-12
_LAYER_NORM_EPS = 1e-5
_SMALLEST_NORM = 1e-8

FEW = 0.02
"""Share of active features below which gathering their decoder rows is faster than the dense product."""


class Activation(ABC):
    """An activation function: x̃ W_enc and b_enc -> feature activations."""

    @abstractmethod
    def __call__(self, projected: Float[Tensor, "*batch d_sae"], b_enc: Float[Tensor, "d_sae"]) -> Tensor:
        """Return `[*batch, d_sae]`; nonzero features are active. May write into `projected`, which is large."""

    @abstractmethod
    def scaled(self, factors: Float[Tensor, "d_sae"]) -> Activation:
        """Return the activation that maps `factors` times the pre-activations to `factors` times the features.

        `ValueError` if there is none.
        """


@dataclass(frozen=True, eq=False)
class ReLU(Activation):
    """relu(x̃ W_enc + b_enc)"""

    def __call__(self, projected: Tensor, b_enc: Tensor) -> Tensor:
        return projected.add_(b_enc).relu_()

    def scaled(self, factors: Tensor) -> Activation:
        return self


@dataclass(frozen=True, eq=False)
class TopK(Activation):
    """relu of the k largest x̃ W_enc + b_enc of each token; the others are 0."""

    k: int

    def __call__(self, projected: Tensor, b_enc: Tensor) -> Tensor:
        values, indices = torch.topk(projected.add_(b_enc), self.k, dim=-1, sorted=False)
        return projected.zero_().scatter_(-1, indices, values.relu())

    def scaled(self, factors: Tensor) -> Activation:
        raise ValueError("the choice of the k largest features would change")


@dataclass(frozen=True, eq=False)
class AbsTopK(Activation):
    """The k x̃ W_enc + b_enc of largest magnitude of each token, with their signs; the others are 0."""

    k: int

    def __call__(self, projected: Tensor, b_enc: Tensor) -> Tensor:
        pre = projected.add_(b_enc)
        indices = torch.topk(pre.abs(), self.k, dim=-1, sorted=False).indices
        values = pre.gather(-1, indices)
        return pre.zero_().scatter_(-1, indices, values)

    def scaled(self, factors: Tensor) -> Activation:
        raise ValueError("the choice of the k largest features would change")


@dataclass(frozen=True, eq=False)
class GroupMax(Activation):
    """relu(x̃ W_enc + b_enc) of the largest feature in each of k groups of consecutive features; the others are 0."""

    k: int

    def __call__(self, projected: Tensor, b_enc: Tensor) -> Tensor:
        groups = torch.relu(projected + b_enc).unflatten(-1, (self.k, -1))
        values, indices = groups.max(dim=-1, keepdim=True)
        return torch.zeros_like(groups).scatter_(-1, indices, values).flatten(-2)

    def scaled(self, factors: Tensor) -> Activation:
        raise ValueError("the choice of the largest feature in each group would change")


@dataclass(frozen=True, eq=False)
class JumpReLU(Activation):
    """relu(pre) where pre = x̃ W_enc + b_enc is strictly above the threshold, else 0."""

    threshold: Float[Tensor, "d_sae"]

    def __call__(self, projected: Tensor, b_enc: Tensor) -> Tensor:
        pre = projected.add_(b_enc)
        above = pre > self.threshold
        return pre.relu_().mul_(above)

    def scaled(self, factors: Tensor) -> Activation:
        return JumpReLU(self.threshold * factors)


@dataclass(frozen=True, eq=False)
class Gated(Activation):
    """1[x̃ W_enc + b_gate > 0] · relu(x̃ W_enc e^{r_mag} + b_mag); `b_enc` is not used."""

    b_gate: Float[Tensor, "d_sae"]
    r_mag: Float[Tensor, "d_sae"]
    b_mag: Float[Tensor, "d_sae"]

    def __call__(self, projected: Tensor, b_enc: Tensor) -> Tensor:
        return torch.relu(projected * self.r_mag.exp() + self.b_mag) * (projected + self.b_gate > 0)

    def scaled(self, factors: Tensor) -> Activation:
        return Gated(self.b_gate * factors, self.r_mag, self.b_mag * factors)


def activation_of(tensors: Mapping[str, Tensor], k: int | None = None) -> Activation:
    """Return TopK if `k` is given, else the activation that the tensors imply: JumpReLU, Gated, or ReLU."""
    if k is not None:
        return TopK(k)
    if "threshold" in tensors:
        return JumpReLU(tensors["threshold"].expand(tensors["W_enc"].shape[1]))
    if "b_gate" in tensors:
        return Gated(tensors["b_gate"], tensors["r_mag"], tensors["b_mag"])
    return ReLU()


class Context(NamedTuple):
    """The inputs of `decode` besides the features."""

    statistics: Any
    """The statistics by which the input was normalised."""
    x: Float[Tensor, "*batch d_in"] | None
    """The original input, for the skip connection."""


class DenseSAE(Substitute):
    """acts = activation(x̃ W_enc + b_enc); x̂ = denormalise(acts W_dec + b_dec) + x W_skipᵀ.

    x̃ = normalise(x), minus b_dec with `apply_b_dec_to_input`. Computation is in the dtype of the weights;
    reconstructions have the dtype of the activations. The encoding's context carries the normalisation statistics and
    the input of the skip connection, so the object keeps no state between calls. `rescale_acts_by_decoder_norm` (not
    for thresholds) folds the norms of the decoder rows into the encoder, so that `feature_acts` and `weights` agree.

    A `transcoder` reconstructs the activations of another hook than it reads: its output is not denormalised, and
    b_dec belongs to the output.
    """

    def __init__(
        self,
        hook_name: str,
        W_enc: Float[Tensor, "d_in d_sae"],
        b_enc: Float[Tensor, "d_sae"] | None,
        W_dec: Float[Tensor, "d_sae d_out"],
        b_dec: Float[Tensor, "d_out"],
        activation: Activation,
        *,
        apply_b_dec_to_input: bool = False,
        normalization: Normalization = "none",
        rescale_acts_by_decoder_norm: bool = False,
        transcoder: bool = False,
        W_skip: Float[Tensor, "d_out d_in"] | None = None,
    ) -> None:
        """`b_enc=None` means zeros (gated SAEs have none). `ValueError` if shapes or options do not fit together."""
        d_in, d_sae = W_enc.shape
        d_out = W_dec.shape[1]
        if W_dec.shape[0] != d_sae or b_dec.shape != (d_out,) or (b_enc is not None and b_enc.shape != (d_sae,)):
            shapes = [None if t is None else tuple(t.shape) for t in (W_enc, b_enc, W_dec, b_dec)]
            raise ValueError(f"W_enc, b_enc, W_dec, b_dec do not fit together: {shapes}")
        if W_skip is not None and W_skip.shape != (d_out, d_in):
            raise ValueError(f"W_skip is {tuple(W_skip.shape)}, expected {(d_out, d_in)}")
        if d_in != d_out and not transcoder:
            raise ValueError(f"d_in {d_in} and d_out {d_out} differ, which only a transcoder's may")
        if transcoder and apply_b_dec_to_input:
            raise ValueError("b_dec of a transcoder cannot apply to its input, which comes from another hook")
        if rescale_acts_by_decoder_norm and not isinstance(activation, ReLU | TopK | AbsTopK):
            raise ValueError(
                f"rescale_acts_by_decoder_norm is for ReLU, TopK and AbsTopK, not {type(activation).__name__}"
            )
        self.hook_name = hook_name
        self.d_in, self.d_sae, self.d_out = d_in, d_sae, d_out
        self.activation = activation
        self.apply_b_dec_to_input = apply_b_dec_to_input
        self.normalization = normalization
        self.transcoder = transcoder
        self.W_skip = W_skip
        self._has_b_enc = b_enc is not None
        if b_enc is None:
            b_enc = W_enc.new_zeros(d_sae)
        if rescale_acts_by_decoder_norm:
            norms = W_dec.norm(dim=-1)
            W_enc, b_enc, W_dec = W_enc * norms, b_enc * norms, W_dec / norms.clamp(min=_TINY)[:, None]
        self.W_enc, self.b_enc, self.W_dec, self.b_dec = W_enc, b_enc, W_dec, b_dec

    def with_unit_decoder(self) -> DenseSAE:
        """Return the same SAE with decoder rows of norm 1 and features multiplied by the old norms n.

        W_dec/n, W_enc·n, and biases and thresholds times n. `ValueError` if other features would be active.
        """
        norms = self.W_dec.norm(dim=-1).clamp(min=_SMALLEST_NORM)
        return DenseSAE(
            self.hook_name,
            self.W_enc * norms,
            self.b_enc * norms if self._has_b_enc else None,
            self.W_dec / norms[:, None],
            self.b_dec,
            self.activation.scaled(norms),
            apply_b_dec_to_input=self.apply_b_dec_to_input,
            normalization=self.normalization,
            transcoder=self.transcoder,
            W_skip=self.W_skip,
        )

    def other_readings(self) -> Mapping[str, Substitute]:
        readings: dict[str, Substitute] = {}
        for normalization, name in _NORMALIZATIONS.items():
            if normalization != self.normalization:
                readings[name] = self._changed(normalization=normalization)
        if not self.transcoder:
            subtracted = self.apply_b_dec_to_input
            name = f"with b_dec {'not ' if subtracted else ''}taken from its input"
            readings[name] = self._changed(apply_b_dec_to_input=not subtracted)
        return readings

    def _changed(self, **options: Any) -> DenseSAE:
        changed = copy.copy(self)
        changed.__dict__.update(options)
        return changed

    @property
    def dtype(self) -> torch.dtype:
        return self.W_enc.dtype

    @property
    def device(self) -> torch.device:
        return self.W_enc.device

    @property
    def weights(self) -> Mapping[str, Tensor]:
        tensors = {"W_enc": self.W_enc, "W_dec": self.W_dec, "b_dec": self.b_dec}
        return {**tensors, "b_enc": self.b_enc} if self._has_b_enc else tensors

    def encode(self, activations: Float[Tensor, "*batch d_in"]) -> Encoding:
        """Encode activations; a transcoder's are those of its input hook."""
        x = activations.to(self.dtype)
        normalised, statistics = self._normalise(x)
        if self.apply_b_dec_to_input:
            normalised = normalised - self.b_dec
        acts = self.activation(normalised @ self.W_enc, self.b_enc)
        return Encoding(acts, Context(statistics, x if self.W_skip is not None else None))

    def decode(
        self, encoding: Encoding | None, activations: Float[Tensor, "*batch d_out"]
    ) -> Float[Tensor, "*batch d_out"]:
        """Decode; `encoding` may hold changed feature activations, but its context must be of these `activations`."""
        assert encoding is not None
        x_hat = _decoded(encoding.feature_acts.to(self.dtype), self.W_dec) + self.b_dec
        statistics, x = encoding.context
        if not self.transcoder:
            x_hat = self._denormalise(x_hat, statistics)
        if self.W_skip is not None:
            x_hat = x_hat + x @ self.W_skip.T
        return x_hat.to(activations.dtype)

    def _normalise(self, x: Tensor) -> tuple[Tensor, Any]:
        if self.normalization == "layer_norm":
            mean = x.mean(dim=-1, keepdim=True)
            centred = x - mean
            std = centred.std(dim=-1, keepdim=True)  # unbiased, as in the training of these SAEs
            return centred / (std + _LAYER_NORM_EPS), (mean, std)
        if self.normalization == "constant_norm_rescale":
            scale = self.d_in**0.5 / x.norm(dim=-1, keepdim=True).clamp(min=_TINY)
            return x * scale, scale
        return x, None

    def _denormalise(self, x_hat: Tensor, statistics: Any) -> Tensor:
        if self.normalization == "layer_norm":
            mean, std = statistics
            x_hat = x_hat * std + mean
        if self.normalization == "constant_norm_rescale":
            x_hat = x_hat / statistics
        return x_hat


def _decoded(feature_acts: Float[Tensor, "*batch d_sae"], W_dec: Float[Tensor, "d_sae d_out"]) -> Tensor:
    """Return f W_dec; on a CPU, gather only the rows of active features if they are few.

    Ten times faster at 64 of 24,576 features; as fast as the dense product at about one in 25. Gradients need the
    inactive features too, so they use the dense product.
    """
    if feature_acts.device.type == "cpu" and W_dec.dtype == torch.float32 and not feature_acts.requires_grad:
        flat = feature_acts.flatten(0, -2)
        if flat.numel() and int(torch.count_nonzero(flat)) < FEW * flat.numel():
            token, feature = flat.nonzero(as_tuple=True)
            starts = torch.searchsorted(token, torch.arange(len(flat)))
            weights = flat[token, feature]
            decoded: Tensor = torch.nn.functional.embedding_bag(
                feature, W_dec, starts, mode="sum", per_sample_weights=weights
            )
            return decoded.view(*feature_acts.shape[:-1], -1)
    return feature_acts @ W_dec
