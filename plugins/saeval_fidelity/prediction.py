"""Change of the model's next-token predictions with the substitute spliced in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool

from saeval.plugin import Estimate, Evidence, Mean, Metric, Quantiles, Scalar, TokenScores, Undefined, Value, formatting

if TYPE_CHECKING:
    from torch import Tensor

# Bins 1% wide, and one for everything below 1e-12, which float32 does not resolve.
_KL_EDGES = np.concatenate([[0.0], 10 ** np.linspace(-12, 2, 3242)])


class CrossEntropy(Metric):
    """Next-token loss with the substitute spliced in.

    delta_ce = ce_sae − ce_clean; recovered = (ce_ablated − ce_sae) / (ce_ablated − ce_clean). `ablation` names
    the control that ablates: mean, zero or resample. Losses are in nats per token over the mask. recovered is
    1 for a perfect substitute, 0 for one as bad as the ablation, and negative for a worse one. It flatters
    if the ablation is very bad, so its parts are always shown beside it. It is defined only if
    ce_ablated − ce_clean exceeds two standard errors, so never for one document. With `ablation: mean` the
    standard errors of ce_ablated and recovered are given μ, the mean activation that is spliced in: they
    treat it as fixed, although other tokens would give another μ.

    Values:
        ce_clean: token mean of −log p(target) of the model itself; nats; ≥ 0; no better direction.
        ce_sae: the same with x̂ spliced in; nats; ≥ 0; lower is better.
        ce_ablated: the same with the ablation spliced in, its error given μ; nats; ≥ 0; no better direction.
        delta_ce: ce_sae − ce_clean, negative if x̂ happens to help; nats; −∞ .. ∞; lower is better.
        recovered: (ce_ablated − ce_sae) / (ce_ablated − ce_clean), its error given μ; share; −∞ .. ∞, 1 is
            perfect; higher is better.

    Claims:
        ce_clean, ce_ablated: the two ends of the scale of recovered; null: none, since they are the same for all SAEs
            of a hook; needs: 20 effective documents; not: anything about an SAE.
        ce_sae, delta_ce: splicing in this SAE costs less or more of the model's loss on this text than another SAE or
            control; null: a paired difference of 0 to another SAE or to a control of the same model; needs: 20
            effective documents; 1 SAE each; 4 seeds each for a claim about a training method; not: that an SAE without
            detectable cost captures everything the model uses; a cost on other text; that an SAE is better for another
            reason than a higher L0, if their L0 differs.
        recovered: this SAE recovers more of the loss that the ablation costs at this hook than another; null: a paired
            difference of 0 to another SAE or to a control at the same hook; needs: 20 effective documents; 1 SAE each;
            4 seeds each for a claim about a training method; not: that a value near 1 is good without its parts, since
            a bad ablation makes every SAE look good; a comparison of hooks or of ablations.

    Source: Bricken et al. 2023 (loss recovered).
    """

    name, version = "ce", 2
    sampled_scores = True
    headline = ("delta_ce", "recovered")
    value_names = ("ce_clean", "ce_sae", "ce_ablated", "delta_ce", "recovered")

    def __init__(self, ablation: str = "mean") -> None:
        self.ablation = ablation

    def observe(
        self,
        clean_scores: TokenScores,
        spliced_scores: TokenScores,
        ablated_scores: TokenScores,
        mask: Bool[Tensor, "batch seq"],
    ) -> dict[str, Evidence]:
        scored = mask & clean_scores.mask
        return {
            "clean": Mean.of(clean_scores.nll, scored),
            "sae": Mean.of(spliced_scores.nll, scored),
            "ablated": Mean.of(ablated_scores.nll, scored),
        }

    def conclude(self, total: dict[str, Mean]) -> dict[str, Scalar]:
        if int(total["clean"].n.sum()) == 0:
            raise Undefined("no token is scored")
        clean, sae, ablated = (total[name].value for name in ("clean", "sae", "ablated"))
        return {
            "ce_clean": Scalar(clean, unit="nats"),
            "ce_sae": Scalar(sae, unit="nats", better="lower"),
            "ce_ablated": Scalar(ablated, unit="nats"),
            "delta_ce": Scalar(sae - clean, unit="nats", better="lower"),
            "recovered": _share(ablated - sae, ablated - clean, "ce_ablated − ce_clean"),
        }


class KLDivergence(Metric):
    """KL divergence of the next-token distribution with the substitute spliced in from the clean one.

    p is the clean distribution and q the spliced one. kl_score is defined only if kl_ablated exceeds two standard
    errors, so never for one document. The quantiles are interpolated in bins 1% wide; a bootstrap of documents gives
    their errors. With `ablation: mean` the standard errors of kl_ablated and kl_score are given μ, the mean
    activation that is spliced in: they treat it as fixed.

    Values:
        kl_sae: token mean of KL(p‖q); nats; ≥ 0; lower is better.
        kl_ablated: the same for the ablation, its error given μ; nats; ≥ 0; no better direction.
        kl_score: 1 − kl_sae / kl_ablated, its error given μ; share; −∞ .. 1; higher is better.
        kl_p50, kl_p95, kl_p99: quantiles of KL(p‖q) over tokens; nats; ≥ 0; no better direction.
        top1_agreement: share of tokens with argmax p = argmax q; share of tokens; 0 .. 1; higher is better.

    Claims:
        kl_sae: splicing in this SAE changes the predictions less or more than another SAE or control does; null: a
            paired difference of 0 to another SAE or to a control of the same model; needs: 20 effective documents; 1
            SAE each; 4 seeds each for a claim about a training method; not: that the change is harmful, since KL also
            counts changes that lower the loss.
        kl_ablated: the size of the ablation's effect; null: none, since it is the same for all SAEs of a hook; needs:
            20 effective documents; not: anything about an SAE.
        kl_score: this SAE keeps more of the predictions than another, relative to the ablation at this hook; null: a
            paired difference of 0 to another SAE or to a control at the same hook; needs: 20 effective documents; 1 SAE
            each; 4 seeds each for a claim about a training method; not: a comparison of hooks or of ablations.
        kl_p50, kl_p95, kl_p99: typical and worst tokens are affected more or less than by another SAE; null: a paired
            difference of 0 to another SAE or to a control of the same model; needs: 48 documents; 1 SAE each; 4 seeds
            each for a claim about a training method; not: that an error is harmful throughout, if only a high quantile
            differs.
        top1_agreement: the most likely next token stays the same on more or fewer tokens than with another SAE; null: a
            paired difference of 0 to another SAE or to a control of the same model; needs: 20 effective documents; 1
            SAE each; 4 seeds each for a claim about a training method; not: that the predictions are the same; that 1
            on few documents is certain (the interval says how far it may be from 1).

    Source: Braun et al. 2024 (KL of the spliced model).
    """

    name, version = "kl", 2
    sampled_scores = True
    headline = ("kl_sae", "top1_agreement")
    value_names = ("kl_sae", "kl_ablated", "kl_score", "kl_p50", "kl_p95", "kl_p99", "top1_agreement")

    def __init__(self, ablation: str = "mean") -> None:
        self.ablation = ablation

    def observe(
        self, spliced_scores: TokenScores, ablated_scores: TokenScores, mask: Bool[Tensor, "batch seq"]
    ) -> dict[str, Evidence]:
        scored = mask & spliced_scores.mask
        return {
            "sae": Mean.of(spliced_scores.kl, scored),
            "ablated": Mean.of(ablated_scores.kl, scored),
            "agreement": Mean.of(spliced_scores.top1_agreement.double(), scored),
            "quantiles": Quantiles.of(spliced_scores.kl, scored, _KL_EDGES),
        }

    def conclude(self, total: dict[str, Any]) -> dict[str, Value]:
        if int(total["sae"].n.sum()) == 0:
            raise Undefined("no token is scored")
        sae, ablated = total["sae"].value, total["ablated"].value
        quantiles = {f"kl_p{q}": total["quantiles"].scalar(q / 100, unit="nats") for q in (50, 95, 99)}
        return {
            "kl_sae": Scalar(sae, unit="nats", better="lower"),
            "kl_ablated": Scalar(ablated, unit="nats"),
            "kl_score": _share(ablated - sae, ablated, "kl_ablated"),
            **quantiles,
            "top1_agreement": Scalar(
                total["agreement"].value, unit="share of tokens", better="higher", proportion=True
            ),
        }


def _share(part: Estimate, whole: Estimate, name: str) -> Scalar:
    """part / whole; undefined unless the whole exceeds two of its standard errors."""
    if whole.value > 0 and whole.stderr is None:
        reason = f"one document gives no standard error, so nothing shows that {name} is above 0"
    elif whole.value <= 2 * (whole.stderr or 0.0):
        reason = f"{name} is {formatting.with_error(whole.value, whole.stderr)}, not clearly above 0"
    else:
        return Scalar(part / whole, unit="share", better="higher", comparable="hook")
    return Scalar.undefined(reason, unit="share", better="higher")
