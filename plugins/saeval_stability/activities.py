"""The activations of a group's members on the same tokens, and the matching of two members by them."""

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
    """The alive features of one SAE and their activations, with tokens sorted by document."""

    values: csc_array
    documents: Int[np.ndarray, "tokens"]
    alive: Int[np.ndarray, "n"]
    """Indices of the features in the SAE."""

    @classmethod
    def of(cls, activity: Activity, firings: int) -> Member:
        """The features that fire on at least `firings` tokens."""
        values, documents = activity.matrix()
        alive = np.flatnonzero(np.diff(values.indptr) >= firings)
        return cls(values[:, alive], documents, alive)

    @cached_property
    def _all(self) -> Side:
        return Side(self.values)

    @cached_property
    def varying(self) -> Int[np.ndarray, "k"]:
        """Positions in `alive` of the features whose activation varies."""
        return np.flatnonzero(self._all.deviation > 0)

    @cached_property
    def activations(self) -> Side:
        return Side(self.values[:, self.varying])

    @cached_property
    def firing(self) -> Side:
        ones = np.ones(len(self.values.data))
        return Side(csc_array((ones, self.values.indices, self.values.indptr), shape=self.values.shape))

    def shifted(self, seed: int, draws: int) -> Iterator[Member]:
        """Circular shifts of the activations against the tokens, each to the start of a random document."""
        starts = np.flatnonzero(np.diff(self.documents)) + 1
        order = np.argsort(hashed(seed, "shift", starts), kind="stable")
        rows, tokens = self.values.tocsr(), np.arange(len(self.documents))
        for start in starts[order[:draws]]:
            yield Member(rows[np.roll(tokens, -int(start))].tocsc(), self.documents, self.alive)


def _match(ours: Member, theirs: Member) -> dict[str, Matching]:
    """Matchings by firing and, if features vary on both sides, by correlation."""
    jaccard = {"jaccard": solve(Jaccard(ours.firing, theirs.firing))}
    if not len(ours.varying) or not len(theirs.varying):
        return jaccard
    return {"pearson": solve(Pearson(ours.activations, theirs.activations)), **jaccard}


def _numbers(views: Mapping[str, Matching], ours: Member, theirs: Member) -> Numbers:
    if "pearson" not in views:
        undefined = dict.fromkeys((*(f"pearson_{name}" for name in MEASURES), "index_agreement"), float("nan"))
        return {**undefined, **flattened(views)}
    numbers = flattened(views)
    numbers["pearson_matched"] = views["pearson"].total / max(len(ours.alive), len(theirs.alive))
    places = np.full(len(ours.alive), -1)
    partners = views["pearson"].indices
    places[ours.varying] = np.where(partners >= 0, theirs.varying[partners], -1)
    same = (places >= 0) & (places == views["jaccard"].indices)
    return {**numbers, "index_agreement": float(same.sum()) / min(len(ours.alive), len(theirs.alive))}


def match_pair(a: int, b: int, members: Sequence[Member], seed: int, draws: int) -> Pair:
    """Match members `a` and `b`, and `a` with `draws` shifts of `b`."""
    ours, theirs = members[a], members[b]
    views = _match(ours, theirs)
    drawn = [(_match(ours, shifted), shifted) for shifted in theirs.shifted(pair_seed(seed, a, b), draws)]
    floors = {"shifted": [_numbers(matchings, ours, shifted) for matchings, shifted in drawn]} if drawn else {}
    sizes = {"pearson": (len(ours.alive), len(theirs.alive))}
    return Pair(a, b, views, _numbers(views, ours, theirs), floors, drawn[0][0] if drawn else {}, sizes=sizes)
