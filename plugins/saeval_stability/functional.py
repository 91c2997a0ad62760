"""Do SAEs' features do the same? Activations of all pairs of a group on the same tokens, matched one-to-one."""

from __future__ import annotations

import itertools

import numpy as np

from saeval.errors import SaevalError, Undefined
from saeval.metric import Metric
from saeval.values import Notes, Value
from saeval_stability.firing import Activity
from saeval_stability.group import Group, group_values, labelled
from saeval_stability.seeds import Count, Some


class FunctionalStability(Metric):
    """How alike the features of a group's SAEs are in what they do, beside what chance gives.

    On the first `alive_tokens` tokens of the mask, the same for all, the features that are not 0 on at least
    `alive_firings` of them are matched one-to-one, for every pair A, B of the group: pearson_* so that the sum of the
    correlations of activations (zeros included) is largest, jaccard_* so that the sum of (tokens on which both are not
    0) / (tokens on which either is) is. Correlations are in -1 .. 1, Jaccard indices in 0 .. 1. A feature that never
    varies has no correlation: it stays unmatched and counts in max(n).

    *_matched, *_matched_over_smaller, *_share_above_*, *_max_*, *_collisions_*, *_found_in_all, `kinds`, means and
    intervals: as in `seed_stability`. index_agreement: share of features with the same partner in both matchings.
    *_floor: the mean over `draws` circular shifts of B's tokens by whole documents, which keep how often and how
    strongly features fire and lose what they fire on; undefined on one document. Memory: about 8 bytes for each
    activation that is not 0, of all members.
    """

    name, version, subject = "functional_stability", 1, "group"
    headline = ("pearson_matched", "pearson_matched_floor", "jaccard_matched", "jaccard_matched_floor")

    def __init__(
        self, alive_firings: Some = 10, alive_tokens: Some = 1_000_000, draws: Count = 20, seed: int = 0,
        kinds: dict[str, list[str]] | None = None,
    ) -> None:  # fmt: skip
        self.alive_firings, self.alive_tokens = alive_firings, alive_tokens
        self.draws, self.seed, self.kinds = draws, seed, kinds or {}
        views = ("pearson", "jaccard")
        self.value_names = (*group_values(views, views, self.draws > 0), "index_agreement")

    def conclude(self, activity: list[Activity], subject_name: list[str]) -> dict[str, Value]:
        from saeval_stability.activities import Member, compared  # late: a compiler is loaded, and only a run needs it

        members = [Member.of(found, self.alive_firings) for found in activity]
        for name, member in zip(subject_name, members, strict=True):
            if not len(member.varying):
                told = f"is not 0 on {self.alive_firings} of {member.values.shape[0]} tokens and varies"
                raise Undefined(f"no feature of '{name}' {told}; more tokens or a lower 'alive_firings' may help")
            if not np.array_equal(member.documents, members[0].documents):
                raise SaevalError(f"'{name}' and '{subject_name[0]}' saw different tokens")
        pairs = [
            compared(a, b, members, self.seed, self.draws) for a, b in itertools.combinations(range(len(members)), 2)
        ]
        features = {"pearson": [m.alive[m.varying] for m in members], "jaccard": [m.alive for m in members]}
        kinds = labelled(subject_name, self.kinds)
        group = Group(subject_name, kinds, pairs, features, [found.d_sae for found in activity])
        tokens = len(members[0].documents)
        told = f"features that are not 0 on at least {self.alive_firings} of the first {tokens} tokens"
        return {**group.values(), "alive": Notes([f"functional_stability is of {told}"])}
