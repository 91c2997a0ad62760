"""The values of `reward_attribution`, from attributions and true effects on fold B."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float

from saeval.plugin import Array, Curve, Estimate, Mean, Scalar, Table, Undefined, Value, formatting
from saeval_reward.margins import REWARD, margin, share
from saeval_reward.per_pair import PerPair
from saeval_reward.ranking import Ranking, duplicate_of
from saeval_reward.totals import Attributions, in_fold_b

SHARE = "share of margin"
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
        self._in_b = in_fold_b(pairs.ids)
        self.margin = pairs.mean(margin(pairs), self._in_b)
        blocks = totals.pairs.shape[1]
        self.block_margin = pairs.ratio(margin(pairs), np.ones(len(pairs)), self._in_b, blocks)

    def effect(self, name: str) -> Estimate:
        """Mean Δr − Δr_after of the set `name` over fold B."""
        return self._effects[self._index[name]].value

    def completeness(self, steps: int, tolerance: float, baseline: str) -> dict[str, Value]:
        """The gap and the table of rows that sum to the span; `Undefined` if the relative gap exceeds `tolerance`."""
        gap, span = self.totals.part("|gap|"), self.totals.part("|span|")
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
                "completeness_gap": Scalar(gap, unit=REWARD, better="lower"),
                "relative_gap": Scalar(relative, unit="share of m(x) − m(baseline)", better="lower", reason=equal),
            }
        lines = []
        for part, label in ROWS.items():
            mean = self.totals.part(part)
            lines.append([label, mean.value, mean.stderr])
        return {**values, "rows": Table(["row", "chosen − rejected", "stderr"], lines)}

    def group(self, k: int, random: int) -> dict[str, Value]:
        """The margin that the top k explain by attribution and by ablation, and the same for the control sets."""
        sets, totals = self.ranking.members, self.totals
        attributed, ablated = totals.on_b(sets[f"top {k}"]), self.effect(f"top {k}")
        values: dict[str, Value] = {
            f"attributed_{k}": Scalar(attributed, unit=REWARD),
            f"attributed_share_{k}": share(attributed, self.block_margin),
            f"ablated_{k}": Scalar(ablated, unit=REWARD),
            f"ablated_share_{k}": share(ablated, self.margin),
            f"attributed_kept_{k}": Scalar(totals.on_b(sets[f"kept {k}"]), unit=REWARD),
            f"ablated_kept_{k}": Scalar(self.effect(f"kept {k}"), unit=REWARD),
            f"attributed_swapped_{k}": Scalar(totals.on_b(sets[f"swapped {k}"]), unit=REWARD),
        }
        if random:
            drawn = [f"random {k}.{r}" for r in range(random)]
            for kind, estimates in (
                ("attributed", [totals.on_b(sets[name]) for name in drawn]),
                ("ablated", [self.effect(name) for name in drawn]),
            ):
                numbers = np.array([estimate.value for estimate in estimates])
                mean = sum(estimates[1:], estimates[0]) / len(estimates)
                high = float(np.quantile(np.abs(numbers), 0.975))
                values[f"{kind}_random_{k}"] = Scalar(mean, unit=REWARD)
                values[f"{kind}_random_high_{k}"] = Scalar(high, unit=f"|{REWARD}|", n=random)
        return values

    def agreement(self, top: int, random: int) -> dict[str, Value]:
        """Agreement of attributions with true effects in sign and in rank."""
        from scipy.stats import spearmanr  # late: the import takes a second, and listings do not need it

        names = [f"feature {i}" for i in range(top)] + [f"random 1.{r}" for r in range(random)]
        features = {int(m[0]): n for n in names if len(m := self.ranking.members[n])}  # one drawn twice counts once
        rewards = np.concatenate([self.pairs["chosen"], self.pairs["rejected"]])
        least = NOISE * float(np.sqrt(np.square(rewards).mean()))
        points = [(self.totals.on_b(np.array([j])).value, self.effect(name).value) for j, name in features.items()]
        x, y = np.array([point for point in points if abs(point[1]) > least]).reshape(-1, 2).T
        unit = "share of features"
        if len(x) < 3:
            reason = f"only {len(x)} features have an effect above numeric noise"
            return {
                "sign_agreement": Scalar.undefined(reason, unit=unit),
                "rank_correlation": Scalar.undefined(reason, unit="correlation"),
            }
        agree, correlation = float((np.sign(x) == np.sign(y)).mean()), float(spearmanr(x, y).statistic)
        return {
            "sign_agreement": Scalar(agree, unit=unit, better="higher", n=len(x)),
            "rank_correlation": Scalar(correlation, unit="correlation", better="higher", n=len(x)),
        }

    def curves(self, most: int, groups: tuple[int, ...], random: int) -> dict[str, Value]:
        """Margin explained by number of features: by attribution, by ablation, by random groups; and by length."""
        totals, sets = self.totals, self.ranking.members
        values: dict[str, Value] = {
            "margin": Scalar(self.margin, unit=REWARD),
            "length_explained": Scalar(self._length(), unit=REWARD),
        }
        for suffix, kind, order in (("", "top", self.ranking.order), ("_kept", "kept", self.ranking.kept)):
            x = list(range(1, min(most, len(order)) + 1))
            values[f"cumulative{suffix}"] = Curve(x, [totals.on_b(order[:k]) for k in x], "features", REWARD)
            y = [self.effect(f"{kind} {k}") for k in groups]
            values[f"ablated{suffix}"] = Curve(list(groups), y, "features", REWARD)
        if random:
            for kind, value in (("attributed", lambda name: totals.on_b(sets[name]).value), ("ablated", self._value)):
                drawn = np.array([[value(f"random {k}.{r}") for r in range(random)] for k in groups])
                for label, points in (("low", 0.025), ("high", 0.975)):
                    y = np.quantile(drawn, points, axis=1).tolist()
                    values[f"{kind}_random_{label}"] = Curve(list(groups), y, "features", REWARD)
        return values

    def _value(self, name: str) -> float:
        return self.effect(name).value

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
