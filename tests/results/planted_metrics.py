"""A plugin of metrics whose worth is known: noise, a constant, one that rewards a low L0, one that prefers damage."""

import hashlib

from saeval.plugin import Mean, Metric, Scalar, hashed, hookimpl, torch


def one_per_token(feature_acts, mask):
    return Mean.of(torch.ones_like(feature_acts[..., 0]), mask)


class Noise(Metric):
    """A number that a hash draws for each SAE and seed."""

    name = "noise"

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def observe(self, feature_acts, mask):
        return one_per_token(feature_acts, mask)

    def conclude(self, total, W_dec):
        return {"value": Scalar(drawn(W_dec, self.seed), unit="points", better="higher")}


def drawn(W_dec, seed):
    """The number of an SAE, from 0 to 1."""
    weights = int(hashlib.sha256(W_dec.numpy().tobytes()).hexdigest()[:12], 16)
    return float(hashed(weights, seed, "noise")) / 2**64


class Constant(Metric):
    """One for everything."""

    name = "constant"

    def observe(self, feature_acts, mask):
        return one_per_token(feature_acts, mask)

    def conclude(self, total):
        return {"value": Scalar(total.value, unit="points", better="higher")}


class Sparse(Metric):
    """The number of features per token, as if fewer were better."""

    name = "sparse"

    def observe(self, feature_acts, mask):
        return Mean.of((feature_acts != 0).double().sum(-1), mask)

    def conclude(self, total):
        return {"value": Scalar(total.value, unit="features", better="lower")}


class Backwards(Metric):
    """The squared error, as if more were better: it prefers shuffled decoders."""

    name = "backwards"

    def observe(self, activations, reconstruction, mask):
        return Mean.of((activations - reconstruction).double().square().sum(-1), mask)

    def conclude(self, total):
        return {"value": Scalar(total.value, unit="points", better="higher")}


@hookimpl
def saeval_metrics():
    return [Noise, Constant, Sparse, Backwards]
