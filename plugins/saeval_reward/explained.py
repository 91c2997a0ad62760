"""The values of `reward_attribution`, from attributions and true effects on fold B."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from saeval.plugin import Array, Curve, Estimate, Mean, Null, Scalar, Table, Undefined, Value, formatting
from saeval_reward.margins import REWARD, margin, share
from saeval_reward.nulls import above_p, bootstrapped, permuted_p, rank_p
from saeval_reward.per_pair import PerPair
from saeval_reward.ranking import Ranking, duplicate_of
from saeval_reward.totals import Attributions, in_fold_b

SHARE = "share of margin"
UNMATCHED = "some of these features are not matched in density"
NOISE = 1e-6
"""Effects below this share of the rewards' root mean square are numeric noise."""
ROWS = {name: name for name in ("features", "error", "bias", "baseline")} | {
    "bias": "b_dec", "total": "sum of rows", "span": "m(x) − m(baseline)",
}  # fmt: skip
"""Labels of the rows in the table."""


class Explained:
    """Attributions, effects and margins of the pairs of fold B."""

    def __init__(
        self, totals: Attributions, ranking: Ranking, pairs: PerPair, index: Mapping[str, int], effects: Mean
    ) -> None:
        self.totals, self.ranking, self.pairs = totals, ranking, pairs
        self._index, self._effects = index, effects
        self._in_b = in_fold_b(pairs.clusters)
        self.margin = pairs.mean(margin(pairs), self._in_b)
        blocks = totals.pairs.shape[1]
        self.block_margin = pairs.ratio(margin(pairs), np.ones(len(pairs)), self._in_b, blocks)

    def effect(self, name: str) -> Estimate:
        """Mean Δr − Δr_after of the set `name` over fold B."""
        return self._effects[self._index[name]].value

    def _mean_effect(self, names: Sequence[str]) -> Estimate:
        """The mean over sets of these names of the same."""
        columns = [self._index[name] for name in names]
        effects = self._effects
        numerator, denominator = (sums[:, columns].mean(1) for sums in (effects.numerator, effects.denominator))
        return dataclasses.replace(effects, numerator=numerator, denominator=denominator).value

    def _in_blocks(self, name: str) -> Estimate:
        """The same effect with errors over the blocks of documents that attributions have."""
        blocks, k = self.totals.pairs.shape[1], self._index[name]

        def summed(rows: Float[np.ndarray, "clusters"]) -> Float[np.ndarray, "blocks"]:
            return np.bincount(np.arange(len(rows)) % blocks, rows, minlength=blocks)

        whole = self._effects[k]
        return dataclasses.replace(
            whole, numerator=summed(whole.numerator), denominator=summed(whole.denominator), n=summed(whole.n)
        ).value

    def completeness(self, steps: int, tolerance: float, baseline: str) -> dict[str, Value]:
        """The gap and the table of rows that sum to the span; `Undefined` if the relative gap exceeds `tolerance`."""
        gap, span = (self.totals.part(name, "AB") for name in ("|gap|", "|span|"))
        relative = gap / span
        if steps == 0:
            reason = "gradient × activation has no completeness"
            values: dict[str, Value] = {
                "completeness_gap": Scalar.undefined(reason, unit=REWARD),
                "relative_gap": Scalar.undefined(reason, unit="share of m(x) − m(baseline)"),
            }
        else:
            if relative.value > tolerance:
                from_mean = "" if baseline == "mean" else ", or 'baseline: mean'"
                why = " (a layer norm is not smooth near zero)" if baseline == "zero" else ""
                raise Undefined(
                    f"attributions are not complete: they miss {formatting.number(relative.value, 2)} of "
                    f"m(x) − m(baseline), more than the tolerance {tolerance:g}; "
                    f"use more 'steps' than {steps}{from_mean}{why}"
                )
            equal = "m(x) = m(baseline) on every text" if span.value == 0 else None
            values = {
                "completeness_gap": Scalar(gap, unit=REWARD, better="lower", comparable="hook"),
                "relative_gap": Scalar(
                    relative, unit="share of m(x) − m(baseline)", better="lower", reason=equal, comparable="hook"
                ),
            }
        lines = []
        for part, label in ROWS.items():
            mean = self.totals.part(part)
            lines.append([label, mean.value, mean.stderr])
        return {**values, "rows": Table(["row", "chosen − rejected", "stderr"], lines)}

    def group(self, k: int, random: int) -> dict[str, Value]:
        """The margin that the top k explain by attribution and by ablation, and the same for the control sets."""
        sets, totals = self.ranking.members, self.totals
        attributed, ablated, kept = totals.on_b(sets[f"top {k}"]), self.effect(f"top {k}"), self.effect(f"kept {k}")

        def reward(value: Estimate | float, **options: Any) -> Scalar:
            return Scalar(value, unit=REWARD, comparable="hook", **options)

        values: dict[str, Value] = {
            f"attributed_{k}": reward(attributed),
            f"attributed_share_{k}": share(attributed, self.block_margin, comparable="hook"),
            f"ablated_{k}": reward(ablated),
            f"ablated_share_{k}": share(ablated, self.margin, comparable="hook"),
            f"attributed_kept_{k}": reward(totals.on_b(sets[f"kept {k}"])),
            f"ablated_kept_{k}": reward(kept),
            f"attributed_swapped_{k}": reward(totals.on_b(sets[f"swapped {k}"])),
        }
        drawn = self._drawn(k, random)
        if random and not drawn:
            few = f"fewer than {k} features without flags are not at the top of the ranking"
            reason = few if len(sets[f"kept {k}"]) else "every feature that fires has a flag"
            names = ("attributed_random", "attributed_random_max", "ablated_random", "ablated_random_max")
            missing = {f"{name}_{k}": Scalar.undefined(reason, unit=REWARD) for name in [*names, "ablated_excess_kept"]}
            return values | missing | {f"unmatched_{k}": Scalar.undefined(reason, unit="features")}
        if drawn:
            everyone = np.concatenate([sets[name] for name in drawn])
            for kind, effect, mean in (
                ("attributed", self._attributed, totals.on_b(everyone) / len(drawn)),
                ("ablated", self.effect, self._mean_effect(drawn)),
            ):
                numbers = np.array([effect(name).value for name in drawn])
                values[f"{kind}_random_{k}"] = reward(mean)
                values[f"{kind}_random_max_{k}"] = reward(float(numbers.max()), n=len(drawn))
            excess, unmatched = kept - mean, self.ranking.unmatched[k]
            features = f"top {k} unflagged features" if k > 1 else "top unflagged feature"
            above = f"more important to the margin through its {features} than through"
            p = max(rank_p(kept.value, numbers), above_p(excess))
            null = Null("random groups", above=above, p=p, qualifier=UNMATCHED if unmatched else None)
            values[f"ablated_excess_kept_{k}"] = reward(excess, null=null)
            values[f"unmatched_{k}"] = Scalar(float(unmatched), unit="features", n=k, comparable="hook")
        return values

    def _drawn(self, k: int, random: int) -> list[str]:
        """The names of the random groups of k features that exist."""
        names = [f"random {k}.{r}" for r in range(random)]
        return [name for name in names if len(self.ranking.members[name])]

    def _attributed(self, name: str) -> Estimate:
        return self.totals.on_b(self.ranking.members[name])

    def agreement(self, top: int, random: int) -> dict[str, Value]:
        """Agreement of attributions with true effects in sign and in rank."""
        kinds = ("feature", "other") if random else ("feature",)
        names = [name for kind in kinds for i in range(top) if len(self.ranking.members[name := f"{kind} {i}"])]
        rewards = np.concatenate([self.pairs["chosen"], self.pairs["rejected"]])
        least = NOISE * float(np.sqrt(np.square(rewards).mean()))
        names = [name for name in names if abs(self.effect(name).value) > least]
        if len(names) < 3:
            reason = f"only {len(names)} features have an effect above numeric noise"
            return {
                "sign_agreement": Scalar.undefined(reason, unit="share of features"),
                "rank_correlation": Scalar.undefined(reason, unit="correlation"),
            }
        x, y = [self._attributed(name) for name in names], [self._in_blocks(name) for name in names]
        numbers = [np.array([estimate.value for estimate in estimates]) for estimates in (x, y)]

        def scalar(value: Estimate | float, p: float, chance: float, closer: str, **options: Any) -> Scalar:
            above = f"closer in its attributions to the {closer} of true effects than"
            null = Null("chance", chance, above=above, p=p)
            return Scalar(value, better="higher", n=len(names), comparable="hook", null=null, **options)

        order = _joint(rank_correlation, x, y)
        p = max(above_p(order), permuted_p(rank_correlation, *numbers))
        transformed = order.apply(np.arctanh).ci95  # Fisher's; none if the correlation is 1
        inside = (math.tanh(transformed[0]), math.tanh(transformed[1])) if transformed else None
        correlation = scalar(order, p, 0.0, "order", unit="correlation", ci95=inside)
        signs, resampled = _joint(sign_agreement, x, y), bootstrapped(sign_agreement, x, y)
        ends = signs.proportion_ci95
        options: dict[str, Any] = {"reason": "fewer than two documents"}
        if ends is not None and len(resampled):
            low, high = np.quantile(resampled, [0.025, 0.975]).tolist()
            support = dataclasses.replace(signs.support, largest_share=0.0)  # no document is left out
            options = {"stderr": float(resampled.std(ddof=1)), "support": support}
            options["ci95"] = min(low, ends[0]), max(high, ends[1])
        p = max(rank_p(-0.5, -resampled), permuted_p(sign_agreement, *numbers))
        agreement = scalar(signs.value, p, 0.5, "signs", unit="share of features", proportion=True, **options)
        return {"sign_agreement": agreement, "rank_correlation": correlation}

    def curves(self, most: int, groups: tuple[int, ...], random: int) -> dict[str, Value]:
        """Margin explained by number of features: by attribution, by ablation, by random groups; and by length."""
        totals = self.totals
        values: dict[str, Value] = {
            "margin": Scalar(self.margin, unit=REWARD),
            "length_explained": Scalar(self._length(), unit=REWARD),
        }
        for suffix, kind, order in (("", "top", self.ranking.order), ("_kept", "kept", self.ranking.kept)):
            x = list(range(1, min(most, len(order)) + 1))
            values[f"cumulative{suffix}"] = Curve(x, [totals.on_b(order[:k]) for k in x], "features", REWARD)
            y = [self.effect(f"{kind} {k}") for k in groups]
            values[f"ablated{suffix}"] = Curve(list(groups), y, "features", REWARD)
        drawn = {k: self._drawn(k, random) for k in groups if self._drawn(k, random)}
        for kind, effect in (("attributed", self._attributed), ("ablated", self.effect)) if drawn else ():
            numbers = [[effect(name).value for name in names] for names in drawn.values()]
            for label, ends in (("min", [min(row) for row in numbers]), ("max", [max(row) for row in numbers])):
                values[f"{kind}_random_{label}"] = Curve(list(drawn), ends, "features", REWARD)
        return values

    def _length(self) -> Estimate:
        """The margin on fold B predicted from the difference in tokens, with a slope fitted on fold A."""
        excess = (self.pairs["chosen_length"] - self.pairs["rejected_length"]).astype(np.float64)
        margins, in_a = margin(self.pairs), ~self._in_b
        below = float(np.square(excess[in_a]).sum())
        slope = float((margins * excess)[in_a].sum()) / below if below else 0.0
        return self.pairs.mean(slope * excess, self._in_b)

    def features(self, top: int, rows: Float[np.ndarray, "d_sae d"]) -> dict[str, Value]:
        """The table of the `top` features, and arrays over all features."""
        first = self.ranking.order[:top]
        earlier = duplicate_of(rows[first])
        lines = []
        for i, feature in enumerate(first.tolist()):
            attributed, effect = self.totals.on_b(first[i : i + 1]), self.effect(f"feature {i}")
            flags = self.ranking.flags(feature)
            twin = earlier[i]
            flags += [] if twin is None else [f"near-duplicate of {first[twin]}"]
            numbers = [attributed.value, attributed.stderr, effect.value, effect.stderr]
            densities = [float(self.totals.density[feature]), float(self.totals.prompt_density[feature])]
            lines.append([i + 1, feature, *numbers, *densities, ", ".join(flags)])
        columns = ["rank", "feature", "attribution", "attribution_stderr", "true_effect", "true_effect_stderr"]
        return {
            "features": Table([*columns, "density", "prompt_density", "flags"], lines),
            "attribution": Array(self.totals.mean, REWARD),
            "density": Array(self.totals.density, "share of tokens"),
            "directions": Array(rows[first]),
        }


def _joint(statistic: Callable[..., Float[np.ndarray, "n"]], x: Sequence[Estimate], y: Sequence[Estimate]) -> Estimate:
    """A statistic of features' attributions x and effects y, recomputed without each block of documents."""
    return x[0].apply(lambda *both: statistic(np.stack(both[: len(x)]), np.stack(both[len(x) :])), *x[1:], *y)


def sign_agreement(x: Float[np.ndarray, "features n"], y: Float[np.ndarray, "features n"]) -> Float[np.ndarray, "n"]:
    """Share of features whose signs agree."""
    return np.asarray((np.sign(x) == np.sign(y)).mean(0))


def rank_correlation(x: Float[np.ndarray, "features n"], y: Float[np.ndarray, "features n"]) -> Float[np.ndarray, "n"]:
    """Spearman's ρ over features."""
    from scipy.stats import rankdata  # late: the import takes a second, and listings do not need it

    a, b = (rankdata(values, axis=0) for values in (x, y))
    a, b = a - a.mean(0), b - b.mean(0)
    with np.errstate(invalid="ignore"):  # all equal: undefined
        return np.asarray((a * b).sum(0) / np.sqrt((a * a).sum(0) * (b * b).sum(0)))
