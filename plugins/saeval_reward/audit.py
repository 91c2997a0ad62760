"""The metric `counterfactual_audit`: the top features by attribution that an edit added and removed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from jaxtyping import Bool, Float

from saeval.plugin import Batch, Evidence, Mean, Metric, Notes, Ratio, Repeats, Scalar, Table, Value, torch
from saeval_reward.contexts import Contexts
from saeval_reward.margins import in_unit, margin, warnings
from saeval_reward.per_pair import PerPair, Top
from saeval_reward.ranking import Ranking
from saeval_reward.totals import Attributions

if TYPE_CHECKING:
    from torch import Tensor

EXAMPLES, CHARACTERS = 20, 1000


class CounterfactualAudit(Metric):
    """Top features by attribution that an edit of a completion adds and removes, including side effects of the edit.

    One side of each pair is the `original` (chosen or rejected), the other is its edit. Its features are
    the `top` by |mean attribution| on fold A of these pairs. attribution is that of `reward_attribution`: the mean over
    fold B of chosen − rejected, so positive raises the margin. removed = share of all pairs in which a feature fires
    at t ≥ s on the original but not on the edit; added = the reverse; change_removed and change_added = mean of
    r(edit) − r(original) over those pairs, in units of the reward: positive if the edit raises the reward.
    removed_a_pair and added_a_pair are the mean
    numbers of these features that an edit removes and adds; reward_change is the mean over all pairs. A
    removed feature that the edit was not about is a side effect: an edit that cuts the last words also cuts the
    final punctuation. steps, baseline, frequent as in `reward_attribution`; `contexts` shows each feature.

    Values:
        reward_change: mean of r(edit) − r(original); reward; −∞ .. ∞; no better direction.
        removed_a_pair, added_a_pair: mean number of top features that an edit removes, adds; features; 0 ..
            `top`; no better direction.
        features: the top features with attribution, removed, added and changes of reward, a table; reward, share
            of pairs; −∞ .. ∞; no better direction.
        examples: the pairs whose reward changed most, a table; reward; −∞ .. ∞; no better direction.
        contexts: tokens on which the features fire most, a table; activation; −∞ .. ∞; no better direction.

    Claims:
        reward_change: the edit changes the reward by this much; null: 0, by the interval; needs: 20 documents, 0
            SAEs, 0 seeds at least; not: which part of the edit did it.
        removed_a_pair, added_a_pair: how many top features an edit switches off or on; null: none; needs: 20
            documents, 1 SAE, 1 seed at least; not: that these features cause the change of the reward: other
            parts of the text change with them.

    Source: saeval's own definition.
    """

    name, version, data = "counterfactual_audit", 3, "pair"
    value_names = ("reward_change", "removed_a_pair", "added_a_pair")

    def __init__(
        self, original: Literal["chosen", "rejected"] = "chosen", steps: Repeats = 16, baseline: str = "mean",
        top: Repeats = 20, frequent: float = 0.1, contexts: Repeats = 3,
    ) -> None:  # fmt: skip
        if top < 1 or contexts < 0 or steps < 0:
            raise ValueError("metric 'counterfactual_audit': 'top' must be at least 1, 'contexts' and 'steps' 0")
        self.original, self.top, self.contexts = original, top, contexts

    def observe(
        self,
        feature_acts: Sequence[Float[Tensor, "batch seq d_sae"]],
        clean_reward: Sequence[Float[Tensor, "batch"]],
        feature_ranking: Ranking,
        mask: Sequence[Bool[Tensor, "batch seq"]],
        batch: Sequence[Batch],
        spelling: Sequence[Callable[[Sequence[int]], list[str]]],
    ) -> dict[str, Evidence]:
        order = feature_ranking.order[: self.top]
        features = torch.from_numpy(order.copy()).to(mask[0].device)
        acts = [f[..., features] for f in feature_acts]
        fires = [((f != 0) & inside[..., None]).any(1) for f, inside in zip(acts, mask, strict=True)]
        original = 0 if self.original == "chosen" else 1
        before, after = fires[original], fires[1 - original]
        change = (clean_reward[1 - original] - clean_reward[original]).double()
        removed, added = (before & ~after).double()[:, None], (after & ~before).double()[:, None]
        per_feature = change[:, None, None]
        return {
            "removed": Mean.of(removed),
            "added": Mean.of(added),
            "kept": Mean.of((before & after).double()[:, None]),
            "change": Mean.of(change),
            "change_removed": Ratio.of(removed * per_feature, removed),
            "change_added": Ratio.of(added * per_feature, added),
            "contexts": Contexts.of(acts, mask, batch, spelling, self.contexts),
            "examples": _examples(order, removed[:, 0] > 0, added[:, 0] > 0, change),
        }

    def conclude(
        self, total: dict[str, Any], attribution_totals: Attributions, feature_ranking: Ranking, margin_rows: PerPair,
        reward_unit: str,
    ) -> dict[str, Value]:  # fmt: skip
        features = feature_ranking.order[: self.top]
        lines = []
        for i, feature in enumerate(features.tolist()):
            numbers = [total[name][i].value.value for name in ("removed", "added", "kept")]
            changes = [total[name][i].value.value for name in ("change_removed", "change_added")]
            attributed = float(attribution_totals.mean[feature])
            lines.append([i + 1, feature, attributed, *numbers, *changes, ", ".join(feature_ranking.flags(feature))])
        columns = ["rank", "feature", "attribution", "removed", "added", "kept", "change_removed", "change_added"]
        examples = total["examples"]
        shown = zip(examples.ids.tolist(), examples.text.tolist(), strict=True)
        sign = -1.0 if self.original == "chosen" else 1.0  # margins are of chosen − rejected
        change = {int(i): sign * float(m) for i, m in zip(margin_rows.ids, margin(margin_rows), strict=True)}
        values: dict[str, Value] = {
            "reward_change": Scalar(total["change"].value, unit="reward"),
            "removed_a_pair": Scalar(_summed(total["removed"]), unit="features", comparable="hook"),
            "added_a_pair": Scalar(_summed(total["added"]), unit="features", comparable="hook"),
            "features": Table([*columns, "flags"], lines),
            "examples": Table(
                ["pair", "reward_change", "removed", "added"], [[i, change[i], *text.split("|")] for i, text in shown]
            ),
            "contexts": total["contexts"].table(features.tolist()),
            "warnings": Notes(warnings(margin_rows, reward_unit)),
        }
        return in_unit(values, reward_unit)


def _summed(shares: Mean) -> Any:
    """Mean number of features per pair: the sum of the shares."""
    top = shares.numerator.sum(1)
    return Mean(top, shares.denominator[:, 0], shares.n).value


def _examples(order: np.ndarray, removed: Tensor, added: Tensor, change: Tensor) -> Top:
    """The pairs whose reward the edit changed most, with the features it removed and added."""
    texts = [
        "|".join(", ".join(map(str, order[row.cpu().numpy()].tolist())) for row in both)
        for both in zip(removed, added, strict=True)
    ]
    ids, size = np.arange(len(texts)), np.zeros(len(texts), dtype=np.int64)
    return Top(change.abs().cpu().numpy(), ids, size, np.array(texts, dtype=f"<U{CHARACTERS}"), EXAMPLES)
