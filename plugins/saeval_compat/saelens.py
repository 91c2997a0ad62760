"""Values of sae-lens 6.54's `run_evals` with everything on (sae_lens/evals.py)."""

from __future__ import annotations

from abc import abstractmethod
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float

from saeval.plugin import (
    Array,
    Batch,
    Encoding,
    Evidence,
    Mean,
    Metric,
    Ratio,
    Scalar,
    Spread,
    Substitute,
    TokenScores,
    Undefined,
    Value,
    torch,
)
from saeval.plugin import included as included_tokens
from saeval_compat.batches import PerBatch, columns
from saeval_compat.splices import predicting

if TYPE_CHECKING:
    from torch import Tensor

UNITS = {
    "l2_norm_in": "activation", "l2_norm_out": "activation", "l2_ratio": "ratio", "l0": "features", "l1": "activation",
    "explained_variance_legacy": "share of variance", "explained_variance": "share of variance",
    "mse": "squared activation", "cossim": "cosine", "relative_reconstruction_bias": "ratio",
}  # fmt: skip
"""Units of the norm, sparsity and variance fields."""
at_hook = partial(Scalar, comparable="hook")
anywhere = partial(Scalar, comparable="everywhere")
_TINY_NORM = 1e-4
"""Input norms below this count as 1 in `l2_ratio`."""


def downstream(clean: TokenScores, sae: TokenScores, zero: TokenScores, batch: Batch) -> dict[str, Evidence]:
    """KL at every token that is not excluded; cross-entropy at those with a next token in their row."""
    included = included_tokens(batch)
    scored = predicting(included, batch.real)
    return {
        "kl_div_with_sae": Mean.of(sae.kl, included),
        "kl_div_with_ablation": Mean.of(zero.kl, included),
        "ce_loss_without_sae": Mean.of(clean.nll, scored),
        "ce_loss_with_sae": Mean.of(sae.nll, scored),
        "ce_loss_with_ablation": Mean.of(zero.nll, scored),
    }


VARIANCE = (
    "l2_norm_in", "l2_norm_out", "l2_ratio", "explained_variance_legacy", "mse", "cossim", "l0", "l1",
    "explained_variance", "relative_reconstruction_bias",
)  # fmt: skip
"""Fields that both harnesses print; l0 and l1 only for substitutes with features."""


class PeerDownstream(Metric):
    """Base of the cross-entropy and KL metrics of two harnesses."""

    value_names = (
        "kl_div_with_sae", "kl_div_with_ablation", "kl_div_score", "ce_loss_without_sae", "ce_loss_with_sae",
        "ce_loss_with_ablation", "ce_loss_score",
    )  # fmt: skip

    def conclude(self, total: dict[str, Ratio]) -> dict[str, Value]:
        means = {name: mean.value for name, mean in total.items()}
        values: dict[str, Value] = {name: Scalar(estimate, unit="nats") for name, estimate in means.items()}
        kl, ce = means["kl_div_with_ablation"], means["ce_loss_with_ablation"]
        values["kl_div_score"] = at_hook((kl - means["kl_div_with_sae"]) / kl, unit="share", better="higher")
        score = (ce - means["ce_loss_with_sae"]) / (ce - means["ce_loss_without_sae"])
        values["ce_loss_score"] = at_hook(score, unit="share", better="higher")
        return values


class SAELensDownstream(PeerDownstream):
    """sae-lens' cross-entropy and KL fields, for comparison with numbers that it printed.

    Differs from `ce` and `kl`: the zero ablation covers positions outside the mask, which the splice leaves alone,
    so the two ends of a score are measured under different interventions; a row's last token predicts nothing;
    scores are defined for any denominator. Source: sae_lens 6.54 `get_recons_loss`.

    Values:
        kl_div_with_sae, kl_div_with_ablation: token mean of KL(clean‖spliced), with x̂ and with zeros; nats; ≥
            0; no better direction.
        ce_loss_without_sae, ce_loss_with_sae, ce_loss_with_ablation: token mean of the loss: clean, with x̂,
            with zeros; nats; ≥ 0; no better direction.
        kl_div_score: (kl_div_with_ablation − kl_div_with_sae) / kl_div_with_ablation; share; −∞ .. 1; higher is
            better.
        ce_loss_score: (ce_loss_with_ablation − ce_loss_with_sae) / (ce_loss_with_ablation −
            ce_loss_without_sae); share; −∞ .. ∞; higher is better.

    Claims:
        *: the number that sae-lens computes for these tokens in these batches, beside one that it printed; null: none,
            since it is not tested; needs: the same rows of tokens in the same batches; 1 SAE; not: that an SAE is good
            or better than another; use saeval's own values for that.
    """

    name, version = "saelens_downstream", 1

    def observe(
        self,
        included_clean_scores: TokenScores,
        included_scores: TokenScores,
        zeroed_scores: TokenScores,
        batch: Batch,
    ) -> dict[str, Evidence]:
        return downstream(included_clean_scores, included_scores, zeroed_scores, batch)


class PeerVariance(Metric):
    """Base of the norm, sparsity and variance metrics of two harnesses, over their own batches."""

    value_names = VARIANCE

    def __init__(self, batch_size: int = 16) -> None:
        if batch_size < 1:
            raise ValueError(f"metric '{self.name}': batch_size must be at least 1, got {batch_size}")
        self.batch_size = batch_size

    def observe(
        self,
        activations: Float[Tensor, "batch seq d"],
        reconstruction: Float[Tensor, "batch seq d"],
        encoding: Encoding | None,
        included: Bool[Tensor, "batch seq"],
        batch: Batch,
        batch_sums: PerBatch,
    ) -> dict[str, Evidence]:
        x, x_hat = activations.double(), reconstruction.double()
        norm, norm_hat, dot = x.norm(dim=-1), x_hat.norm(dim=-1), (x * x_hat).sum(-1)
        squared = (x - x_hat).square().sum(-1)
        mean = torch.from_numpy(batch_sums.of_sequences(batch.sequence_ids)).to(x.device)
        means = {
            "l2_norm_in": norm,
            "l2_norm_out": norm_hat,
            "l2_ratio": norm_hat / torch.where(norm < _TINY_NORM, 1, norm),
            "explained_variance_legacy": 1 - squared / (x - mean[:, None]).square().sum(-1),
            "mse": squared,
            "cossim": dot / (norm * norm_hat),
        }
        if encoding is not None:
            acts = encoding.feature_acts.to(dot.device)
            means |= {"l0": (acts != 0).sum(-1).double(), "l1": self.size(acts).sum(-1).double()}
        sums = self.by_batch(means, x, dot)
        by_batch = {name: PerBatch.of(columns(*values), included, self.batch_size) for name, values in sums.items()}
        return {**{name: Mean.of(value, included) for name, value in means.items()}, **by_batch}

    @abstractmethod
    def size(self, acts: Tensor) -> Tensor:
        """Return the numbers whose sum is l1."""

    @abstractmethod
    def by_batch(self, means: dict[str, Tensor], x: Tensor, dot: Tensor) -> dict[str, tuple[Tensor, ...]]:
        """Return the numbers per token of which each batch has its own means; may take entries out of `means`."""


class SAELensVariance(PeerVariance):
    """sae-lens' norms, sparsity and variance fields, for comparison with numbers that it printed.

    In l2_ratio, input norms below 1e-4 count as 1. explained_variance is that of `reconstruction`; rare tokens near
    the mean dominate explained_variance_legacy. `batch_size` is that of sae-lens, in sequences; two fields depend on
    it. Source: sae_lens 6.54 `get_sparsity_and_variance_metrics`.

    Values:
        l2_norm_in, l2_norm_out: token means of ‖x‖ and ‖x̂‖; activation; ≥ 0; no better direction.
        l2_ratio: token mean of ‖x̂‖ / ‖x‖; ratio; ≥ 0; no better direction.
        l0: token mean of #{j : f_j ≠ 0}; features; 0 .. d_sae; no better direction.
        l1: token mean of Σ_j |f_j|; activation; ≥ 0; no better direction.
        mse: token mean of ‖e‖²; squared activation; ≥ 0; no better direction.
        cossim: token mean of x·x̂ / ‖x‖‖x̂‖; cosine; -1 .. 1; no better direction.
        relative_reconstruction_bias: mean over batches of mean ‖x̂‖² / mean x·x̂; ratio; −∞ .. ∞; no better
            direction.
        explained_variance: 1 − mean ‖e‖² / (mean ‖x‖² − ‖mean x‖²); share of variance; −∞ .. 1; higher is
            better.
        explained_variance_legacy: token mean of 1 − ‖e‖² / ‖x − batch mean‖²; share of variance; −∞ .. 1; no
            better direction.

    Claims:
        *: the number that sae-lens computes for these tokens in these batches, beside one that it printed; null: none,
            since it is not tested; needs: the same rows of tokens in the same batches; 1 SAE; not: that an SAE is good
            or better than another; use saeval's own values for that.
    """

    name, version = "saelens_variance", 1

    def size(self, acts: Tensor) -> Tensor:
        return acts.abs()

    def by_batch(self, means: dict[str, Tensor], x: Tensor, dot: Tensor) -> dict[str, tuple[Tensor, ...]]:
        return {"bias": (means["l2_norm_out"].square(), dot)}

    def conclude(self, total: dict[str, Evidence], included_spread: Spread) -> dict[str, Value]:
        means = {name: value for name, value in total.items() if isinstance(value, Ratio)}
        values: dict[str, Value] = {
            n: (anywhere if n == "l0" else at_hook)(mean.value, unit=UNITS[n]) for n, mean in means.items()
        }
        variance = included_spread.around(included_spread.mean)
        fvu = Ratio(means["mse"].numerator, variance, included_spread.n).value
        values["explained_variance"] = at_hook(1 - fvu, unit=UNITS["explained_variance"], better="higher")
        bias = total["bias"]
        assert isinstance(bias, PerBatch)
        ratio = float((bias.means[:, 0] / bias.means[:, 1]).mean())
        values["relative_reconstruction_bias"] = at_hook(ratio, unit=UNITS["relative_reconstruction_bias"])
        return values


class SAELensFeatures(Metric):
    """sae-lens' featurewise density fields, one number per feature, for comparison with numbers that it printed.

    Arrays `[d_sae]`; a feature fires where f_j ≠ 0. Source: sae_lens 6.54 `get_sparsity_and_variance_metrics`.

    Values:
        feature_density: share of tokens on which feature j fires, an array; share of tokens; 0 .. 1; no better
            direction.
        consistent_activation_heuristic: tokens on which it fires / sequences in which it does, an array; tokens
            a sequence; ≥ 1, NaN for dead features; no better direction.
    """

    name, version = "saelens_features", 1
    value_names: tuple[str, ...] = ()

    def fires(self, acts: Tensor) -> Tensor:
        return acts != 0

    def observe(
        self, feature_acts: Float[Tensor, "batch seq d_sae"], included: Bool[Tensor, "batch seq"]
    ) -> dict[str, Evidence]:
        """Numbers of tokens and of sequences in which each feature fires; all sequences form one group."""
        counts = (self.fires(feature_acts) & included[..., None]).sum(1, keepdim=True)
        once, size = torch.ones_like(counts[..., 0], dtype=torch.bool), np.iinfo(np.int64).max
        return {
            "tokens": PerBatch.of(included.sum(1, keepdim=True)[..., None], once, size),
            "acts": PerBatch.of(counts, once, size),
            "prompts": PerBatch.of((counts > 0).double(), once, size),
        }

    def conclude(self, total: dict[str, PerBatch]) -> dict[str, Value]:
        acts, prompts, tokens = (total[name].sums[0] for name in ("acts", "prompts", "tokens"))
        with np.errstate(invalid="ignore", divide="ignore"):
            return {
                "feature_density": Array(acts / tokens, unit="share of tokens"),
                "consistent_activation_heuristic": Array(acts / prompts, unit="tokens a sequence"),
            }


class SAELensWeights(Metric):
    """sae-lens' featurewise weight fields, one number per feature, for comparison with numbers that it printed.

    Arrays `[d_sae]`; encoder_bias only if there is one. No forward pass. Differs: if features are rescaled by the
    decoder's norms (`rescale_acts_by_decoder_norm`) or activations are normalised, saeval's weights include those
    factors. Source: sae_lens 6.54 `get_featurewise_weight_based_metrics`.

    Values:
        encoder_norm: ‖e_j‖, an array; norm of weights; ≥ 0; no better direction.
        encoder_decoder_cosine_sim: e_j·d_j / ‖e_j‖‖d_j‖, an array; cosine; -1 .. 1; no better direction.
        encoder_bias: b_enc, an array; bias; −∞ .. ∞; no better direction.
    """

    name, version = "saelens_weights", 1
    value_names: tuple[str, ...] = ()

    def conclude(self, sae: Substitute) -> dict[str, Value]:
        missing = [name for name in ("W_enc", "W_dec") if name not in sae.weights]
        if missing:
            raise Undefined(f"{sae.name} has no {missing[0]}")
        encoder, decoder = sae.weights["W_enc"].double().T, sae.weights["W_dec"].double()
        if encoder.shape != decoder.shape:
            raise Undefined(f"{sae.name} reads activations of width {encoder.shape[1]} and writes {decoder.shape[1]}")
        norms = encoder.norm(dim=-1)
        cosine = (encoder * decoder).sum(-1) / (norms * decoder.norm(dim=-1))
        fields = {"encoder_norm": norms, "encoder_decoder_cosine_sim": cosine}
        if "b_enc" in sae.weights:
            fields["encoder_bias"] = sae.weights["b_enc"]
        units = {"encoder_norm": "norm of weights", "encoder_decoder_cosine_sim": "cosine", "encoder_bias": "bias"}
        return {name: Array(value.double().cpu().numpy(), units[name]) for name, value in fields.items()}
