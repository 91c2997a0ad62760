"""Values of SAEBench 0.6.0's core evaluation, its defects included (sae_bench/evals/core/main.py)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from saeval.plugin import Array, Batch, Evidence, Ratio, Substitute, TokenScores, Value
from saeval_compat.batches import PerBatch
from saeval_compat.saelens import (
    UNITS,
    PeerDownstream,
    PeerVariance,
    SAELensFeatures,
    SAELensWeights,
    anywhere,
    at_hook,
    downstream,
)
from saeval_fidelity.weights import directed, largest_cosines

if TYPE_CHECKING:
    from torch import Tensor

_ROWS = 1024
"""Rows whose cosines with all others are in memory at once."""


class SAEBenchDownstream(PeerDownstream):
    """SAEBench's cross-entropy and KL fields, for comparison with numbers that it printed.

    As `saelens_downstream`, by default with one more defect: the reconstruction is spliced in at every
    position, although averages leave excluded tokens out. With `exclude_special_tokens_from_reconstruction`,
    SAEBench's own flag (off by default, on in its scripts for custom SAEs), the splice leaves them alone,
    but the zero ablation never does. Not reproduced: SAEBench takes the logarithm of a softmax for its KL,
    so a probability that underflows makes the field NaN (printed as −1); here it is finite. Source: SAEBench
    0.6.0 `get_recons_loss`.

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
        *: the number that SAEBench computes for these tokens in these batches, beside one that it printed; null: none,
            since it is not tested; needs: the same rows of tokens in the same batches; 1 SAE; not: that an SAE is good
            or better than another; use saeval's own values for that.
    """

    name, version = "saebench_downstream", 1

    def __init__(self, exclude_special_tokens_from_reconstruction: bool = False) -> None:
        self.exclude_special_tokens_from_reconstruction = exclude_special_tokens_from_reconstruction

    def observe(
        self,
        included_clean_scores: TokenScores,
        saebench_scores: TokenScores,
        zeroed_scores: TokenScores,
        batch: Batch,
    ) -> dict[str, Evidence]:
        return downstream(included_clean_scores, saebench_scores, zeroed_scores, batch)


class SAEBenchVariance(PeerVariance):
    """SAEBench's norms, sparsity and variance fields, for comparison with numbers that it printed.

    Defects, kept: `explained_variance` = 1 − R / (S − A²), where S and R are the means over batches of
    mean ‖x‖² and mean ‖e‖², and A is the mean of x² over batches, tokens *and dimensions*, so that A² is
    no squared mean, and predicting the mean scores far above 0; `mse` divides each token's ‖e‖² by the
    tokens of its batch before averaging, so it falls as batches grow; l1 sums f, not |f|. The rest is as
    in `saelens_variance`. `batch_size` is that of SAEBench, in sequences. Source:
    SAEBench 0.6.0 `get_sparsity_and_variance_metrics`.

    Values:
        l2_norm_in, l2_norm_out: token means of ‖x‖ and ‖x̂‖; activation; ≥ 0; no better direction.
        l2_ratio: token mean of ‖x̂‖ / ‖x‖; ratio; ≥ 0; no better direction.
        l0: token mean of #{j : f_j ≠ 0}; features; 0 .. d_sae; no better direction.
        l1: token mean of Σ_j f_j; activation; −∞ .. ∞; no better direction.
        mse: mean over batches of mean ‖e‖² / tokens of the batch; squared activation; ≥ 0; lower is better.
        cossim: token mean of x·x̂ / ‖x‖‖x̂‖; cosine; -1 .. 1; no better direction.
        relative_reconstruction_bias: mean over batches of mean ‖x̂‖² / mean x·x̂; ratio; −∞ .. ∞; no better
            direction.
        explained_variance: 1 − R / (S − A²); share of variance; −∞ .. ∞; higher is better.
        explained_variance_legacy: token mean of 1 − ‖e‖² / ‖x − batch mean‖²; share of variance; −∞ .. 1; no
            better direction.

    Claims:
        *: the number that SAEBench computes for these tokens in these batches, beside one that it printed; null: none,
            since it is not tested; needs: the same rows of tokens in the same batches; 1 SAE; not: that an SAE is good
            or better than another; use saeval's own values for that.
    """

    name, version = "saebench_variance", 1

    def size(self, acts: Tensor) -> Tensor:
        return acts

    def by_batch(self, means: dict[str, Tensor], x: Tensor, dot: Tensor) -> dict[str, tuple[Tensor, ...]]:
        norm, norm_hat, squared = means["l2_norm_in"], means["l2_norm_out"], means.pop("mse")
        return {"batches": (norm_hat.square(), dot, norm.square(), x.square().mean(-1), squared)}

    def conclude(self, total: dict[str, Evidence]) -> dict[str, Value]:
        values: dict[str, Value] = {
            name: (anywhere if name == "l0" else at_hook)(mean.value, unit=UNITS[name])
            for name, mean in total.items()
            if isinstance(mean, Ratio)
        }
        batches = total["batches"]
        assert isinstance(batches, PerBatch)
        hat, dot, squares, per_dim, residual = batches.means.T
        tokens = batches.n[batches.n > 0]
        values["relative_reconstruction_bias"] = at_hook(float((hat / dot).mean()), unit="ratio")
        variance = squares.mean() - per_dim.mean() ** 2
        values["explained_variance"] = at_hook(
            float(1 - residual.mean() / variance), unit=UNITS["explained_variance"], better="higher"
        )
        values["mse"] = at_hook(float(np.sum(residual) / np.sum(tokens)), unit=UNITS["mse"], better="lower")
        return values


class SAEBenchFeatures(SAELensFeatures):
    """SAEBench's feature density fields, for comparison with numbers that it printed.

    As `saelens_features`, except that a feature fires if f_j > 0, so negative activations do not count. The
    normalized frequencies are 0 if nothing fires. Source: SAEBench 0.6.0 `get_sparsity_and_variance_metrics`,
    `calculate_misc_metrics`.

    Values:
        feature_density: share of tokens on which feature j fires, an array; share of tokens; 0 .. 1; no better
            direction.
        consistent_activation_heuristic: tokens on which it fires / sequences in which it does, an array; tokens
            a sequence; ≥ 1, NaN for dead features; no better direction.
        frac_alive: share of features with density above 0; share of features; 0 .. 1; no better direction, depends on
            the number of tokens: a feature counts as alive if it fires on one of them.
        freq_over_1_percent, freq_over_10_percent: share of features with density above 0.01, above 0.1; share
            of features; 0 .. 1; no better direction.
        normalized_freq_over_1_percent, normalized_freq_over_10_percent: Σ of the densities above it / Σ of all;
            share of firings; 0 .. 1; no better direction.

    Claims:
        *: the number that SAEBench computes for these tokens in these batches, beside one that it printed; null: none,
            since it is not tested; needs: the same rows of tokens in the same batches; 1 SAE; not: that an SAE is good
            or better than another; use saeval's own values for that.
    """

    name, version = "saebench_features", 1
    value_names = (
        "frac_alive", *(f"{kind}_over_{n}_percent" for kind in ("freq", "normalized_freq") for n in (1, 10)),
    )  # fmt: skip

    def fires(self, acts: Tensor) -> Tensor:
        return acts > 0

    def conclude(self, total: dict[str, PerBatch]) -> dict[str, Value]:
        values = super().conclude(total)
        density = total["acts"].sums[0] / total["tokens"].sums[0]
        whole = density.sum()
        values["frac_alive"] = anywhere(float((density > 0).mean()), unit="share of features", proportion=True)
        for percent in (1, 10):
            above = density > percent / 100
            share = float(density[above].sum() / whole) if whole > 0 else 0.0
            values[f"freq_over_{percent}_percent"] = anywhere(
                float(above.mean()), unit="share of features", proportion=True
            )
            values[f"normalized_freq_over_{percent}_percent"] = anywhere(
                share, unit="share of firings", proportion=True
            )
        return values


class SAEBenchWeights(SAELensWeights):
    """SAEBench's weight fields, for comparison with numbers that it printed.

    As `saelens_weights`, with the largest cosines between features. Not reproduced: encoder_bias of an SAE without
    b_enc, for which SAEBench prints b_mag (gated SAEs) or zeros. Source: SAEBench 0.6.0
    `get_featurewise_weight_based_metrics`, `calculate_misc_metrics`.

    Values:
        encoder_norm: ‖e_j‖, an array; norm of weights; ≥ 0; no better direction.
        encoder_decoder_cosine_sim: e_j·d_j / ‖e_j‖‖d_j‖, an array; cosine; -1 .. 1; no better direction.
        encoder_bias: b_enc, an array; bias; −∞ .. ∞; no better direction.
        max_encoder_cosine_sim, max_decoder_cosine_sim: largest cosine of a column or row with another, an
            array; cosine; -1 .. 1; no better direction.
        average_max_encoder_cosine_sim, average_max_decoder_cosine_sim: their means; cosine; -1 .. 1; no better
            direction.

    Claims:
        *: the number that SAEBench computes for these tokens in these batches, beside one that it printed; null: none,
            since it is not tested; needs: the same rows of tokens in the same batches; 1 SAE; not: that an SAE is good
            or better than another; use saeval's own values for that.
    """

    name, version = "saebench_weights", 1
    value_names = ("average_max_encoder_cosine_sim", "average_max_decoder_cosine_sim")

    def conclude(self, sae: Substitute) -> dict[str, Value]:
        values = super().conclude(sae)
        for name, rows in (("encoder", sae.weights["W_enc"].T), ("decoder", sae.weights["W_dec"])):
            nearest = largest_cosines(directed(rows), _ROWS)
            values[f"max_{name}_cosine_sim"] = Array(nearest.cpu().numpy(), unit="cosine")
            values[f"average_max_{name}_cosine_sim"] = at_hook(float(nearest.mean()), unit="cosine")
        return values
