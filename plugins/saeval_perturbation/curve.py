"""The metric `perturbation_curve`: KL of noise by cosine at a fixed norm ratio, the SAE's point, and cosine bins."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float, UInt64

from saeval.plugin import Curve, Evidence, Mean, Metric, Repeats, Scalar, TokenScores, Undefined, Value
from saeval_perturbation import noise
from saeval_perturbation.bins import by_cosine, in_bins
from saeval_perturbation.geometry import cosines as cosines_of
from saeval_perturbation.scored import Alone, alone, checked, displaced, matched_draws, over_draws, ratio

if TYPE_CHECKING:
    from torch import Tensor

COSINES = (0.0, 0.25, 0.5, 0.7, 0.8, 0.9, 0.95, 0.97, 0.98, 0.99, 0.995, 0.999, 1.0)


class PerturbationCurve(Metric):
    """KL and ΔCE of noise as a function of its cosine to the activations, with the SAE's own point.

    Curve: x' = r‖x‖(c·u + √(1−c²)·v) for each c of `cosines`, r = `norm_ratio`, u = x/‖x‖ and v an
    isotropic unit vector perpendicular to u. v is the same for every c, so the curve is smooth; it is keyed
    by (seed, sequence id, position, hook). kl and delta_ce: nats per token in the mask, as curves over c.
    kl_floor, delta_ce_floor: the point c = 1, where only the scale is wrong; it is always included. A point
    costs one resume per batch, whatever the number of SAEs at the hook.

    SAE's point: kl_sae and delta_ce_sae at cosine and norm_ratio, all token means. Compare it with noise
    matched to x̂ for each token (kl_cosine_matched, delta_ce_cosine_matched, means over `draws` draws, and
    ratio), never with the curve: the tokens of an SAE have many cosines, a point of the curve has only one.
    `perturbation` with the same parameters shares these draws, and they run once.

    At a hook without an SAE (`hooks:` of a suite): the curve and its floors alone.

    by_cosine, by_cosine_later (with `positions` > 0): `positions` positions of each sequence, chosen by hash,
    are perturbed one at a time. The tables have the same-token difference KL_sae − mean of K matched KLs (at
    that position, or summed over it and all later ones) in fixed bins of the SAE's cosine: mean difference in
    nats, share of tokens at which the SAE is worse, two-sided t test by document. A bin with fewer than 20
    effective documents, or with fewer than 100 effective positions, (Σ|d|)² / Σd² of its differences d, is
    undefined. p values are uncorrected; `saeval report` applies Holm's correction over all bins of both tables
    and all hooks of a run.

    Values:
        kl: token mean of KL(clean‖perturbed) by cosine c, a curve; nats; ≥ 0; no better direction.
        delta_ce: token mean of the perturbed loss − the clean loss, a curve; nats; −∞ .. ∞; no better
            direction.
        kl_floor: kl at c = 1; nats; ≥ 0; no better direction.
        delta_ce_floor: delta_ce at c = 1; nats; −∞ .. ∞; no better direction.
        kl_sae: token mean of KL(clean‖spliced); nats; ≥ 0; lower is better.
        delta_ce_sae: token mean of the spliced loss − the clean loss; nats; −∞ .. ∞; lower is better.
        kl_cosine_matched: the same KL for noise matched to x̂ at each token; nats; ≥ 0; no better direction.
        delta_ce_cosine_matched: the same difference of losses for that noise; nats; −∞ .. ∞; no better
            direction.
        ratio: Σ KL_sae / Σ KL_cosine_matched; ratio; ≥ 0; lower is better.
        cosine: token mean of the cosine of x and x̂; cosine; -1 .. 1; no better direction.
        norm_ratio: token mean of ‖x̂‖ / ‖x‖; ratio; ≥ 0; no better direction.
        by_cosine, by_cosine_later: mean of KL_sae − matched KL per bin of the cosine, with its t test, a table;
            nats; −∞ .. ∞; no better direction.

    Claims:
        kl_sae, delta_ce_sae: the SAE's harm to the model's predictions; null: none, see the controls of kl and ce;
            needs: 20 documents, 1 SAE, 1 seed; not: that its error is better or worse than noise.
        kl_floor, delta_ce_floor: the harm of an error in scale alone, at this hook; null: none; needs: 20
            documents, 1 SAE, 1 seed; not: a floor for SAEs with another norm ratio.
        kl_cosine_matched, delta_ce_cosine_matched: the harm of noise of the SAE's cosine and norm; null: none;
            needs: 20 documents, 1 SAE, 1 seed; not: a property of the hook, since it depends on the SAE's cosines.
        ratio: the SAE's harm as a multiple of that noise's, at this hook; null: 1, tested as perturbation.difference;
            needs: 20 documents, 1 SAE, 1 seed; not: an order of SAEs at different hooks.
        cosine, norm_ratio: where the SAE's point stands on the curve; null: none; needs: 20 documents, 1 SAE, 1 seed;
            not: the SAE's quality, or an order of hooks, whose activations differ in their mean.

    Source: saeval's own definition.
    """

    name, version = "perturbation_curve", 3
    headline = ("kl_sae", "kl_cosine_matched", "ratio")
    value_names = (
        *(f"{kind}_{what}" for kind in ("kl", "delta_ce") for what in ("floor", "sae", "cosine_matched")),
        "ratio", "cosine", "norm_ratio",
    )  # fmt: skip

    def __init__(
        self, cosines: tuple[float, ...] = COSINES, norm_ratio: float = 0.9, draws: Repeats = 4, positions: Repeats = 0,
        seed: int = 0,
    ) -> None:  # fmt: skip
        wrong = [c for c in cosines if not -1 <= c <= 1]
        if wrong:
            raise ValueError(f"metric '{self.name}': cosines must be between -1 and 1, got {wrong[0]:g}")
        if not 0 < norm_ratio < float("inf"):
            raise ValueError(f"metric '{self.name}': norm_ratio must be above 0, got {norm_ratio:g}")
        checked(self.name, draws, positions)
        self.cosines = sorted({*map(float, cosines), 1.0})
        self.norm_ratio, self.draws, self.positions, self.seed = norm_ratio, draws, positions, seed
        self.sampled_scores = not positions  # a perturbed position may not be among the scored ones
        points = {f"c = {c!r}": partial(noise.turned, cosine=c, ratio=norm_ratio, seed=seed) for c in self.cosines}
        self.interventions = {**points, **matched_draws(draws, seed), **alone(draws, positions, seed)}

    def observe(
        self,
        *,
        clean_scores: TokenScores,
        spliced_scores: TokenScores | None = None,
        substitute_scores: dict[str, TokenScores],
        activations: Float[Tensor, "batch seq d_in"],
        reconstruction: Float[Tensor, "batch seq d_in"] | None = None,
        token_keys: UInt64[np.ndarray, "batch seq"],
        mask: Bool[Tensor, "batch seq"],
    ) -> dict[str, Evidence]:
        clean, scored = clean_scores.nll.double(), mask & clean_scores.mask
        evidence: dict[str, Evidence] = {}
        for c in self.cosines:
            scores = substitute_scores[f"c = {c!r}"]
            evidence[f"kl at {c!r}"] = Mean.of(scores.kl.double(), scored)
            evidence[f"delta_ce at {c!r}"] = Mean.of(scores.nll.double() - clean, scored)
        if spliced_scores is None or reconstruction is None:
            return evidence
        drawn, nll = over_draws(substitute_scores, "cosine_matched", self.draws)
        cosine, norm = cosines_of(activations, reconstruction), activations.double().norm(dim=-1)
        evidence |= {
            "moved": displaced(activations, reconstruction, mask),
            "kl_sae": Mean.of(spliced_scores.kl.double(), scored),
            "delta_ce_sae": Mean.of(spliced_scores.nll.double() - clean, scored),
            "kl_cosine_matched": Mean.of(drawn.mean(0), scored),
            "delta_ce_cosine_matched": Mean.of(nll - clean, scored),
            "cosine": Mean.of(cosine, mask & cosine.isfinite()),
            "norm_ratio": Mean.of(reconstruction.double().norm(dim=-1) / norm, mask & (norm > 0)),
        }
        if self.positions:
            single = Alone(substitute_scores, self.draws, self.positions, self.seed, token_keys, mask)
            for span in ("here", "later"):
                difference = single.sae[span] - single.drawn[span].mean(0)
                bins = in_bins(difference, cosine, single.where)
                evidence |= {f"{span} {name}": mean for name, mean in bins.items()}
        return evidence

    def conclude(self, total: dict[str, Mean]) -> dict[str, Value]:
        if int(total["kl at 1.0"].n.sum()) == 0:
            raise Undefined("no token is scored")
        values: dict[str, Value] = {}
        for quantity in ("kl", "delta_ce"):
            points = [total[f"{quantity} at {c!r}"].value for c in self.cosines]
            values[quantity] = Curve(self.cosines, points, "cosine", "nats")
            values[f"{quantity}_floor"] = Scalar(points[-1], unit="nats")
        if "kl_sae" not in total:
            return values
        for quantity in ("kl", "delta_ce"):
            values[f"{quantity}_sae"] = Scalar(total[f"{quantity}_sae"].value, unit="nats", better="lower")
            values[f"{quantity}_cosine_matched"] = Scalar(total[f"{quantity}_cosine_matched"].value, unit="nats")
        moved = total["moved"].value.value
        values["ratio"] = ratio(total["kl_sae"].value, total["kl_cosine_matched"].value, moved)
        for name, unit in (("cosine", "cosine"), ("norm_ratio", "ratio")):
            values[name] = Scalar(total[name].value, unit=unit, comparable="hook")
            if not total[name].n.sum():
                values[name] = Scalar.undefined("every token's reconstruction or activation is zero", unit=unit)
        if self.positions:
            values["by_cosine"] = by_cosine(total, "here ")
            values["by_cosine_later"] = by_cosine(total, "later ")
        return values
