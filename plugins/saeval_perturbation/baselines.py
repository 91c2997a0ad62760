"""The SAE's error beside noise of the same size, and of the same size and angle."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Literal

import numpy as np
from jaxtyping import Bool, Float, UInt64

from saeval.plugin import Evidence, Histogram, Mean, Metric, Repeats, Scalar, Table, TokenScores, Undefined, Value
from saeval_perturbation import noise
from saeval_perturbation.scored import (
    Alone,
    alone,
    checked,
    displaced,
    levels,
    matched_draws,
    named_draws,
    over_draws,
    percentile,
    ratio,
    share,
)

if TYPE_CHECKING:
    from torch import Tensor

Null = Literal["cosine_matched_covariance", "shuffled_error", "epsilon"]


class Perturbation(Metric):
    """KL and ΔCE of the substitute beside those of noise matched to it.

    With u = x/‖x‖, δ = x̂ − x, p = δ·u, δ⊥ = δ − p·u and v a unit vector perpendicular to u, the matched
    noise x' = x + p·u + ‖δ⊥‖·v has exactly the cosine and norm of x̂, token by token. Variants:
    sae (x̂); cosine_matched (v isotropic); of `nulls`, cosine_matched_covariance (v along noise with the
    activations' covariance on the fit split), shuffled_error (v along the SAE's δ at a token of
    another document) and epsilon (x + ‖δ‖·g/‖g‖, which matches neither cosine nor norm); norm_only
    (x·‖x̂‖/‖x‖), norm_corrected (x̂·‖x‖/‖x̂‖), zero, mean. Every random one has `draws` draws a token,
    keyed by (seed, sequence id, position, hook, variant, draw).

    kl_* and delta_ce_*: nats a token over the mask, means over draws. ratio = Σ KL_sae / Σ KL of
    cosine_matched, ratio_* against the other nulls: above 1 the error is worse than noise, >= 0.
    percentile, percentile_*: token mean of (#{KL_k < KL_sae} + ½#{=} + ½)/(K + 1), ½ for noise, 0 .. 1.
    `positions`: how many positions of each sequence, chosen by hash, are also perturbed one at a time:
    alone_here_* is the KL at that position, alone_later_* its sum over it and all later ones of the
    mask, with ratio and percentile. Costs 2 + (1 + nulls)·draws + positions·(1 + draws) resumes a
    batch and subject, beside those that `kl` makes. Undefined for hooks of width 1 and, but for the KLs
    themselves, where x̂ = x. Where x = 0, x' = ‖x̂‖·g/‖g‖.

    Values:
        kl_sae: token mean of KL(clean‖spliced); nats; ≥ 0; lower is better.
        delta_ce_sae: token mean of the loss with x̂ − the clean loss; nats; −∞ .. ∞; lower is better.
        kl_*: the same KL for each variant, a mean over draws; nats; ≥ 0; no better direction.
        delta_ce_*: the same difference of losses for each variant; nats; −∞ .. ∞; no better direction.
        ratio, ratio_*: Σ KL_sae / Σ KL of the null, and above 1 the error is worse than that noise; ratio; ≥ 0;
            lower is better.
        percentile, percentile_*: token mean of (#{KL_k < KL_sae} + ½#{=} + ½) / (K + 1); percentile; 0 .. 1;
            lower is better.
        percentiles, percentiles_*: tokens by percentile, a table; tokens; ≥ 0; no better direction.
        alone_*_sae: KL with one position perturbed, at it (here) or summed from it on (later); nats; ≥ 0; lower
            is better.
        alone_*_cosine_matched: the same for the matched noise; nats; ≥ 0; no better direction.
        alone_*_ratio: Σ KL_sae / Σ KL of the matched noise, one position at a time; ratio; ≥ 0; lower is
            better.
        alone_*_percentile: the percentile, one position at a time; percentile; 0 .. 1; lower is better.

    Source: Gurnee 2024 (epsilon), the matched nulls are saeval's own.
    """

    name, version = "perturbation", 1
    headline = ("kl_sae", "kl_cosine_matched", "ratio", "percentile")

    def __init__(
        self, draws: Repeats = 4, positions: Repeats = 0, seed: int = 0,
        nulls: tuple[Null, ...] = ("cosine_matched_covariance", "shuffled_error", "epsilon"),
    ) -> None:  # fmt: skip
        checked(self.name, draws, positions)
        self.draws, self.positions, self.seed = draws, positions, seed
        self.nulls = ("cosine_matched", *dict.fromkeys(nulls))
        others = {null: partial(getattr(noise, null), seed=seed) for null in self.nulls[1:]}
        self.interventions = {
            **matched_draws(draws, seed),
            **named_draws(others, draws),
            "norm_only": noise.norm_only,
            "norm_corrected": noise.norm_corrected,
            **alone(draws, positions, seed),
        }
        variants = ("sae", *self.nulls, "norm_only", "norm_corrected", "zero", "mean")
        names = [f"{kind}_{variant}" for kind in ("kl", "delta_ce") for variant in variants]
        names += [f"{kind}{_suffix(null)}" for kind in ("ratio", "percentile") for null in self.nulls]
        parts = ("sae", "cosine_matched", "ratio", "percentile")
        names += [f"alone_{what}_{part}" for what in ("here", "later") for part in parts] if positions else []
        self.value_names = tuple(names)

    def observe(
        self,
        clean_scores: TokenScores,
        spliced_scores: TokenScores,
        zero_scores: TokenScores,
        mean_scores: TokenScores,
        substitute_scores: dict[str, TokenScores],
        activations: Float[Tensor, "batch seq d_in"],
        reconstruction: Float[Tensor, "batch seq d_in"],
        token_keys: UInt64[np.ndarray, "batch seq"],
        mask: Bool[Tensor, "batch seq"],
    ) -> dict[str, Evidence]:
        found: dict[str, Evidence] = {"moved": displaced(activations, reconstruction, mask)}
        clean = clean_scores.nll.double()
        kl = spliced_scores.kl.double()
        single = {name: substitute_scores[name] for name in ("norm_only", "norm_corrected")}
        for name, scores in {"sae": spliced_scores, **single, "zero": zero_scores, "mean": mean_scores}.items():
            found[f"kl_{name}"] = Mean.of(scores.kl.double(), mask)
            found[f"delta_ce_{name}"] = Mean.of(scores.nll.double() - clean, mask)
        for null in self.nulls:
            drawn, nll = over_draws(substitute_scores, null, self.draws)
            found[f"kl_{null}"] = Mean.of(drawn.mean(0), mask)
            found[f"delta_ce_{null}"] = Mean.of(nll - clean, mask)
            found[f"percentile_{null}"] = Mean.of(percentile(kl, drawn), mask)
            found[f"levels_{null}"] = levels(kl, drawn, mask)
        if self.positions:
            found |= Alone(substitute_scores, self.draws, self.positions, self.seed, token_keys, mask).evidence()
        return found

    def conclude(self, total: dict[str, Evidence]) -> dict[str, Value]:
        means = {name: evidence for name, evidence in total.items() if isinstance(evidence, Mean)}
        if int(means["kl_sae"].n.sum()) == 0:
            raise Undefined("no token is in the mask")
        moved = means["moved"].value.value
        values: dict[str, Value] = {}
        for quantity in ("kl", "delta_ce"):
            for variant in ("sae", *self.nulls, "norm_only", "norm_corrected", "zero", "mean"):
                better: Literal["lower"] | None = "lower" if variant == "sae" else None
                values[f"{quantity}_{variant}"] = Scalar(
                    means[f"{quantity}_{variant}"].value, unit="nats", better=better
                )
        for null in self.nulls:
            suffix = _suffix(null)
            values[f"ratio{suffix}"] = ratio(means["kl_sae"].value, means[f"kl_{null}"].value, moved)
            values[f"percentile{suffix}"] = share(means[f"percentile_{null}"].value, moved)
            levels = total[f"levels_{null}"]
            assert isinstance(levels, Histogram)
            values[f"percentiles{suffix}"] = _percentiles(levels, self.draws)
        if self.positions:
            for what in ("here", "later"):
                sae, null_kl = means[f"{what}_sae"].value, means[f"{what}_cosine_matched"].value
                values[f"alone_{what}_sae"] = Scalar(sae, unit="nats", better="lower")
                values[f"alone_{what}_cosine_matched"] = Scalar(null_kl, unit="nats")
                values[f"alone_{what}_ratio"] = ratio(sae, null_kl, moved)
                values[f"alone_{what}_percentile"] = share(means[f"{what}_percentile"].value, moved)
        return values


def _suffix(null: str) -> str:
    """How the names of values against a null end: those against the main one have no end."""
    return "" if null == "cosine_matched" else f"_{null}"


def _percentiles(levels: Histogram, draws: int) -> Table:
    """Tokens by percentile; without ties at K + 1 values, each with 1/(K + 1) of them if the SAE is like noise."""
    rows = [[(level / 2 + 0.5) / (draws + 1), int(count)] for level, count in enumerate(levels.counts) if count]
    return Table(["percentile", "tokens"], rows)
