"""The values of a group of SAEs from its matched pairs: means with intervals over SAEs, tables, arrays."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from saeval.plugin import (
    Array,
    Better,
    Estimate,
    SaevalError,
    Scalar,
    Subject,
    Table,
    Value,
    formatting,
    hashed,
    names_matching_any,
)
from saeval_stability.measures import MEASURES, above, measures, unit_of

if TYPE_CHECKING:
    from saeval_stability.matching import Matching

INTERVAL_FROM = 4
"""Fewest members for a jackknife interval; smaller groups report the range over pairs instead."""

FLOORED = ("_matched", "_matched_over_smaller")
"""Endings of the measures whose floor is a separate value; the table `floors` has the floors of all measures."""

Numbers = dict[str, float]
Statistic = Callable[[Sequence[int]], float]


@dataclass
class Pair:
    """Two members, by index, and their matchings."""

    a: int
    b: int
    views: Mapping[str, Matching]
    """Matchings by view, such as `decoder` or `dead_encoder_abs`."""
    numbers: Numbers
    """All reported numbers of the pair, by name."""
    floors: Mapping[str, Sequence[Numbers]] = field(default_factory=dict)
    """The same numbers per draw, by the null's name."""
    chance: Mapping[str, Matching] = field(default_factory=dict)
    """Matchings of one draw by view, each from the null that scores higher in that view."""
    closed: Numbers = field(default_factory=dict)
    """The numbers that have a closed form for independent uniform directions."""
    sizes: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """Number of features of both members by view, if it includes features that cannot be matched."""

    def floor(self, name: str) -> float | None:
        """The largest of the nulls' means; None if no null has this number."""
        means = [float(np.mean([draw[name] for draw in draws])) for draws in self.floors.values() if draws]
        return max(means, default=None)


@dataclass
class Group:
    """All pairs of a group's members. `kinds` has a label per member, "" if the suite defines no kinds."""

    names: Sequence[str]
    kinds: Sequence[str]
    pairs: Sequence[Pair]
    features: Mapping[str, Sequence[np.ndarray]]
    """By main view, the indices of each member's matched features."""
    widths: Sequence[int]
    missing: str = ""
    """The reason for NaN numbers, if there are any."""

    def values(self) -> dict[str, Value]:
        """All values of the group. Only the main views have arrays."""
        values: dict[str, Value] = {}
        for name in self.pairs[0].numbers:
            better: Better = "higher" if not name.endswith(("a_to_b", "b_to_a")) else None
            values[name] = self._scalar(name, self._mean(name), better, "pairs", [p.numbers[name] for p in self.pairs])
            if name.endswith(FLOORED) and all(p.floor(name) is not None for p in self.pairs):
                floor = float(np.mean([p.floor(name) for p in self.pairs]))
                reason = self.missing if math.isnan(floor) else None
                values[f"{name}_floor"] = Scalar(floor, unit=unit_of(name), reason=reason)
        members = range(len(self.names))
        for view, numbers in self.features.items():
            if not all(view in p.views for p in self.pairs):
                values[f"{view}_found_in_all"] = Scalar.undefined(
                    self.missing, unit=unit_of(f"{view}_found_in_all"), better="higher"
                )
                continue
            shares = self._found_in_all(view)
            name = f"{view}_found_in_all"
            values[name] = self._scalar(name, _mean_of(shares), "higher", "members", shares(members))
            for pair in self.pairs:
                values |= _arrays(view, pair, numbers, self.widths)
        counts = [[len(numbers[i]) for numbers in self.features.values()] for i in members]
        values["members"] = Table(
            ["sae", "kind", "features", *(f"{view}_features" for view in self.features)],
            [[*row, *count] for *row, count in zip(self.names, self.kinds, self.widths, counts, strict=True)],
        )
        values |= {"pairs": self._pairs(), "floors": self._floors()}
        return {**values, "kinds": self._kinds()} if any(self.kinds) else values

    def _mean(self, name: str) -> Statistic:
        numbers = {(p.a, p.b): p.numbers[name] for p in self.pairs}
        return lambda members: float(np.mean([numbers[pair] for pair in itertools.combinations(sorted(members), 2)]))

    def _found_in_all(self, view: str) -> Callable[[Sequence[int]], list[float]]:
        """A function of members: the share of each one's features that are matched above SHARED with all the others."""
        hits: dict[tuple[int, int], np.ndarray] = {}
        for pair in self.pairs:
            hits[pair.a, pair.b], hits[pair.b, pair.a] = above(pair.views[view])

        def shares(members: Sequence[int]) -> list[float]:
            in_all = [np.logical_and.reduce([hits[i, j] for j in members if j != i]) for i in members]
            return [float(features.mean()) for features in in_all]

        return shares

    def _scalar(self, name: str, statistic: Statistic, better: Better, items: str, parts: Sequence[float]) -> Scalar:
        """A mean with its jackknife interval; for small groups, with the range of its `parts` as the reason."""
        n, unit = len(self.names), unit_of(name)
        members = list(range(n))
        value = statistic(members)
        if math.isnan(value):
            return Scalar.undefined(self.missing, unit=unit, better=better)
        if n < INTERVAL_FROM:
            reason = (
                "one pair of SAEs"
                if n == 2
                else f"{items} range from {formatting.number(min(parts))} to {formatting.number(max(parts))}"
            )
            return Scalar(value, unit=unit, better=better, reason=f"{reason}: an interval needs {INTERVAL_FROM} SAEs")
        without = np.array([statistic([j for j in members if j != i]) for i in members])
        jackknife = Estimate(value, without, np.ones(n))
        return Scalar(value, unit=unit, stderr=jackknife.stderr, ci95=jackknife.ci95, better=better)

    def _pairs(self) -> Table:
        rows = []
        for p in self.pairs:
            for view, matching in p.views.items():
                proof = matching.certificate
                sizes = p.sizes.get(view, (len(proof.u), len(proof.v)))
                numbers = [p.numbers.get(f"{view}_{name}", value) for name, value in measures(matching).items()]
                rows.append([self.names[p.a], self.names[p.b], view, *sizes, *numbers, proof.gap])
        return Table(["a", "b", "view", "n_a", "n_b", *MEASURES, "gap"], rows)

    def _floors(self) -> Table:
        nulls = list(self.pairs[0].floors)
        columns = ["a", "b", "value", "found", *(c for null in nulls for c in (null, f"{null}_sd")), "iid"]
        rows = []
        for p in self.pairs:
            for name in next((d[0] for d in p.floors.values() if d), {}):
                row = [self.names[p.a], self.names[p.b], name, p.numbers[name]]
                for null in nulls:
                    draws = [draw[name] for draw in p.floors[null]]
                    row += [float(np.mean(draws)), float(np.std(draws, ddof=1)) if len(draws) > 1 else None]
                rows.append([*row, p.closed.get(name)])
        return Table(columns, rows)

    def _kinds(self) -> Table:
        """All numbers within each kind and across each two kinds; floors are means over the same pairs."""
        rows = []
        labels = list(dict.fromkeys(self.kinds))
        for kind_a, kind_b in itertools.combinations_with_replacement(labels, 2):
            pairs = [p for p in self.pairs if sorted((self.kinds[p.a], self.kinds[p.b])) == sorted((kind_a, kind_b))]
            for name in pairs[0].numbers if pairs else ():
                values = [p.numbers[name] for p in pairs]
                floors = [floor for p in pairs if (floor := p.floor(name)) is not None]
                floor = float(np.mean(floors)) if floors else None
                spread = [float(np.mean(values)), min(values), max(values)]
                rows.append([kind_a, kind_b, len(pairs), name, *spread, floor])
        return Table(["kind_a", "kind_b", "pairs", "value", "mean", "lowest", "highest", "floor"], rows)


def group_values(views: Sequence[str], main: Sequence[str], floors: bool) -> list[str]:
    """Names of the values that each view of a group has."""
    names = [f"{view}_{measure}" for view in views for measure in MEASURES]
    names += [f"{view}{end}_floor" for view in views for end in FLOORED] if floors else []
    return [*names, *(f"{view}_found_in_all" for view in main)]


def _mean_of(shares: Callable[[Sequence[int]], list[float]]) -> Statistic:
    return lambda members: float(np.mean(shares(members)))


def _arrays(view: str, pair: Pair, numbers: Sequence[np.ndarray], widths: Sequence[int]) -> dict[str, Value]:
    """The partner in the second SAE of each feature of the first, by index in the SAE, and their similarity.

    Also the matched similarities of one draw of a null, in no particular order.
    """
    matching, ours, theirs = pair.views[view], numbers[pair.a], numbers[pair.b]
    indices = np.full(widths[pair.a], -1, np.int64)
    cosines = np.full(widths[pair.a], np.nan)
    rows = np.flatnonzero(matching.indices >= 0)
    indices[ours[rows]] = theirs[matching.indices[rows]]
    cosines[ours] = matching.cosines
    ends = f"{pair.a}_{pair.b}"
    arrays = {f"{view}_indices_{ends}": indices, f"{view}_cosines_{ends}": cosines}
    if view in pair.chance:
        drawn = pair.chance[view]
        arrays[f"{view}_chance_{ends}"] = drawn.cosines[drawn.indices >= 0]
    return {name: Array(data) for name, data in arrays.items()}


def pair_seed(seed: int, a: int, b: int) -> int:
    """The seed of the nulls of members `a` and `b`, different for each pair."""
    return int(hashed(seed, "pair", a, b))


def labelled(names: Sequence[str], kinds: Mapping[str, Sequence[str]]) -> list[str]:
    """The kind of each member: the one that lists its name, else the one with a pattern for it; "" without kinds."""
    labels = []
    for name in names:
        mine = [kind for kind, patterns in kinds.items() if name in patterns]
        mine = mine or [kind for kind, patterns in kinds.items() if name in names_matching_any(patterns, names)]
        if kinds and len(mine) != 1:
            problem = f"matches the kinds {mine}" if mine else "matches none of the kinds"
            raise SaevalError(f"'{name}' {problem}; 'kinds' maps kinds to patterns, and a name must match exactly one")
        labels.append(mine[0] if mine else "")
    return labels


SOLVING = 6e6
"""The solver's work per feature (candidates, prices, augmenting paths), as matrix-product operations of equal time.
Measured with 256 to 4,096 features on a CPU, for dictionaries that share a mean direction."""


def matching_operations(n: int, m: int, d: int) -> float:
    """Operations of one exact matching of n with m features in d dimensions: all cosines, then the solver's work."""
    return 2.0 * n * m * d + SOLVING * max(n, m)


def pair_sizes(subjects: Sequence[Subject]) -> list[tuple[int, int, int]]:
    """(features of A, features of B, dimension) of each pair; an unknown size counts as 0."""
    sizes = [(s.d_sae or 0, max(s.d_in or 0, s.d_out or 0)) for s in subjects]
    return [(n, m, d) for (n, d), (m, _) in itertools.combinations(sizes, 2)]
