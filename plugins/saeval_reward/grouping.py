"""The metric `reward_groups`: features that matter to the reward and have similar decoder directions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int, UInt64

from saeval.plugin import Batch, Encoding, Mean, Metric, Notes, Repeats, Scalar, Substitute, Table, Undefined, Value
from saeval_reward.ablation import Ablations
from saeval_reward.attribution import effects
from saeval_reward.integration import Reference
from saeval_reward.margins import margin, share, warnings
from saeval_reward.per_pair import PerPair
from saeval_reward.ranking import cosines, density_and_size, matched
from saeval_reward.totals import Attributions, in_fold_b

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Groups:
    """Clusters of relevant features, largest |attribution on fold A| first."""

    features: list[Int[np.ndarray, "k"]]
    strongest: list[int]
    """The member of each group with the largest |attribution on fold A|."""
    relevant: Int[np.ndarray, "n"]
    """The relevant features, which were clustered."""

    def members(self, largest: int) -> dict[str, Int[np.ndarray, "k"]]:
        """The sets to ablate, by name; empty ones if there are fewer than `largest` groups."""
        empty = np.zeros(0, dtype=np.int64)
        sets = {}
        for i in range(largest):
            exists = i < len(self.features)
            sets[f"group {i}"] = self.features[i] if exists else empty
            sets[f"strongest {i}"] = np.array([self.strongest[i]]) if exists else empty
        return sets


def feature_groups(
    attribution_totals: Attributions, W_dec: Float[Tensor, "d_sae d"], relevant: int = 50, cosine: float = 0.5
) -> Groups:
    """Groups of the `relevant` features by |mean attribution| on fold A, with mean decoder cosine above `cosine`.

    Average linkage on 1 − cosine; single features are in no group.
    """
    on_a = attribution_totals.on_a
    order = np.argsort(-np.abs(on_a), kind="stable")
    chosen = order[(attribution_totals.fires[order] > 0)][:relevant]
    if len(chosen) < 2:
        raise Undefined(f"only {len(chosen)} features fire on these pairs: grouping needs at least 2")
    groups = clusters(W_dec.double().cpu().numpy(), chosen, cosine)
    groups.sort(key=lambda group: -abs(float(on_a[group].sum())))
    strongest = [int(group[np.argmax(np.abs(on_a[group]))]) for group in groups]
    return Groups(groups, strongest, chosen)


def clusters(
    rows: Float[np.ndarray, "d_sae d"], chosen: Int[np.ndarray, "n"], cosine: float
) -> list[Int[np.ndarray, "k"]]:
    """Groups of two or more of the chosen features, with mean decoder cosine above `cosine`."""
    from scipy.cluster.hierarchy import fcluster, linkage  # late: listings do not need it

    distances = 1 - cosines(rows[chosen])
    upper = np.clip(distances[np.triu_indices(len(chosen), 1)], 0, 2)
    labels = fcluster(linkage(upper, "average"), 1 - cosine, "distance")
    groups = [chosen[labels == label] for label in np.unique(labels)]
    return [group for group in groups if len(group) > 1]


def within(rows: Float[np.ndarray, "n d"]) -> float:
    """Mean cosine of all pairs of rows."""
    return float(cosines(rows)[np.triu_indices(len(rows), 1)].mean())


class RewardGroups(Metric):
    """Groups of reward-relevant features by decoder cosine, and the effect of each group as a whole.

    The `relevant` features by |mean attribution| on fold A are clustered (average linkage, mean cosine above
    `cosine`); the `largest` groups by |attribution| are listed. grouped = number of the relevant features that are in
    a group; grouped_random the mean of the same number over `random` draws of as many features that fire and are not
    relevant, matched on density and E[f_j]‖d_j‖, of which grouped_random_max is the largest. cosine = mean pairwise
    decoder cosine within a group, random_cosine that of as many features of a draw, which are not selected for
    their cosine. attribution and true_effect (x − Σ_J (f_j − f̄_j) D_j, the SAE's error kept) are means over fold
    B of chosen − rejected, for the group and for its strongest member alone: a group can have an effect that no
    single member has. steps, baseline as in `reward_attribution`.

    Values:
        n_groups: number of groups of two or more; groups; ≥ 0; no better direction.
        grouped: number of features in these groups; features; 0 .. `relevant`; no better direction.
        grouped_random, grouped_random_max: mean and largest number over draws of as many random features;
            features; 0 .. `relevant`; no better direction.
        first_ablated_share: true_effect of the first group / the margin; share of margin; −∞ .. ∞; no better
            direction.
        groups: the largest groups with their cosines, attributions and true effects, a table; reward; −∞ .. ∞; no
            better direction.

    Claims:
        n_groups, grouped*: how many relevant features point the same way; null: grouped_random beside it,
            untested, since a large attribution itself favours the directions in which the reward rises; needs: 20
            documents in fold A, 1 SAE, 1 seed at least; not: that features of a group mean the same, or that they
            are preferred.
        first_ablated_share: the part of the margin that is lost without the first group; null: none of its own,
            see ablated_excess_kept_* of `reward_attribution`; needs: 20 documents in fold B, 1 SAE, 1 seed at least;
            not: that other groups of this size would not do the same.

    Source: saeval's own definition.
    """

    name, version, data = "reward_groups", 4, "pair"
    value_names = ("n_groups", "grouped", "grouped_random", "grouped_random_max", "first_ablated_share")
    headline = ("n_groups", "grouped", "grouped_random", "first_ablated_share")
    main = ("grouped",)

    def __init__(
        self, steps: Repeats = 16, baseline: str = "mean", relevant: Repeats = 50, cosine: float = 0.5,
        largest: Repeats = 5, random: Repeats = 100, seed: int = 0,
    ) -> None:  # fmt: skip
        if largest < 1 or relevant < 2 or random < 20 or steps < 0 or not -1 <= cosine < 1:
            least = "'largest' ≥ 1, 'relevant' ≥ 2, 'random' ≥ 20, 'steps' ≥ 0"
            raise ValueError(f"metric 'reward_groups': expected {least} and 'cosine' from -1 to below 1")
        self.largest, self.random, self.cosine, self.seed = largest, random, cosine, seed
        self.interventions = [f"{kind} {i}" for i in range(largest) for kind in ("group", "strongest")]

    def substitutes(
        self,
        sae: Substitute,
        encoding: Encoding | None,
        activations: Float[Tensor, "batch seq d"],
        token_keys: UInt64[np.ndarray, "batch seq"],
        feature_groups: Groups,
        baseline_reference: Reference,
        W_dec: Float[Tensor, "d_sae d"],
    ) -> Ablations:
        members = feature_groups.members(self.largest)
        return Ablations(sae, encoding, activations, token_keys, members, baseline_reference, W_dec)

    def observe(
        self,
        substitute_reward_on_b: Sequence[Mapping[str, Float[Tensor, "batch"]]],
        clean_reward: Sequence[Float[Tensor, "batch"]],
        batch: Sequence[Batch],
    ) -> Mean:
        return effects(self.interventions, substitute_reward_on_b, clean_reward, batch)

    def conclude(
        self,
        total: Mean,
        attribution_totals: Attributions,
        feature_groups: Groups,
        margin_rows: PerPair,
        W_dec: Float[Tensor, "d_sae d"],
        reward_unit: str,
    ) -> dict[str, Value]:
        rows, groups, relevant = W_dec.double().cpu().numpy(), feature_groups.features, feature_groups.relevant
        free = attribution_totals.fires > 0
        free[relevant] = False
        drawn = matched(relevant, free, density_and_size(attribution_totals, rows), self.random, self.seed)
        lines = []
        for i, group in enumerate(groups[: self.largest]):
            others = [within(rows[draw[: len(group)]]) for draw in drawn]
            strongest = feature_groups.strongest[i]
            whole, single = attribution_totals.on_b(group), attribution_totals.on_b(np.array([strongest]))
            effect, single_effect = total[2 * i].value, total[2 * i + 1].value
            similar = [within(rows[group]), float(np.mean(others)) if others else None]
            of_group = [whole.value, whole.stderr, effect.value, effect.stderr]
            of_strongest = [strongest, single.value, single_effect.value, single_effect.stderr]
            lines.append([i + 1, len(group), ", ".join(map(str, group.tolist())), *similar, *of_group, *of_strongest])
        columns = [
            "group", "size", "features", "cosine", "random_cosine", "attribution", "attribution_stderr", "true_effect",
            "true_effect_stderr", "strongest", "strongest_attribution", "strongest_effect", "strongest_effect_stderr",
        ]  # fmt: skip
        n = len(relevant)
        counts = [float(sum(map(len, clusters(rows, draw, self.cosine)))) for draw in drawn]
        whole = margin_rows.mean(margin(margin_rows), in_fold_b(margin_rows.clusters))
        none = f"no two of the {n} most relevant features point the same way"

        def number(value: float | None, unit: str = "features") -> Scalar:
            too_few = f"fewer than {n} features that fire are not among the relevant ones" if value is None else None
            return Scalar(value, unit=unit, n=n, comparable="hook", reason=too_few)

        return {
            "n_groups": number(float(len(groups)), "groups"),
            "grouped": number(float(sum(map(len, groups)))),
            "grouped_random": number(float(np.mean(counts)) if counts else None),
            "grouped_random_max": number(max(counts, default=None)),
            "groups": Table(columns, lines),
            "warnings": Notes(warnings(margin_rows, reward_unit)),
            "first_ablated_share": share(total[0].value, whole, comparable="hook")
            if groups
            else Scalar.undefined(none, unit="share of margin"),
        }
