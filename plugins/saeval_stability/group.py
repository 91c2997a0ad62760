"""The values of a group of SAEs from its matched pairs: means with intervals over seeds, tables, arrays."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from saeval.plugin import (
    Array,
    Estimate,
    Notes,
    Null,
    SaevalError,
    Scalar,
    Table,
    formatting,
    hashed,
    names_matching_any,
)
from saeval_stability.measures import MEASURES, above, measures, unit_of

if TYPE_CHECKING:
    from saeval.plugin import Better, Subject, Value
    from saeval_stability.matching import Matching

INTERVAL_FROM = 4
"""Fewest seeds for a jackknife interval and a test; smaller groups report the range over pairs instead."""

FLOORED = ("_matched", "_matched_over_smaller")
"""Endings of the measures whose floor is a separate value; the table `floors` has the floors of all measures."""

Numbers = dict[str, float]


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


UNTRAINED = Null("untrained SAEs", above="more alike than", below="less alike than", control="random")


@dataclass
class Group:
    """All pairs of a group's members. `kinds` has a label per member, "" if the suite defines no kinds.

    Two SAEs trained with one seed may have begun with the same weights. So means are over the pairs of different seeds,
    and their jackknife leaves out one seed at a time, with all of its SAEs.
    """

    names: Sequence[str]
    kinds: Sequence[str]
    seeds: Sequence[int | None]
    """Each member's training seed; None if it is unknown."""
    pairs: Sequence[Pair]
    features: Mapping[str, Sequence[np.ndarray]]
    """By main view, the indices of each member's matched features."""
    widths: Sequence[int]
    missing: str = ""
    """The reason for NaN numbers, if there are any."""
    floor_n: int | None = None
    """Number of observations that the floors depend on."""
    chance: Null | None = None
    """The null that a floor stands for, if the excess over it is tested."""

    @cached_property
    def independent(self) -> list[Pair]:
        """The pairs of different seeds; all pairs if there are none or a seed is unknown."""
        pairs = [p for p in self.pairs if not self._share(p.a, p.b)]
        return pairs or list(self.pairs)

    def _share(self, a: int, b: int) -> bool:
        return self.seeds[a] is not None and self.seeds[a] == self.seeds[b]

    def _relation(self, pair: Pair) -> str:
        if None in (self.seeds[pair.a], self.seeds[pair.b]):
            return "unknown"
        return "same" if self._share(pair.a, pair.b) else "different"

    @cached_property
    def _no_error(self) -> str:
        """The reason why the values of the group have no error over seeds; empty if they have."""
        unknown = [f"'{name}'" for name, seed in zip(self.names, self.seeds, strict=True) if seed is None]
        if unknown:
            more = f" and {len(unknown) - 3} more" if len(unknown) > 3 else ""
            verb = "is" if len(unknown) == 1 else "are"
            entry = "its entry" if len(unknown) == 1 else "their entries"
            return (
                f"an error needs the seed of each SAE, and that of {', '.join(unknown[:3])}{more} {verb} unknown: "
                f"write 'seed: NUMBER' in {entry} of 'saes:'"
            )
        return too_few(self.seeds)

    def values(self) -> dict[str, Value]:
        """All values of the group. Only the main views have arrays."""
        values: dict[str, Value] = {}
        for name in self.pairs[0].numbers:
            better: Better = "higher" if not name.endswith(("a_to_b", "b_to_a")) else None
            null = UNTRAINED if name in (f"{view}_matched" for view in self.features) else None
            values[name] = self._scalar(name, {(p.a, p.b): p.numbers[name] for p in self.pairs}, better, null)
            floors = {(p.a, p.b): floor for p in self.pairs if (floor := p.floor(name)) is not None}
            if name.endswith(FLOORED) and len(floors) == len(self.pairs):
                floor = float(np.mean([floors[p.a, p.b] for p in self.independent]))
                reason = self.missing if math.isnan(floor) else None
                values[f"{name}_floor"] = Scalar(
                    floor, unit=unit_of(name), n=self.floor_n, reason=reason, comparable="hook"
                )
                excess = {(p.a, p.b): p.numbers[name] - floors[p.a, p.b] for p in self.pairs}
                null = self.chance if null else None
                values[f"{name}_excess"] = self._scalar(f"{name}_excess", excess, better, null)
        for view, numbers in self.features.items():
            name = f"{view}_found_in_all"
            unit = unit_of(name)
            if not all(view in p.views for p in self.pairs):
                values[name] = Scalar.undefined(self.missing, unit=unit, better="higher")
                continue
            shares = self._found_in_all(view)
            spread = f"members range from {_range(shares)}"
            reason = f"{spread}; leaving out an SAE can only raise it, so it has no error over seeds"
            mean = float(np.mean(shares))
            values[name] = Scalar(mean, unit=unit, better="higher", reason=reason, comparable="hook")
            for pair in self.pairs:
                values |= _arrays(view, pair, numbers, self.widths)
        columns = ["sae", "kind", "seed", "features", *(f"{view}_features" for view in self.features)]
        counts = [map(len, numbers) for numbers in self.features.values()]
        rows = list(zip(self.names, self.kinds, self.seeds, self.widths, *counts, strict=True))
        values["members"] = Table(columns, rows)
        if shared := len(self.pairs) - len(self.independent):
            note = f"means are over {len(self.independent)} pairs of different seeds, without {shared} of one seed"
            values["seeds"] = Notes([f"{note}, which the table 'pairs' has"])
        values |= {"pairs": self._pairs(), "floors": self._floors()}
        return {**values, "kinds": self._kinds()} if any(self.kinds) else values

    def _found_in_all(self, view: str) -> list[float]:
        """The share of each member's features that all others of other seeds match above SHARED."""
        hits: dict[int, list[np.ndarray]] = {}
        for pair in self.independent:
            for member, matched in zip((pair.a, pair.b), above(pair.views[view]), strict=True):
                hits.setdefault(member, []).append(matched)
        return [float(np.logical_and.reduce(hits[member]).mean()) for member in sorted(hits)]

    def _scalar(self, name: str, numbers: Mapping[tuple[int, int], float], better: Better, null: Null | None) -> Scalar:
        """The mean over independent pairs with its jackknife over seeds; without an error, with their range and why."""
        own = {(self.seeds[p.a], self.seeds[p.b], p.a, p.b): numbers[p.a, p.b] for p in self.independent}
        value, unit = float(np.mean(list(own.values()))), unit_of(name)
        if math.isnan(value):
            return Scalar.undefined(self.missing, unit=unit, better=better)
        if self._no_error:
            spread = f"pairs range from {_range(list(own.values()))}" if len(own) > 1 else "one pair of SAEs"
            reason = f"{spread}; {self._no_error}"
            return Scalar(value, unit=unit, better=better, reason=reason, comparable="hook", null=null)
        seeds = sorted(set(self.seeds), key=str)
        without = [np.mean([x for (a, b, *_), x in own.items() if seed not in (a, b)]) for seed in seeds]
        estimate = Estimate(value, np.array(without), np.ones(len(seeds)))
        share = unit.startswith("share") and not name.endswith("_excess")
        return Scalar(
            estimate, unit=unit, better=better, n=len(own), seeds=list(map(str, seeds)),
            comparable="hook", null=null, proportion=share, ci95=estimate.ci95 if share else None,
        )  # fmt: skip

    def _pairs(self) -> Table:
        rows = []
        for p in self.pairs:
            for view, matching in p.views.items():
                proof = matching.certificate
                sizes = p.sizes.get(view, (len(proof.u), len(proof.v)))
                numbers = [p.numbers.get(f"{view}_{name}", value) for name, value in measures(matching).items()]
                rows.append([self.names[p.a], self.names[p.b], view, *sizes, *numbers, proof.gap, self._relation(p)])
        return Table(["a", "b", "view", "n_a", "n_b", *MEASURES, "gap", "seeds"], rows)

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
        """All numbers within each kind and across each two kinds; floors are means over the same pairs.

        Pairs of one seed have rows of their own.
        """
        rows = []
        labels = itertools.combinations_with_replacement(dict.fromkeys(self.kinds), 2)
        for (kind_a, kind_b), seeds in itertools.product(labels, ("different", "unknown", "same")):
            kinds = sorted((kind_a, kind_b))
            pairs = [
                p for p in self.pairs
                if self._relation(p) == seeds and sorted((self.kinds[p.a], self.kinds[p.b])) == kinds
            ]  # fmt: skip
            for name in pairs[0].numbers if pairs else ():
                values = [p.numbers[name] for p in pairs]
                floors = [floor for p in pairs if (floor := p.floor(name)) is not None]
                floor = float(np.mean(floors)) if floors else None
                spread = [float(np.mean(values)), min(values), max(values)]
                rows.append([kind_a, kind_b, seeds, len(pairs), name, *spread, floor])
        return Table(["kind_a", "kind_b", "seeds", "pairs", "value", "mean", "lowest", "highest", "floor"], rows)


def group_values(views: Sequence[str], main: Sequence[str], floors: bool) -> list[str]:
    """Names of the values that each view of a group has."""
    names = [f"{view}_{measure}" for view in views for measure in MEASURES]
    names += [f"{view}{end}{of}" for view in views for end in FLOORED for of in ("_floor", "_excess")] if floors else []
    return [*names, *(f"{view}_found_in_all" for view in main)]


def _range(values: Sequence[float]) -> str:
    return f"{formatting.number(min(values))} to {formatting.number(max(values))}"


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


def too_few(seeds: Sequence[int | None]) -> str:
    """The reason why known seeds give no error over seeds; empty if they do."""
    count = len(set(seeds))
    if count == 1:
        return f"all SAEs were trained with the seed {seeds[0]}, so no pair is independent"
    return f"an error needs {INTERVAL_FROM} seeds, and there are {count}" if count < INTERVAL_FROM else ""


def remarks_on(subjects: Sequence[Subject]) -> list[str]:
    """The remark on a group whose seeds are known and too few for an error."""
    seeds = [(subject.facts or {}).get("seed") for subject in subjects]
    reason = "" if None in seeds else too_few(seeds)
    return [f"{reason}, so no value of the group will be tested"] if reason else []


def pair_sizes(subjects: Sequence[Subject]) -> list[tuple[int, int, int]]:
    """(features of A, features of B, dimension) of each pair; an unknown size counts as 0."""
    sizes = [(s.d_sae or 0, max(s.d_in or 0, s.d_out or 0)) for s in subjects]
    return [(n, m, d) for (n, d), (m, _) in itertools.combinations(sizes, 2)]
