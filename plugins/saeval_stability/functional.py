"""The metric `functional_stability`: activations of all pairs of a group on the same tokens, matched one-to-one."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from saeval.plugin import Metric, Notes, SaevalError, Value
from saeval_stability.firing import Activity, without_features
from saeval_stability.group import Group, group_values, labelled, matching_operations, pair_sizes, remarks_on
from saeval_stability.seeds import Draws, Some

if TYPE_CHECKING:
    from saeval.plugin import Subject


class FunctionalStability(Metric):
    """Agreement between the SAEs of a group: activations of their features on the same tokens, matched one-to-one.

    For every pair A, B of the group, features are matched one-to-one: pearson_* maximise the sum of the correlations
    of their activations (zeros included), jaccard_* the sum of (tokens on which both are not 0) / (tokens on which
    either is not 0). All members use the same tokens, the first `alive_tokens` in the mask, and the features that are
    not 0 on at least `alive_firings` of them. Correlations are in -1 .. 1, Jaccard indices in 0 .. 1. A constant
    feature has no correlation: it stays unmatched and counts in max(n). If all of a member's features are constant,
    pearson_* and index_agreement are undefined; jaccard_* are not.

    *_matched, *_matched_over_smaller, *_share_above_*, *_max_*, *_collisions_*, *_found_in_all, `kinds`, means and
    intervals over seeds: as in `seed_stability`. index_agreement: share of features with the same partner in both
    matchings.
    *_floor: the score expected by chance, which is the mean over `draws` circular shifts of B's tokens by whole
    documents, which keep how often and how strongly features fire but not on what; undefined with one document. It
    falls as tokens are added. *_excess = value − floor. The floor is not what SAEs score without training: untrained
    SAEs read the same activations. Their score is that of the twin, `random(GROUP)`; `pearson_matched vs random` is the
    difference to it, paired by seed.
    Memory: about 8 bytes per activation that is not 0, over all members.

    Values:
        pearson_matched: Σ of the matched correlations / max(n_A, n_B), a mean over pairs; correlation; -1 .. 1;
            higher is better, depends on the number of tokens: chance matches of features are better on few.
        pearson_matched_over_smaller: the same sum / min(n_A, n_B); correlation; -1 .. 1; higher is better, depends
            on the number of tokens: chance matches of features are better on few.
        pearson_matched_floor, pearson_matched_over_smaller_floor: the same under chance; correlation; -1 .. 1;
            no better direction, depends on the number of tokens: chance matches of features are better on few.
        pearson_matched_excess, pearson_matched_over_smaller_excess: value − floor; correlation; -2 .. 2; higher is
            better.
        pearson_share_above_*: share of the matched pairs above 0.5, 0.7, 0.9; share of matched pairs; 0 .. 1;
            higher is better.
        pearson_max_a_to_b, pearson_max_b_to_a: mean best match of the features of A (of B); correlation; -1 ..
            1; no better direction.
        pearson_collisions_a_to_b, pearson_collisions_b_to_a: 1 − |unique best matches| / n; share of features;
            0 .. 1; no better direction.
        jaccard_matched: Σ of the matched Jaccard indices / max(n_A, n_B), a mean over pairs; Jaccard index; 0
            .. 1; higher is better, depends on the number of tokens: chance matches of features are better on few.
        jaccard_matched_over_smaller: the same sum / min(n_A, n_B); Jaccard index; 0 .. 1; higher is better, depends
            on the number of tokens: chance matches of features are better on few.
        jaccard_matched_floor, jaccard_matched_over_smaller_floor: the same under chance; Jaccard index; 0 .. 1;
            no better direction, depends on the number of tokens: chance matches of features are better on few.
        jaccard_matched_excess, jaccard_matched_over_smaller_excess: value − floor; Jaccard index; -1 .. 1; higher
            is better.
        jaccard_share_above_*: share of the matched pairs above 0.5, 0.7, 0.9; share of matched pairs; 0 .. 1;
            higher is better.
        jaccard_max_a_to_b, jaccard_max_b_to_a: mean best match of the features of A (of B); Jaccard index; 0 ..
            1; no better direction.
        jaccard_collisions_a_to_b, jaccard_collisions_b_to_a: 1 − |unique best matches| / n; share of features;
            0 .. 1; no better direction.
        index_agreement: features with the same partner in both matchings / min(n_A, n_B); share of features; 0
            .. 1; higher is better.
        *_found_in_all: share of a member's features matched above 0.7 with every other member; share of
            features; 0 .. 1; higher is better.
        *_indices_*, *_cosines_*, *_chance_*: partner of each feature of the first SAE, their similarity, and
            the similarities of one draw from the null, arrays; feature number, or similarity; -1 .. d_sae; no
            better direction.
        members, pairs, floors, kinds: the same numbers per member, per pair, per null and per kind, tables; as
            above; as above; no better direction.

    Claims:
        pearson_matched, jaccard_matched: features of different seeds fire together more than those of untrained SAEs;
            null: the twin `random(GROUP)`, paired by seed; needs: 20 documents, 4 SAEs, 4 seeds; not: that features
            are the same, or agreement beyond that of untrained SAEs of another architecture than the control's.
        *_matched_excess, *_matched_over_smaller_excess: a description of these SAEs; null: none, since untrained SAEs
            exceed this floor too; needs: 20 documents, 2 SAEs, 2 seeds; not: agreement because of training.
        *_matched_over_smaller, *_share_above_*, *_found_in_all, index_agreement: a description of these SAEs; null:
            none is tested; compare the twin and the table `floors`; needs: 20 documents, 2 SAEs, 2 seeds; not:
            agreement because of training, or anything about SAEs of other recipes.
        *_max_*, *_collisions_*: how far best matches count features repeatedly; null: none is tested; compare the table
            `floors`; needs: 20 documents, 2 SAEs, 2 seeds; not: agreement, which needs one-to-one matches.
        *_floor: nothing on its own; null: none; needs: 2 documents, 2 SAEs; not: a comparison of floors on different
            numbers of tokens.

    Source: Bricken et al. 2023 (correlation of activations), Paulo and Belrose 2025 (Hungarian matching).
    """

    name, version, subject = "functional_stability", 3, "group"
    headline = ("pearson_matched", "pearson_matched_floor", "jaccard_matched", "jaccard_matched_floor")

    def __init__(
        self, alive_firings: Some = 10, alive_tokens: Some = 1_000_000, draws: Draws = 20, seed: int = 0,
        kinds: dict[str, list[str]] | None = None,
    ) -> None:  # fmt: skip
        self.alive_firings, self.alive_tokens = alive_firings, alive_tokens
        self.draws, self.seed, self.kinds = draws, seed, kinds or {}
        views = ("pearson", "jaccard")
        self.value_names = (*group_values(views, views, self.draws > 0), "index_agreement")

    def operations(self, subjects: Sequence[Subject], tokens: int) -> float:
        # Two views, for the features themselves and for each shift. Only activations that are not 0 are multiplied;
        # `d` approximates their number.
        return sum(2 * (1 + self.draws) * matching_operations(n, m, d) for n, m, d in pair_sizes(subjects))

    def remarks(self, subjects: Sequence[Subject]) -> list[str]:
        return remarks_on(subjects)

    def conclude(
        self,
        activity: list[Activity],
        subject_name: list[str],
        sae_name: list[str],
        training_seed: list[int | None],
    ) -> dict[str, Value]:
        from saeval_stability.activities import Member, match_pair  # late: it loads numba, which only a run needs

        members = [Member.of(member_activity, self.alive_firings) for member_activity in activity]
        for name, member in zip(subject_name, members, strict=True):
            if not len(member.alive):
                raise without_features(name, self.alive_firings, member.values.shape[0])
            if not np.array_equal(member.documents, members[0].documents):
                raise SaevalError(f"'{name}' and '{subject_name[0]}' saw different tokens")
        both = itertools.combinations(range(len(members)), 2)
        pairs = [match_pair(a, b, members, self.seed, self.draws) for a, b in both]
        features = {"pearson": [m.alive[m.varying] for m in members], "jaccard": [m.alive for m in members]}
        kinds = labelled(sae_name, self.kinds)
        constant = [f"'{name}'" for name, m in zip(subject_name, members, strict=True) if not len(m.varying)]
        missing = f"no alive feature of {', '.join(constant)} varies, so there is no correlation" if constant else ""
        tokens, documents = len(members[0].documents), len(np.unique(members[0].documents))
        widths = [member.d_sae for member in activity]
        group = Group(subject_name, kinds, training_seed, pairs, features, widths, missing, floor_n=tokens)
        note = (
            f"{self.name} counts only features that fire on at least {self.alive_firings} of the first {tokens} "
            f"tokens; its floors are those of {tokens} tokens in {documents} documents, and fall with more of them"
        )
        return {**group.values(), "alive": Notes([note])}
