"""A group's members by what their features do on the same tokens, and what two of them have in common."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Int
from scipy.sparse import csc_array

from saeval.plugin import hashed
from saeval_stability.coactivation import Jaccard, Pearson, Side
from saeval_stability.firing import Activity
from saeval_stability.group import Numbers, Pair, pair_seed
from saeval_stability.matching import Matching, solve
from saeval_stability.measures import MEASURES, flattened


@dataclass(frozen=True)
class Member:
    """Features that fire often enough: their activations, tokens document by document."""

    values: csc_array
    documents: Int[np.ndarray, "tokens"]
    alive: Int[np.ndarray, "n"]
    """Their numbers in the SAE."""

    @classmethod
    def of(cls, activity: Activity, firings: int) -> Member:
        found = activity.matrix()
        alive = np.flatnonzero(np.diff(found.values.indptr) >= firings)
        return cls(found.values[:, alive], found.documents, alive)

    @cached_property
    def all_of_it(self) -> Side:
        return Side(self.values)

    @cached_property
    def varying(self) -> Int[np.ndarray, "k"]:
        """Those whose activation varies, by place."""
        return np.flatnonzero(self.all_of_it.deviation > 0)

    @cached_property
    def activations(self) -> Side:
        return Side(self.values[:, self.varying])

    @cached_property
    def firing(self) -> Side:
        ones = np.ones(len(self.values.data))
        return Side(csc_array((ones, self.values.indices, self.values.indptr), shape=self.values.shape))

    def shifted(self, seed: int, draws: int) -> Iterator[Member]:
        """The same activations on other tokens: begun at another document, as a circle, and the first ones last."""
        starts = np.flatnonzero(np.diff(self.documents)) + 1
        order = np.argsort(hashed(seed, "shift", starts), kind="stable")
        rows = self.values.tocsr()
        tokens = np.arange(len(self.documents))
        for start in starts[order[:draws]]:
            turned = rows[np.roll(tokens, -int(start))].tocsc()
            yield Member(turned, self.documents, self.alive)


def matched(ours: Member, theirs: Member) -> dict[str, Matching]:
    """By correlation, where something varies on both sides, and by firing."""
    jaccard = {"jaccard": solve(Jaccard(ours.firing, theirs.firing))}
    if not len(ours.varying) or not len(theirs.varying):
        return jaccard
    return {"pearson": solve(Pearson(ours.activations, theirs.activations)), **jaccard}


def numbers(views: Mapping[str, Matching], ours: Member, theirs: Member) -> Numbers:
    if "pearson" not in views:
        unknown = dict.fromkeys((*(f"pearson_{name}" for name in MEASURES), "index_agreement"), float("nan"))
        return {**unknown, **flattened(views)}
    found = flattened(views)
    found["pearson_matched"] = views["pearson"].total / max(len(ours.alive), len(theirs.alive))
    places = np.full(len(ours.alive), -1)
    partners = views["pearson"].indices
    places[ours.varying] = np.where(partners >= 0, theirs.varying[partners], -1)
    same = (places >= 0) & (places == views["jaccard"].indices)
    return {**found, "index_agreement": float(same.sum()) / min(len(ours.alive), len(theirs.alive))}


def compared(a: int, b: int, members: Sequence[Member], seed: int, draws: int) -> Pair:
    """Members `a` and `b` matched, beside shifts of `b`."""
    ours, theirs = members[a], members[b]
    views = matched(ours, theirs)
    drawn = [(matched(ours, other), other) for other in theirs.shifted(pair_seed(seed, a, b), draws)]
    floors = {"shifted": [numbers(found, ours, other) for found, other in drawn]} if drawn else {}
    sizes = {"pearson": (len(ours.alive), len(theirs.alive))}
    return Pair(a, b, views, numbers(views, ours, theirs), floors, drawn[0][0] if drawn else {}, sizes=sizes)
