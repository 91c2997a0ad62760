"""What is concluded of attributions and true effects on fold B."""

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
"""What the rows of the table are called."""


class Explained:
    """Attributions, effects and margins of the pairs of fold B, set side by side."""

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
        """Mean Δr − Δr_after of a set, over fold B."""
        return self._effects[self._index[name]].value

    def completeness(self, steps: int, tolerance: float, baseline: str) -> dict[str, Value]:
        """PerPair that sum up, and the gap; `Undefined` where it is beyond `tolerance`."""
        gap, span = self.totals.part("|gap|"), self.totals.part("|span|")
        relative = gap / span
        if steps == 0:
            why = "gradient × activation has no completeness"
            values: dict[str, Value] = {
                "completeness_gap": Scalar.undefined(why, unit=REWARD),
                "relative_gap": Scalar.undefined(why, unit="share of m(x) − m(baseline)"),
            }
        else:
            if relative.value > tolerance:
                other = "" if baseline == "mean" else ", or 'baseline: mean'"
                why = (
                    ", since a line from zero crosses a layer norm where nothing is smooth"
                    if baseline == "zero"
                    else ""
                )
                raise Undefined(
                    f"attributions are not complete: they miss {formatting.number(relative.value, 2)} of "
                    f"m(x) − m(baseline), more than the tolerance {tolerance:g}; "
                    f"take more 'steps' than {steps}{other}{why}"
                )
            reason = "m(x) is m(baseline) everywhere" if span.value == 0 else None
            values = {
                "completeness_gap": Scalar(gap, unit=REWARD, better="lower"),
                "relative_gap": Scalar(relative, unit="share of m(x) − m(baseline)", better="lower", reason=reason),
            }
        lines = []
        for part in ROWS:
            mean = self.totals.part(part)
            lines.append([ROWS[part], mean.value, mean.stderr])
        return {**values, "rows": Table(["row", "chosen − rejected", "stderr"], lines)}

    def group(self, k: int, random: int) -> dict[str, Value]:
        """The margin that the top k explain, in attribution and in true ablation, beside what others do."""
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
            for kind, found in (
                ("attributed", [totals.on_b(sets[name]) for name in drawn]),
                ("ablated", [self.effect(name) for name in drawn]),
            ):
                numbers = np.array([one.value for one in found])
                mean = sum(found[1:], found[0]) / len(found)
                high = float(np.quantile(np.abs(numbers), 0.975))
                values[f"{kind}_random_{k}"] = Scalar(mean, unit=REWARD)
                values[f"{kind}_random_high_{k}"] = Scalar(high, unit=f"|{REWARD}|", n=random)
        return values

    def agreement(self, top: int, random: int) -> dict[str, Value]:
        """Whether attributions tell the signs and the order of true effects."""
        from scipy.stats import spearmanr  # late: it takes a second, which listings need not wait

        names = [f"feature {i}" for i in range(top)] + [f"random 1.{r}" for r in range(random)]
        found = {int(m[0]): n for n in names if len(m := self.ranking.members[n])}  # a feature drawn twice counts once
        rewards = np.concatenate([self.pairs["chosen"], self.pairs["rejected"]])
        least = NOISE * float(np.sqrt(np.square(rewards).mean()))
        both = [(self.totals.on_b(np.array([j])).value, self.effect(name).value) for j, name in found.items()]
        kept = np.array([pair for pair in both if abs(pair[1]) > least]).reshape(-1, 2)
        unit = "share of features"
        if len(kept) < 3:
            reason = f"only {len(kept)} features have an effect above numeric noise"
            return {
                "sign_agreement": Scalar.undefined(reason, unit=unit),
                "rank_correlation": Scalar.undefined(reason, unit="correlation"),
            }
        agree = float((np.sign(kept[:, 0]) == np.sign(kept[:, 1])).mean())
        return {
            "sign_agreement": Scalar(agree, unit=unit, better="higher", n=len(kept)),
            "rank_correlation": Scalar(
                float(spearmanr(kept[:, 0], kept[:, 1]).statistic), unit="correlation", better="higher", n=len(kept)
            ),
        }

    def curves(self, most: int, groups: tuple[int, ...], random: int) -> dict[str, Value]:
        """Margin explained against the number of features: by attribution, by ablation, by random groups, by length."""
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
            for kind, one in (("attributed", lambda name: totals.on_b(sets[name]).value), ("ablated", self._value)):
                drawn = np.array([[one(f"random {k}.{r}") for r in range(random)] for k in groups])
                for label, points in (("low", 0.025), ("high", 0.975)):
                    y = np.quantile(drawn, points, axis=1).tolist()
                    values[f"{kind}_random_{label}"] = Curve(list(groups), y, "features", REWARD)
        return values

    def _value(self, name: str) -> float:
        return self.effect(name).value

    def _length(self) -> Estimate:
        """What length explains on fold B: the slope of the margin on the difference in tokens, from fold A."""
        longer = (self.pairs["chosen_length"] - self.pairs["rejected_length"]).astype(np.float64)
        margins, in_a = margin(self.pairs), ~self._in_b
        below = float(np.square(longer[in_a]).sum())
        slope = float((margins * longer)[in_a].sum()) / below if below else 0.0
        return self.pairs.mean(slope * longer, self._in_b)

    def features(self, top: int, rows: Float[np.ndarray, "d_sae d"]) -> dict[str, Value]:
        """The table of the first features, and what is known of every feature."""
        first = self.ranking.order[:top]
        same = duplicate_of(rows[first])
        lines = []
        for i, feature in enumerate(first.tolist()):
            attributed, effect = self.totals.on_b(first[i : i + 1]), self.effect(f"feature {i}")
            flags = self.ranking.flags(feature)
            earlier = same[i]
            flags += [] if earlier is None else [f"near-duplicate of {first[earlier]}"]
            numbers = [attributed.value, attributed.stderr, effect.value, effect.stderr]
            often = [float(self.totals.density[feature]), float(self.totals.prompt_density[feature])]
            lines.append([i + 1, feature, *numbers, *often, ", ".join(flags)])
        columns = ["rank", "feature", "attribution", "attribution_stderr", "true_effect", "true_effect_stderr"]
        return {
            "features": Table([*columns, "density", "prompt_density", "flags"], lines),
            "attribution": Array(self.totals.mean, REWARD),
            "density": Array(self.totals.density, "share of tokens"),
            "directions": Array(rows[first]),
        }
