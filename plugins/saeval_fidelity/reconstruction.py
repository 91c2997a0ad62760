"""Error of the reconstruction itself, before the rest of the model runs on it."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from jaxtyping import Bool, Float

from saeval.plugin import Evidence, Mean, Metric, Ratio, Scalar, Spread, Undefined

if TYPE_CHECKING:
    from torch import Tensor


class Reconstruction(Metric):
    """Error of the reconstruction x̂ of the activations x.

    e = x − x̂, and μ is the mean of x over the mask of all planned tokens, which mean ablations splice in. The error is
    not centred, so a constant offset counts. fvu is 0 for a perfect x̂ and 1 for predicting μ, without an upper bound.
    reconstruction_bias is the relative reconstruction bias of Rajamanoharan et al. 2024. The standard errors of fvu
    and explained_variance are given μ: they treat it as fixed.

    Values:
        explained_variance: 1 − fvu; share of variance; −∞ .. 1; higher is better.
        fvu: Σ‖e‖² / Σ‖x−μ‖²; share of variance; ≥ 0; lower is better.
        mse: token mean of ‖e‖²; squared activation; ≥ 0; lower is better.
        mse_per_dim: mse / d_in; squared activation per dimension; ≥ 0; lower is better.
        cosine: token mean of x·x̂ / ‖x‖‖x̂‖ over nonzero norms; cosine; -1 .. 1; higher is better.
        norm_ratio: token mean of ‖x̂‖ / ‖x‖ over nonzero ‖x‖; ratio; ≥ 0; no better direction.
        reconstruction_bias: Σ‖x̂‖² / Σ x·x̂ (1 is unbiased); ratio; −∞ .. ∞; no better direction.
        error_norm: token mean of ‖e‖; activation; ≥ 0; lower is better.
        without_direction: tokens with ‖x‖ = 0 or ‖x̂‖ = 0, left out of cosine; tokens; ≥ 0; no better
            direction.

    Claims:
        explained_variance, fvu, mse, mse_per_dim, error_norm: this SAE reconstructs the activations of this hook better
            than another SAE or control; null: a paired difference of 0 to another SAE or to a control at the same hook;
            needs: 20 effective documents; 1 SAE each; 4 seeds each for a claim about a training method; not: that the
            model computes the same with the reconstruction; that an SAE at another hook is better or worse, since the
            scale and the shape of activations differ.
        cosine, norm_ratio, reconstruction_bias: the reconstruction's angle or length deviates more or less than another
            SAE's; null: a paired difference of 0 to another SAE or to a control at the same hook; needs: 20 effective
            documents; 1 SAE each; 4 seeds each for a claim about a training method; not: a comparison of hooks; that a
            high cosine is an achievement where the control mean has it too.
        without_direction: so many tokens were left out of cosine; null: none, since it is a count; needs: 1 SAE; not:
            anything about the tokens that were left out.

    Source: fvu is the normalised MSE of Gao et al. 2024.
    """

    name, version = "reconstruction", 1
    headline = ("explained_variance", "cosine")
    value_names = (
        "explained_variance", "fvu", "mse", "mse_per_dim", "cosine", "norm_ratio", "reconstruction_bias", "error_norm",
        "without_direction",
    )  # fmt: skip

    def observe(
        self,
        activations: Float[Tensor, "batch seq d_in"],
        reconstruction: Float[Tensor, "batch seq d_in"],
        mask: Bool[Tensor, "batch seq"],
    ) -> dict[str, Evidence]:
        x, x_hat = activations.double(), reconstruction.double()
        squared = (x - x_hat).square().sum(-1)
        norm, norm_hat, dot = x.norm(dim=-1), x_hat.norm(dim=-1), (x * x_hat).sum(-1)
        # A zero vector has no direction, and a zero norm no ratio to it.
        directed, nonzero = mask & (norm > 0) & (norm_hat > 0), mask & (norm > 0)
        return {
            "mse": Mean.of(squared, mask),
            "mse_per_dim": Mean.of(squared / x.shape[-1], mask),
            "cosine": Mean.of(dot / (norm * norm_hat), directed),
            "norm_ratio": Mean.of(norm_hat / norm, nonzero),
            "bias": Ratio.of(norm_hat.square(), dot, mask),
            "error_norm": Mean.of(squared.sqrt(), mask),
            "without_direction": Mean.of((mask & ~directed).double(), mask),
        }

    def conclude(
        self, total: dict[str, Ratio], activation_spread: Spread, activation_mean: Float[Tensor, "d_in"]
    ) -> dict[str, Scalar]:
        if int(total["mse"].n.sum()) == 0:
            raise Undefined("no token is in the mask")
        variance = activation_spread.around(activation_mean.numpy())
        fvu = Ratio(total["mse"].numerator, variance, activation_spread.n).value
        undirected = total["without_direction"]
        at_hook = partial(Scalar, comparable="hook")
        excluded = at_hook(float(undirected.numerator.sum()), unit="tokens", n=int(undirected.n.sum()))
        nothing = "every token's reconstruction or activation is zero"
        return {
            "explained_variance": at_hook(1 - fvu, unit="share of variance", better="higher"),
            "fvu": at_hook(fvu, unit="share of variance", better="lower"),
            "mse": at_hook(total["mse"].value, unit="squared activation", better="lower"),
            "mse_per_dim": at_hook(total["mse_per_dim"].value, unit="squared activation per dimension", better="lower"),
            "cosine": at_hook(total["cosine"].value, unit="cosine", better="higher")
            if total["cosine"].n.sum()
            else Scalar.undefined(nothing, unit="cosine", better="higher"),
            "norm_ratio": at_hook(total["norm_ratio"].value, unit="ratio"),
            "reconstruction_bias": at_hook(total["bias"].value, unit="ratio")
            if total["bias"].denominator.sum()
            else Scalar.undefined("Σx·x̂ is 0", unit="ratio"),
            "error_norm": at_hook(total["error_norm"].value, unit="activation", better="lower"),
            "without_direction": excluded,
        }
