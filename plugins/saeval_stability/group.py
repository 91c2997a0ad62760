"""From the pairs of a group of SAEs to its values: means over pairs with intervals over SAEs, tables, arrays."""

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
"""Members from which on leaving one out tells something of the spread; below, only the range is told."""

FLOORED = ("_matched", "_matched_over_smaller")
"""The endings of measures whose floor is a value of its own; the table `floors` has those of all."""

Numbers = dict[str, float]
Statistic = Callable[[Sequence[int]], float]


@dataclass
class Pair:
    """Two members, by number, and all that was found of them."""

    a: int
    b: int
    views: Mapping[str, Matching]
    """What they were matched by, such as `decoder` or `dead_encoder_abs`, and the matching."""
    numbers: Numbers
    """Everything that is told of the two, by name."""
    floors: Mapping[str, Sequence[Numbers]] = field(default_factory=dict)
    """The same numbers for draws of each null, by the null's name."""
    chance: Mapping[str, Matching] = field(default_factory=dict)
    """The views of one draw, each of the null that scores higher there."""
    closed: Numbers = field(default_factory=dict)
    """Those that have a closed form for independent uniform directions."""
    sizes: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """Features of both by view, where more of them count than can be matched."""

    def floor(self, name: str) -> float | None:
        """The largest of the nulls' means; None where no null has this number."""
        means = [float(np.mean([draw[name] for draw in draws])) for draws in self.floors.values() if draws]
        return max(means, default=None)


@dataclass
class Group:
    """All pairs of a group's members. `kinds` labels the members; "" where the suite names no kinds."""

    names: Sequence[str]
    kinds: Sequence[str]
    pairs: Sequence[Pair]
    features: Mapping[str, Sequence[np.ndarray]]
    """By the main views: of each member the numbers of the features that were matched."""
    widths: Sequence[int]
    missing: str = ""
    """Why some pair's numbers are NaN, where some are."""

    def values(self) -> dict[str, Value]:
        """Everything the group has to tell. Only the main views have arrays."""
        found: dict[str, Value] = {}
        for name in self.pairs[0].numbers:
            better: Better = "higher" if not name.endswith(("a_to_b", "b_to_a")) else None
            found[name] = self._scalar(name, self._mean(name), better, "pairs", [p.numbers[name] for p in self.pairs])
            if name.endswith(FLOORED) and all(p.floor(name) is not None for p in self.pairs):
                floor = float(np.mean([p.floor(name) for p in self.pairs]))
                reason = self.missing if math.isnan(floor) else None
                found[f"{name}_floor"] = Scalar(floor, unit=unit_of(name), reason=reason)
        every = range(len(self.names))
        for view, numbers in self.features.items():
            if not all(view in p.views for p in self.pairs):
                found[f"{view}_found_in_all"] = Scalar.undefined(
                    self.missing, unit=unit_of(f"{view}_found_in_all"), better="higher"
                )
                continue
            shares = self._found_in_all(view)
            name = f"{view}_found_in_all"
            found[name] = self._scalar(name, _mean_of(shares), "higher", "members", shares(every))
            for pair in self.pairs:
                found |= _arrays(view, pair, numbers, self.widths)
        taken = [[len(numbers[i]) for numbers in self.features.values()] for i in every]
        found["members"] = Table(
            ["sae", "kind", "features", *(f"{view}_features" for view in self.features)],
            [[*row, *own] for *row, own in zip(self.names, self.kinds, self.widths, taken, strict=True)],
        )
        found |= {"pairs": self._pairs(), "floors": self._floors()}
        return {**found, "kinds": self._kinds()} if any(self.kinds) else found

    def _mean(self, name: str) -> Statistic:
        numbers = {(p.a, p.b): p.numbers[name] for p in self.pairs}
        return lambda some: float(np.mean([numbers[pair] for pair in itertools.combinations(sorted(some), 2)]))

    def _found_in_all(self, view: str) -> Callable[[Sequence[int]], list[float]]:
        """Of each of some members, the share of its features that are matched above SHARED with every other of them."""
        hits: dict[tuple[int, int], np.ndarray] = {}
        for pair in self.pairs:
            hits[pair.a, pair.b], hits[pair.b, pair.a] = above(pair.views[view])

        def shares(some: Sequence[int]) -> list[float]:
            every = [np.logical_and.reduce([hits[i, j] for j in some if j != i]) for i in some]
            return [float(found.mean()) for found in every]

        return shares

    def _scalar(self, name: str, statistic: Statistic, better: Better, what: str, each: Sequence[float]) -> Scalar:
        """With an interval over members, or told how far `each` of `what` it is a mean of ranges."""
        n, unit = len(self.names), unit_of(name)
        members = list(range(n))
        value = statistic(members)
        if math.isnan(value):
            return Scalar.undefined(self.missing, unit=unit, better=better)
        if n < INTERVAL_FROM:
            reason = (
                "one pair of SAEs"
                if n == 2
                else f"{what} range from {formatting.number(min(each))} to {formatting.number(max(each))}"
            )
            return Scalar(value, unit=unit, better=better, reason=f"{reason}: an interval takes {INTERVAL_FROM} SAEs")
        without = np.array([statistic([j for j in members if j != i]) for i in members])
        jackknife = Estimate(value, without, np.ones(n))
        return Scalar(value, unit=unit, stderr=jackknife.stderr, ci95=jackknife.ci95, better=better)

    def _pairs(self) -> Table:
        rows = []
        for p in self.pairs:
            for view, found in p.views.items():
                proof = found.certificate
                sizes = p.sizes.get(view, (len(proof.u), len(proof.v)))
                numbers = [p.numbers.get(f"{view}_{name}", value) for name, value in measures(found).items()]
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
        """Every number within each kind and across each two of them; floors are of the same pairs."""
        rows = []
        labels = list(dict.fromkeys(self.kinds))
        for one, other in itertools.combinations_with_replacement(labels, 2):
            some = [p for p in self.pairs if sorted((self.kinds[p.a], self.kinds[p.b])) == sorted((one, other))]
            for name in some[0].numbers if some else ():
                values = [p.numbers[name] for p in some]
                floors = [floor for p in some if (floor := p.floor(name)) is not None]
                floor = float(np.mean(floors)) if floors else None
                rows.append([one, other, len(some), name, float(np.mean(values)), min(values), max(values), floor])
        return Table(["kind_a", "kind_b", "pairs", "value", "mean", "lowest", "highest", "floor"], rows)


def group_values(views: Sequence[str], main: Sequence[str], floors: bool) -> list[str]:
    """The names of a group's values that come of its views."""
    with_floors = [f"{view}{end}_floor" for view in views for end in FLOORED] if floors else []
    every = [f"{view}_{measure}" for view in views for measure in MEASURES]
    return [*every, *with_floors, *(f"{view}_found_in_all" for view in main)]


def _mean_of(shares: Callable[[Sequence[int]], list[float]]) -> Statistic:
    return lambda some: float(np.mean(shares(some)))


def _arrays(view: str, pair: Pair, numbers: Sequence[np.ndarray], widths: Sequence[int]) -> dict[str, Value]:
    """Partner of each of the first SAE's features in the second, by their own numbers, and their similarity.

    Beside them the matched similarities of one draw of a null, in no order.
    """
    found, ours, theirs = pair.views[view], numbers[pair.a], numbers[pair.b]
    indices = np.full(widths[pair.a], -1, np.int64)
    cosines = np.full(widths[pair.a], np.nan)
    rows = np.flatnonzero(found.indices >= 0)
    indices[ours[rows]] = theirs[found.indices[rows]]
    cosines[ours] = found.cosines
    ends = f"{pair.a}_{pair.b}"
    kept = {f"{view}_indices_{ends}": indices, f"{view}_cosines_{ends}": cosines}
    if view in pair.chance:
        drawn = pair.chance[view]
        kept[f"{view}_chance_{ends}"] = drawn.cosines[drawn.indices >= 0]
    return {name: Array(data) for name, data in kept.items()}


def pair_seed(seed: int, a: int, b: int) -> int:
    """What the nulls of members `a` and `b` are drawn by: no two pairs share them."""
    return int(hashed(seed, "pair", a, b))


def labelled(names: Sequence[str], kinds: Mapping[str, Sequence[str]]) -> list[str]:
    """The kind of each member, by patterns of names; "" for all where there are no kinds."""
    found = []
    for name in names:
        mine = [kind for kind, patterns in kinds.items() if name in patterns]  # by its name, else by a pattern
        mine = mine or [kind for kind, patterns in kinds.items() if name in names_matching_any(patterns, names)]
        if kinds and len(mine) != 1:
            told = f"the kinds {mine}" if mine else "none of the kinds"
            raise SaevalError(f"'{name}' is of {told}; 'kinds' maps each kind to patterns, and a name must match one")
        found.append(mine[0] if mine else "")
    return found


SOLVING = 6e6
"""Operations of a matrix product that take as long as the solver's own work for each feature: candidates, prices,
augmenting paths. Measured from 256 to 4,096 features on a CPU, of dictionaries that share a mean direction."""


def matching_operations(n: int, m: int, d: int) -> float:
    """Operations of one exact matching of n with m features in d dimensions: all cosines, then the solver's work."""
    return 2.0 * n * m * d + SOLVING * max(n, m)


def pair_sizes(subjects: Sequence[Subject]) -> list[tuple[int, int, int]]:
    """(features, features, width) of each two members; members whose width is not known count as none."""
    sizes = [(s.d_sae or 0, max(s.d_in or 0, s.d_out or 0)) for s in subjects]
    return [(n, m, d) for (n, d), (m, _) in itertools.combinations(sizes, 2)]
