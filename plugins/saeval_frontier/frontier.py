"""The metric `sparsity_frontier`: the cost of reaching a lower L0 by dropping features of a trained SAE."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from itertools import product
from typing import TYPE_CHECKING, Any

from jaxtyping import Bool, Float

from saeval.plugin import (
    Better,
    Comparable,
    Curve,
    Estimate,
    Evidence,
    Fired,
    Mean,
    Metric,
    Notes,
    Ratio,
    Scalar,
    Spread,
    TokenScores,
    Undefined,
    Value,
    formatting,
    torch,
)
from saeval_frontier.pruning import FILLS, ORDERS, PruneOrders, Target, pruned

if TYPE_CHECKING:
    from torch import Tensor

QUALITIES: Mapping[str, tuple[str, Better]] = {
    "delta_ce": ("nats", "lower"),
    "recovered": ("share", "higher"),
    "kl": ("nats", "lower"),
    "explained_variance": ("share of variance", "higher"),
}
"""Unit and direction of each value that has a curve over L0."""
COMPARABLE: Mapping[str, Comparable] = {"recovered": "hook", "explained_variance": "hook"}
"""The rows that a value may be compared with; those of the same model for all others."""
FEATURES = "features"


class SparsityFrontier(Metric):
    """Quality of an SAE as its features are dropped, as curves over L0.

    Features are dropped in four orders, all from the fit split: by descending frequency (`most_frequent`), by
    ascending frequency, by least mean contribution |E f|·‖d‖ with d the feature's decoder row, and at random, in
    one draw keyed by `seed`. A point drops the fewest features whose removal brings the L0 on the fit split down
    to its target: a share of the SAE's own L0 (`fractions`) or a number of features per token (`l0`). A target
    above the SAE's own L0 has no point. Features are dropped after the activation function, so TopK does not
    refill. `zero` sets them to 0; `mean` sets them to their mean over the tokens of the fit split. The latter is
    a change of b_dec, so a dropped feature never counts in L0.

    @TARGET is a fraction, as in delta_ce_most_frequent_zero@0.5, or L0=NUMBER. On the fit split, the L0 of a point is
    below its target by less than the frequency of one feature. The L0 that belongs to a point is measured on the
    evaluated tokens, and may also be slightly above the target. Each point costs one resume per batch; all share one
    clean pass and one encode. `ablation` is that of recovered, as in `ce`. The errors are given the order, the means
    and the ablation's constant: they treat them as fixed.

    Values:
        l0: mean number of features that fire per token, none dropped; features; 0 .. d_sae; no better direction.
        l0_*@*: the same of the features that are left; features; 0 .. d_sae; no better direction.
        delta_ce, delta_ce_*@*: spliced loss − clean loss, of the whole and of the pruned SAE; nats; −∞ .. ∞;
            lower is better.
        recovered, recovered_*@*: (ablated loss − spliced loss) / (ablated loss − clean loss); share; −∞ .. ∞;
            higher is better.
        kl, kl_*@*: token mean of KL(clean‖spliced); nats; ≥ 0; lower is better.
        explained_variance, explained_variance_*@*: 1 − Σ‖x − x̂‖² / Σ‖x − μ‖²; share of variance; −∞ .. 1; higher
            is better.
        delta_ce_*, kl_*: the points of an order and fill over L0, a curve; nats; −∞ .. ∞; lower is better.
        recovered_*, explained_variance_*: the same, a curve; share; −∞ .. 1; higher is better.

    Claims:
        l0, l0_*@*: the size of a feature set, beside which the other values are read; null: none, since targets set it;
            needs: 20 effective documents; 1 SAE; not: that fewer features are more interpretable.
        delta_ce, kl: splicing in this SAE costs less or more than another SAE or control; null: a paired difference of
            0 to another SAE or to a control of the same model; needs: 20 effective documents; 1 SAE each; 4 seeds each
            for a claim about a training method; not: that an SAE is better for another reason than a higher L0, if
            their L0 differs.
        recovered, explained_variance: this SAE keeps more of the model's loss or of the activations than another;
            null: a paired difference of 0 to another SAE or to a control at the same hook; needs: 20 effective
            documents; 1 SAE each; 4 seeds each for a claim about a training method; not: a comparison of hooks or of
            ablations.
        delta_ce_*@*, kl_*@*: dropping features in this order costs more or less than dropping them in another, or than
            SAEs trained at that L0; null: a paired difference of 0 to the other order, or a gap of 0 to the trained
            SAEs at equal L0, on a line in log L0 (`saeval frontier`), with Holm's correction; needs: 20 effective
            documents; 1 SAE for two orders, 2 trained SAEs of one family for a gap; 4 seeds each for a claim about a
            training method; not: that frequent features are worth more or less one by one, or a claim about random
            orders, since there is one draw.
        recovered_*@*, explained_variance_*@*: the same for these values, at one hook; null: a paired difference of 0 to
            the other order, or a gap of 0 to the trained SAEs at equal L0, on a line in log L0, with Holm's correction;
            needs: 20 effective documents; 1 SAE for two orders, 2 trained SAEs of one family for a gap; 4 seeds each
            for a claim about a training method; not: a comparison of hooks or of ablations.

    Source: saeval's own definition.
    """

    name, version = "sparsity_frontier", 1
    sampled_scores = True

    def __init__(
        self, fractions: tuple[float, ...] = (0.75, 0.5, 0.25), l0: tuple[float, ...] = (),
        orders: tuple[str, ...] = ORDERS, fills: tuple[str, ...] = FILLS, ablation: str = "mean", seed: int = 0,
    ) -> None:  # fmt: skip
        for name, given, known in (("orders", orders, ORDERS), ("fills", fills, FILLS)):
            if not given or set(given) - set(known):
                wrong = next(iter(set(given) - set(known)), "none")
                raise ValueError(f"metric '{self.name}': {name} must be from {', '.join(known)}, got {wrong}")
        for name, amounts, most in (("fractions", fractions, 1.0), ("l0", l0, math.inf)):
            if wrong_amounts := [amount for amount in amounts if not 0 < amount <= most or amount == math.inf]:
                limits = "above 0 and at most 1" if most == 1 else "above 0"
                raise ValueError(f"metric '{self.name}': {name} must be {limits}, got {wrong_amounts[0]:g}")
        if not fractions and not l0:
            raise ValueError(f"metric '{self.name}': give at least one target in 'fractions' or 'l0'")
        targets = [Target(float(f), True) for f in sorted(fractions, reverse=True)]
        targets += [Target(float(n), False) for n in sorted(l0, reverse=True)]
        self.targets = list({str(target): target for target in targets}.values())
        self.orders, self.fills, self.ablation, self.seed = tuple(orders), tuple(fills), ablation, seed
        self.interventions = {
            point(order, fill, target): partial(pruned, order=order, fill=fill, target=target)
            for order, fill, target in product(self.orders, self.fills, self.targets)
        }
        self.main = ("delta_ce",)
        self.headline = ("l0", "delta_ce", f"delta_ce_{point(self.orders[0], self.fills[0], self.targets[-1])}")
        self.value_names = (
            "l0", *QUALITIES, *(f"l0_{o}@{t}" for o, t in product(self.orders, self.targets)),
            *(f"{quality}_{name}" for quality, name in product(QUALITIES, self.interventions)),
        )  # fmt: skip

    def observe(
        self,
        clean_scores: TokenScores,
        spliced_scores: TokenScores,
        ablated_scores: TokenScores,
        substitute_scores: dict[str, TokenScores],
        substitute_activations: dict[str, Float[Tensor, "batch seq d_in"]],
        activations: Float[Tensor, "batch seq d_in"],
        reconstruction: Float[Tensor, "batch seq d_in"],
        fired: Fired,
        prune_orders: PruneOrders,
        mask: Bool[Tensor, "batch seq"],
    ) -> dict[str, Evidence]:
        scored = mask & clean_scores.mask
        evidence: dict[str, Evidence] = {
            "clean": Mean.of(clean_scores.nll, scored),
            "ablated": Mean.of(ablated_scores.nll, scored),
            "l0": Mean.of(fired.per_token().to(mask.device), mask),
        }
        batch, seq, _ = fired.shape
        for order, target in product(self.orders, self.targets):
            kept = torch.from_numpy(~prune_orders.dropped(order, target)).to(fired.feature.device)
            counts = torch.bincount(fired.token[kept[fired.feature]], minlength=batch * seq).view(batch, seq)
            evidence[f"l0_{order}@{target}"] = Mean.of(counts.to(mask.device), mask)
        cases = {"": (spliced_scores, reconstruction)}
        cases |= {f"_{name}": (scores, substitute_activations[name]) for name, scores in substitute_scores.items()}
        x = activations.double()
        for name, (scores, x_hat) in cases.items():
            evidence[f"nll{name}"] = Mean.of(scores.nll, scored)
            evidence[f"kl{name}"] = Mean.of(scores.kl, scored)
            evidence[f"mse{name}"] = Mean.of((x - x_hat.double()).square().sum(-1), mask)
        return evidence

    def conclude(
        self,
        total: dict[str, Mean],
        prune_orders: PruneOrders,
        activation_spread: Spread,
        activation_mean: Float[Tensor, "d_in"],
    ) -> dict[str, Value]:
        if int(total["clean"].n.sum()) == 0:
            raise Undefined("no token is scored")
        variance = activation_spread.around(activation_mean.numpy())
        clean, ablated = total["clean"].value, total["ablated"].value
        ablation_cost = ablated - clean
        reason = _not_above_zero(ablation_cost)

        def qualities(case: str) -> dict[str, Estimate]:
            nll, fvu = total[f"nll{case}"].value, Ratio(total[f"mse{case}"].numerator, variance, activation_spread.n)
            return {
                "delta_ce": nll - clean,
                "recovered": (ablated - nll) / ablation_cost,
                "kl": total[f"kl{case}"].value,
                "explained_variance": 1 - fvu.value,
            }

        def scalar(quality: str, estimate: Estimate | None, why: str) -> Scalar:
            unit, better = QUALITIES[quality]
            if why := why or (reason if quality == "recovered" else ""):
                return Scalar.undefined(why, unit=unit, better=better)
            return Scalar(estimate, unit=unit, better=better, comparable=COMPARABLE.get(quality, "model"))

        whole, l0 = qualities(""), total["l0"].value
        count = partial(Scalar, unit=FEATURES, comparable="everywhere")
        values: dict[str, Value] = {"l0": count(l0)}
        values |= {quality: scalar(quality, whole[quality], "") for quality in QUALITIES}
        above = [target for target in self.targets if not prune_orders.reaches(target)]
        missing = dict.fromkeys(above, f"the SAE's L0 is {formatting.number(prune_orders.l0)}, below the target")
        for order in self.orders:
            left = {target: total[f"l0_{order}@{target}"].value for target in self.targets}
            for target, estimate in left.items():
                why = missing.get(target)
                named = f"l0_{order}@{target}"
                values[named] = Scalar.undefined(why, unit=FEATURES) if why else count(estimate)
            for fill in self.fills:
                at = {target: qualities(f"_{point(order, fill, target)}") for target in self.targets}
                for (target, estimates), quality in product(at.items(), QUALITIES):
                    why = missing.get(target, "")
                    values[f"{quality}_{point(order, fill, target)}"] = scalar(quality, estimates[quality], why)
                points = sorted((t for t in self.targets if t not in missing), key=lambda t: -left[t].value)
                for quality in QUALITIES:
                    if quality == "recovered" and reason:
                        continue
                    y = [whole[quality], *(at[target][quality] for target in points)]
                    x = [l0.value, *(left[target].value for target in points)]
                    values[f"{quality}_{order}_{fill}"] = Curve(x, y, FEATURES, *QUALITIES[quality])
        if above:
            targets = ", ".join(f"{target.amount:.12g}" for target in above)
            values["notes"] = Notes([f"sparsity_frontier: an SAE has a lower L0 than its target {targets}"])
        return values


def point(order: str, fill: str, target: Target) -> str:
    """Return the name of a point of a curve."""
    return f"{order}_{fill}@{target}"


def _not_above_zero(cost: Estimate) -> str:
    """Return why the ablation's cost cannot be divided by; empty if it is two standard errors above 0."""
    if cost.stderr is not None and cost.value > 2 * cost.stderr:
        return ""
    return f"ce_ablated − ce_clean is {formatting.with_error(cost.value, cost.stderr)}, not clearly above 0"


def curve_points(values: Mapping[str, Any], order: str, fill: str) -> list[str]:
    """Return the names of the points `ORDER_FILL@TARGET` that a result's curve has."""
    start = f"delta_ce_{order}_{fill}@"
    names = [name for name, record in values.items() if name.startswith(start) and record["value"] is not None]
    return [name.removeprefix("delta_ce_") for name in names]


def l0_of(name: str) -> str:
    """Return the name of the L0 of a point `ORDER_FILL@TARGET`."""
    curve, _, target = name.partition("@")
    return f"l0_{curve.rpartition('_')[0]}@{target}"
