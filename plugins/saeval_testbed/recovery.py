"""`planted_recovery`: do the features with the largest attributions respond to the planted pattern?"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float

from saeval.plugin import Batch, Evidence, Metric, Null, Repeats, Scalar, Table, Undefined, Value, fold, paired, torch
from saeval_reward.explained import UNMATCHED
from saeval_reward.nulls import rank_p
from saeval_reward.ranking import feature_ranking
from saeval_reward.totals import Attributions

if TYPE_CHECKING:
    from torch import Tensor

RESPONDS = 0.2
"""Smallest difference between the shares of sides with and without the pattern on which a responding feature fires."""
NO_INTERVAL = "a count of the first features of one ranking, which are no sample"
DRAWS = 200
PLANTED = ("planted", "conflict")
"""Subsets in which exactly one side has the pattern."""


@dataclasses.dataclass(frozen=True, eq=False)
class Responses(Evidence):
    """Counts of the sides with and without the planted pattern that each feature fires on, and sums over lengths."""

    with_pattern: Float[np.ndarray, "d_sae"]
    """Sides on which it fires somewhere in the mask, out of `pairs`."""
    without: Float[np.ndarray, "d_sae"]
    pairs: int
    products: Float[np.ndarray, "d_sae"]
    """Σ over all pairs of (tokens fired on: chosen − rejected) · (length: chosen − rejected)."""
    squares: Float[np.ndarray, "d_sae"]
    """Σ of the first factor squared."""

    @property
    def responding(self) -> Bool[np.ndarray, "d_sae"]:
        """True for each feature that fires more often, or less, on sides with the pattern."""
        return np.asarray(np.abs(self.with_pattern - self.without) / max(self.pairs, 1) >= RESPONDS)

    @property
    def by_length(self) -> Float[np.ndarray, "d_sae"]:
        """Correlation with the difference of lengths, up to a common factor."""
        return np.asarray(self.products / np.sqrt(np.where(self.squares > 0, self.squares, 1)))


@fold
@paired
def planted_responses(
    feature_acts: Sequence[Float[Tensor, "batch seq d_sae"]],
    mask: Sequence[Bool[Tensor, "batch seq"]],
    labels: Sequence[Mapping[str, np.ndarray]],
    batch: Sequence[Batch],
) -> Responses:
    """Fold over the testbed's pairs: how each feature responds to the planted pattern."""
    if not {"subset", "flipped"} <= set(labels[0]):
        raise Undefined("these pairs do not record where the planted pattern is; use the data 'testbed-preferences'")
    fires = [((acts != 0) & inside[..., None]).double() for acts, inside in zip(feature_acts, mask, strict=True)]
    anywhere = [fired.amax(1) for fired in fires]
    planted = torch.from_numpy(np.isin(labels[0]["subset"], PLANTED)).to(anywhere[0].device)
    in_chosen = torch.from_numpy(labels[0]["flipped"] == "no").to(anywhere[0].device)[:, None]
    has, lacks = (torch.where(in_chosen, *sides) for sides in (anywhere, anywhere[::-1]))
    counts = fires[0].sum(1) - fires[1].sum(1)
    longer = (batch[0].real.sum(1) - batch[1].real.sum(1)).double()[:, None]

    def summed(values: Tensor) -> np.ndarray:
        return np.asarray(values.sum(0).cpu().numpy())

    products, squares = summed(counts * longer), summed(counts.square())
    return Responses(summed(has[planted]), summed(lacks[planted]), int(planted.sum()), products, squares)


class PlantedRecovery(Metric):
    """Precision and recall of the top features by attribution, for the planted preference of `testbed-preferences`.

    A feature is true if it responds to the pattern: in the pairs with a `raise` statement on exactly one side, the
    share of those sides that it fires on at t ≥ s differs by at least 0.2 from the share of the other sides. Rewards
    play no part. precision_k = share of the top k by |mean attribution| on fold A that are true, recall_k = share of
    the true features among these; *_kept leave out features flagged as outliers or of high frequency. Shown beside
    precision_kept: the mean of 200 random groups, matched with these features on density and size and drawn from
    unflagged ones that are not at the top of the ranking, and the p value of the rank among them. Flagged features have
    few equals, so precision with them is not tested. Shown beside both, as precision: features ranked by the
    correlation of their firing with length, and a ranking with the labels of a random half swapped.

    Values:
        responding: number of true features; features; 0 .. d_sae; no better direction.
        precision_*: share of the top k that are true; share of features; 0 .. 1; higher is better.
        recall_*: share of the true features among the top k; share of features; 0 .. 1; higher is better.
        recovery: both, beside random groups, length and swapped labels, a table; share of features; 0 ..
            1; no better direction.

    Claims:
        responding: so many features respond to the planted pattern; null: none, since it is a count; needs: 1 SAE; not:
            that the reward uses them.
        precision_kept_*: the top k unflagged features by attribution contain more features of the planted preference
            than random groups of the same density and size; null: 200 random groups of k unflagged features, by rank;
            needs: 100 pairs; 1 SAE of the testbed's reward model; not: that attribution finds preferences that were not
            planted; a precision of the method from one SAE.
        precision_[0-9]*: how many of the top k respond to the pattern; null: none, since flagged features have few
            equals; needs: 100 pairs; 1 SAE of the testbed's reward model; not: that random features do so less often.
        recall_*: the share of the features of the planted preference that the top k contain; null: none;
            precision_kept_* tests the same features; needs: 100 pairs; 1 SAE of the testbed's reward model; not: that a
            low recall is a failure if k is smaller than responding, or that the others do not matter to the reward.

    Source: saeval's own definition.
    """

    name, version, data = "planted_recovery", 3, "pair"

    def __init__(self, steps: Repeats = 16, baseline: str = "mean", sizes: tuple[int, ...] = (1, 5, 20)) -> None:
        if steps < 0 or not sizes or min(sizes) < 1:
            raise ValueError("metric 'planted_recovery': 'sizes' must be at least 1, 'steps' at least 0")
        self.sizes = sizes
        kinds = [f"{name}{kind}" for name in ("precision", "recall") for kind in ("", "_kept")]
        self.value_names = ("responding", *(f"{kind}_{k}" for kind in kinds for k in sizes))

    def conclude(
        self, attribution_totals: Attributions, planted_responses: Responses, W_dec: Float[Tensor, "d_sae d"]
    ) -> dict[str, Value]:
        true = planted_responses.responding
        if not true.any():
            raise Undefined("no feature responds to the planted pattern")
        ranking = feature_ranking(attribution_totals, W_dec, groups=self.sizes, random=DRAWS)
        alive = attribution_totals.fires > 0
        length = _order(planted_responses.by_length, alive)
        values: dict[str, Value] = {"responding": Scalar(float(true.sum()), unit="features", n=int(alive.sum()))}
        lines = []
        for kind, order in (("", ranking.order), ("_kept", ranking.kept)):
            for k in self.sizes:
                hits = int(true[order[:k]].sum())
                precision, recall = hits / k, float(hits / true.sum())
                groups = [ranking.members[f"random {k}.{r}"] for r in range(DRAWS)] if kind else []
                random = np.array([float(true[group].mean()) for group in groups if len(group)])
                others: list[float | None] = [None, None]
                null = None
                if len(random):
                    others = [float(random.mean()), p := rank_p(precision, random)]
                    qualifier = UNMATCHED if ranking.unmatched[k] else None
                    above = "richer in planted features than"
                    null = Null(f"random groups of {k} features", above=above, p=p, qualifier=qualifier)
                others += [float(true[length[:k]].mean()), float(true[ranking.swapped[:k]].mean())]
                lines.append([kind.removeprefix("_") or "all", k, precision, recall, *others])
                for name, share in (("precision", precision), ("recall", recall)):
                    values[f"{name}{kind}_{k}"] = Scalar(
                        share,
                        unit="share of features",
                        better="higher",
                        proportion=True,
                        reason=NO_INTERVAL,
                        null=null if name == "precision" else None,
                    )
        columns = ["features", "k", "precision", "recall", "random", "random_p", "by_length", "swapped_labels"]
        values["recovery"] = Table(columns, lines)
        return values


def _order(values: Float[np.ndarray, "d_sae"], alive: Bool[np.ndarray, "d_sae"]) -> np.ndarray:
    order = np.argsort(-np.abs(values), kind="stable")
    return np.asarray(order[alive[order]])
