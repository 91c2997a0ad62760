"""The metric `perturbation`: the SAE's error compared with noise of the same size, and of the same size and angle."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Literal

import numpy as np
from jaxtyping import Bool, Float, UInt64

from saeval.plugin import Histogram, Mean, Metric, Notes, Repeats, Scalar, Table, Undefined
from saeval_perturbation import noise, scored
from saeval_perturbation.tails import SHARES, ByKL

if TYPE_CHECKING:
    from torch import Tensor

    from saeval.plugin import Evidence, TokenScores, Value

Noise = Literal["cosine_matched_covariance", "shuffled_error", "epsilon"]
NAMES = {
    "cosine_matched": "isotropic noise of the same cosine and norm",
    "cosine_matched_covariance": "noise with the activations' covariance, of the same cosine and norm",
    "shuffled_error": "the SAE's errors at other tokens, of the same cosine and norm",
    "epsilon": "isotropic noise of the same size only",
}
ENDINGS = {null: "" if null == "cosine_matched" else f"_{null}" for null in NAMES}
"""The endings of the names of values that compare with each null; empty for the main null."""
PERCENTILE = "percentile, 0 .. 1"


class Perturbation(Metric):
    """KL and ΔCE of the substitute compared with those of noise matched to it.

    Let u = x/‖x‖, δ = x̂ − x, p = δ·u, δ⊥ = δ − p·u, and v a unit vector perpendicular to u. The matched
    noise x' = x + p·u + ‖δ⊥‖·v has exactly the cosine and norm of x̂ for each token. Variants: sae (x̂);
    cosine_matched (v isotropic); the others in `nulls`: cosine_matched_covariance (v along noise with the
    activations' covariance on the fit split), shuffled_error (v along the SAE's δ at a token of another
    document), epsilon (x + ‖δ‖·g/‖g‖, which matches neither cosine nor norm); norm_only (x·‖x̂‖/‖x‖);
    norm_corrected (x̂·‖x‖/‖x̂‖); zero; mean. Each random variant has `draws` draws per token, keyed by
    (seed, sequence id, position, hook, variant, draw).

    kl_*, delta_ce_*: nats per token in the mask, means over draws. difference = KL_sae − KL_cosine_matched at the
    same tokens, difference_* the same for the other nulls; above 0, the error is more harmful than that noise.
    ratio, ratio_*: the same as Σ KL_sae / Σ KL of the null; ≥ 0, and 1 for noise. percentile, percentile_*: token
    mean of (#{KL_k < KL_sae} + ½#{=} + ½)/(K + 1) over the K draws; 0 .. 1, and ½ if the error behaves like noise.
    P = ½ + (percentile − ½)(K + 1)/K is the share of tokens at which the error is more harmful than a draw. A
    difference is called negligible at a typical token if the 95% interval of P reaches below 0.56 (of a positive
    difference) or above 0.44 (of a negative one); Vargha and Delaney (2000) call a share between these two
    negligible. It is then called a tail effect if, without the 5% of the tokens with the largest mean KL of the
    SAE and its draws, the ratio is less than half as far from 1.

    With `positions`, that many positions of each sequence, chosen by hash, are also perturbed one at a time:
    alone_here_* is the KL at that position, alone_later_* its sum over that position and all later ones in the
    mask, each with ratio and percentile. Cost per batch and subject: 2 +
    (1 + nulls)·draws + positions·(1 + draws) resumes, in addition to those of `kl`. Undefined for hooks of width
    1; differences, ratios and percentiles are undefined if x̂ = x. For x = 0, x' = ‖x̂‖·g/‖g‖.

    Values:
        difference, difference_*: mean of KL_sae − KL of the null at the same token; nats; −∞ .. ∞; lower is
            better.
        kl_sae: token mean of KL(clean‖spliced); nats; ≥ 0; lower is better.
        delta_ce_sae: token mean of the loss with x̂ − the clean loss; nats; −∞ .. ∞; lower is better.
        kl_*: the same KL for each variant, a mean over draws; nats; ≥ 0; no better direction.
        delta_ce_*: the same difference of losses for each variant; nats; −∞ .. ∞; no better direction.
        ratio, ratio_*: Σ KL_sae / Σ KL of the null (above 1, the error is worse than that noise); ratio; ≥ 0;
            lower is better.
        percentile, percentile_*: token mean of (#{KL_k < KL_sae} + ½#{=} + ½) / (K + 1); percentile; 0 .. 1;
            lower is better.
        percentiles, percentiles_*: number of tokens per percentile, a table; tokens; ≥ 0; no better direction.
        tails: share of each difference in the 1% and 5% of the tokens with the largest mean KL of the SAE and the
            draws, and the ratio without these tokens, a table; share, ratio; −∞ .. ∞; no better direction.
        alone_*_sae: KL with one position perturbed, at that position (here) or summed from it on (later); nats;
            ≥ 0; lower is better.
        alone_*_cosine_matched: the same for the matched noise; nats; ≥ 0; no better direction.
        alone_*_ratio: Σ KL_sae / Σ KL of the matched noise, one position at a time; ratio; ≥ 0; lower is
            better.
        alone_*_percentile: the percentile, one position at a time; percentile; 0 .. 1; lower is better.

    Claims:
        difference, difference_*: this SAE's error is more (or less) harmful than that noise, in the mean over
            tokens; null: the noise itself, at the same tokens, a t test by document with Holm's correction over all
            differences and SAEs of the board; needs: 20 documents, 1 SAE, 1 seed; not: that a typical token is
            harmed more (see percentile), that few tokens decide it, unless it is called a tail effect, that the
            error is worse than noise of another kind, or that one hook's SAEs are better than another's.
        percentile, percentile_*: the error is more harmful than a draw of that noise at a share P = ½ + (percentile
            − ½)(K + 1)/K of the tokens, with K draws; null: ½, not tested; needs: 20 documents, 1 SAE, 1 seed; not:
            anything about the mean, which few tokens may decide, about noise of another kind, whose draws spread
            otherwise, or about SAEs at other hooks.
        ratio, ratio_*: the size of the difference as a factor, at this hook; null: 1, tested as difference; needs:
            20 documents, 1 SAE, 1 seed; not: an order of SAEs at different hooks, since the noise differs.
        kl_sae, delta_ce_sae: the SAE's harm to the model's predictions; null: none, see the controls of kl and ce;
            needs: 20 documents, 1 SAE, 1 seed; not: that its error is better or worse than noise.
        kl_*, delta_ce_*: the harm of that variant, to read the SAE's beside it; null: none; needs: 20 documents,
            1 SAE, 1 seed; not: a property of the SAE.
        alone_*_sae, alone_*_cosine_matched: the harm of an error at one position; null: none; needs: 20 documents,
            1 SAE, 1 seed; not: the harm when every token is replaced.
        alone_*_ratio, alone_*_percentile: a description of errors at few positions; null: 1 and ½, not tested;
            needs: 20 documents, 100 effective positions, 1 SAE, 1 seed; not: that an SAE's error is worse or better
            than noise.

    Source: Gurnee 2024 (epsilon); the matched nulls are saeval's own.
    """

    name, version = "perturbation", 3
    headline = ("kl_sae", *(f"difference{ending}" for ending in ENDINGS.values()), "percentile")

    def __init__(
        self, draws: Repeats = 4, positions: Repeats = 0, seed: int = 0,
        nulls: tuple[Noise, ...] = ("cosine_matched_covariance", "shuffled_error", "epsilon"),
    ) -> None:  # fmt: skip
        scored.checked(self.name, draws, positions)
        self.draws, self.positions, self.seed = draws, positions, seed
        self.sampled_scores = not positions  # a perturbed position may not be among the scored ones
        self.nulls = ("cosine_matched", *dict.fromkeys(nulls))
        others = {null: partial(getattr(noise, null), seed=seed) for null in self.nulls[1:]}
        self.interventions = {
            **scored.matched_draws(draws, seed),
            **scored.named_draws(others, draws),
            "norm_only": noise.norm_only,
            "norm_corrected": noise.norm_corrected,
            **scored.alone(draws, positions, seed),
        }
        variants = ("sae", *self.nulls, "norm_only", "norm_corrected", "zero", "mean")
        names = [f"{kind}_{variant}" for kind in ("kl", "delta_ce") for variant in variants]
        names += [f"{kind}{ENDINGS[null]}" for kind in ("difference", "ratio", "percentile") for null in self.nulls]
        self.headline = tuple(name for name in self.headline if name in names)
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
        evidence: dict[str, Evidence] = {"moved": scored.displaced(activations, reconstruction, mask)}
        clean, kl, scored_at = clean_scores.nll.double(), spliced_scores.kl.double(), mask & clean_scores.mask
        single = {name: substitute_scores[name] for name in ("norm_only", "norm_corrected")}
        for name, scores in {"sae": spliced_scores, **single, "zero": zero_scores, "mean": mean_scores}.items():
            evidence[f"kl_{name}"] = Mean.of(scores.kl.double(), scored_at)
            evidence[f"delta_ce_{name}"] = Mean.of(scores.nll.double() - clean, scored_at)
        for null in self.nulls:
            drawn, nll = scored.over_draws(substitute_scores, null, self.draws)
            evidence[f"kl_{null}"] = Mean.of(drawn.mean(0), scored_at)
            evidence[f"delta_ce_{null}"] = Mean.of(nll - clean, scored_at)
            evidence[f"percentile_{null}"] = Mean.of(scored.percentile(kl, drawn), scored_at)
            evidence[f"levels_{null}"] = scored.levels(kl, drawn, scored_at)
            evidence[f"by_kl_{null}"] = ByKL.of(kl, drawn, scored_at)
        if self.positions:
            evidence |= scored.Alone(
                substitute_scores, self.draws, self.positions, self.seed, token_keys, mask
            ).evidence()
        return evidence

    def conclude(self, total: dict[str, Evidence]) -> dict[str, Value]:
        means = {name: evidence for name, evidence in total.items() if isinstance(evidence, Mean)}
        if int(means["kl_sae"].n.sum()) == 0:
            raise Undefined("no token is scored")
        moved = means["moved"].value.value
        values: dict[str, Value] = {}
        for quantity in ("kl", "delta_ce"):
            for variant in ("sae", *self.nulls, "norm_only", "norm_corrected", "zero", "mean"):
                better: Literal["lower"] | None = "lower" if variant == "sae" else None
                name = f"{quantity}_{variant}"
                values[name] = Scalar(means[name].value, unit="nats", better=better)
        tails: list[list[str | float]] = []
        remarks: list[str] = []
        for null in self.nulls:
            ending, sae, noisy = ENDINGS[null], means["kl_sae"].value, means[f"kl_{null}"].value
            mean_percentile, levels, by_kl = (total[f"{kind}_{null}"] for kind in ("percentile", "levels", "by_kl"))
            assert isinstance(mean_percentile, Mean)
            assert isinstance(levels, Histogram)
            assert isinstance(by_kl, ByKL)
            tails += [[null, share, *by_kl.without(share)] for share in SHARES]
            _, rest = by_kl.without(SHARES[-1])
            tested = scored.noise_null(NAMES[null], sae, noisy, mean_percentile.value, self.draws, rest)
            if moved and tested.qualifier:
                remarks.append(scored.REMARKS[tested.qualifier])
            values[f"difference{ending}"] = scored.against_noise(sae - noisy, moved, "nats", tested)
            values[f"ratio{ending}"] = scored.ratio(sae, noisy, moved)
            values[f"percentile{ending}"] = scored.against_noise(mean_percentile.value, moved, PERCENTILE)
            values[f"percentiles{ending}"] = _percentiles(levels, self.draws)
        values["tails"] = Table(["noise", "tokens", "difference", "ratio_of_others"], tails)
        if remarks:
            values["remarks"] = Notes(list(dict.fromkeys(remarks)))
        if self.positions:
            warnings = [warning for what in ("here", "later") if (warning := scored.rare_positions(means, what))]
            if moved and warnings:
                values["rare_positions"] = Notes(warnings)
            for what in ("here", "later"):
                sae, null_kl = means[f"{what}_sae"].value, means[f"{what}_cosine_matched"].value
                values[f"alone_{what}_sae"] = Scalar(sae, unit="nats", better="lower")
                values[f"alone_{what}_cosine_matched"] = Scalar(null_kl, unit="nats")
                values[f"alone_{what}_ratio"] = scored.ratio(sae, null_kl, moved)
                values[f"alone_{what}_percentile"] = scored.against_noise(
                    means[f"{what}_percentile"].value, moved, PERCENTILE
                )
        return values


def _percentiles(levels: Histogram, draws: int) -> Table:
    """Number of tokens per percentile. Without ties, an SAE like noise has equally many at each of K + 1 values."""
    rows = [[(level / 2 + 0.5) / (draws + 1), int(count)] for level, count in enumerate(levels.counts) if count]
    return Table(["percentile", "tokens"], rows)
