"""How far the values of a run can be trusted: their errors, what they tell apart, and how they respond to damage."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from jaxtyping import Float

from saeval.results.board import Board, Column, Entry, Row, document_count
from saeval.results.certificate import (
    TRAINED,
    Certificate,
    Certified,
    Correlation,
    Dose,
    Interval,
    Order,
    digests,
    verdict,
)
from saeval.results.comparability import ground
from saeval.results.paired_tests import ALPHA, Difference, difference, holm
from saeval.results.result import Result
from saeval.stats.estimate import ROUNDING, proportion_interval, reach95

LEAST_RANKED = 5
"""SAEs below which a rank correlation is not worth a number."""
CLOSEST = 5
"""Values that rank the SAEs most alike, kept for each value."""
_TWINS = 1e-9
"""Relative difference below which a control has the value of its SAE by construction."""


@dataclass(frozen=True)
class Roles:
    """What the rows and columns of a run that certifies a suite are for."""

    metrics: Sequence[str]
    """The metrics of the suite itself."""
    reseeds: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """By metric, the aliases of its configurations that differ in the seed alone."""
    standing: Mapping[str, int] = field(default_factory=dict)
    """The place of controls, by name: a higher number for a better one."""
    ladders: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """By kind of damage, the names of its controls with their doses, in ascending order."""
    truths: Sequence[str] = ()
    """Metrics that know the true features."""
    groups: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Groups of SAEs that differ in their training seeds, with the names of their members."""


def certificate(results: Sequence[Result], board: Board, roles: Roles) -> Certificate:
    """Return the certificate of the values of one run; `board` has all its columns."""
    columns = [c for c in board.columns if c.metric in roles.metrics and not c.paired]
    saes = [row for row in board.rows if row.kind == "sae"]
    evidence = _Evidence(board, roles)
    found = [evidence.of(column) for column in columns]
    ranked = {one.column: evidence.ranks(column) for one, column in zip(found, columns, strict=True)}
    truths = _truths(found, columns, roles)
    made = []
    for one, column in zip(found, columns, strict=True):
        others = _correlations(one.column, ranked, [name for name in ranked if name != one.column])
        true = _correlations(one.column, ranked, [] if column.metric in roles.truths else truths)
        whole = replace(one, same=tuple(others[:CLOSEST]), truths=tuple(true))
        word, reasons = verdict(whole)
        made.append(replace(whole, verdict=word, reasons=tuple(reasons)))
    own = {name: digest for name, digest in digests(results).items() if name in roles.metrics}
    first = results[0].cell
    return Certificate(board.title, len(saes), made, ground(first), own, first["data"].get("limit"))


def _truths(found: Sequence[Certified], columns: Sequence[Column], roles: Roles) -> list[str]:
    """Return the main values of metrics that know the truth, without those that fail beside controls and damages."""
    return [
        one.column
        for one, column in zip(found, columns, strict=True)
        if column.metric in roles.truths and column.main and column.better and verdict(one)[0] != "unusable"
    ]


class _Evidence:
    """What the rows of a board say of each of its columns."""

    def __init__(self, board: Board, roles: Roles) -> None:
        self.board, self.roles = board, roles
        self.controls = {(row.of, row.control): row for row in board.rows if row.control and row.of}

    def of(self, column: Column) -> Certified:
        """Return all that is found of a value, without correlations and verdict."""
        trained = self._trained(column)
        entries = [row.entries[column.name] for row in trained]
        errors = [entry.stderr for entry in entries if entry.stderr is not None]
        documents = document_count(self.board.data)
        by_document = bool(errors) and documents is not None and not any(entry.seeds for entry in entries)
        values = [[_number(row, column.name) for row in rows] for rows in self._at_hooks(column, trained)]
        apart, difference = self._apart(column, trained)
        return Certified(
            column.name,
            of="group" if trained and trained[0].kind == "group" else "SAE",
            better=column.better,
            unit=column.unit,
            stderr=float(np.median(errors)) if errors else None,
            documents=4 * documents if by_document and documents is not None else None,
            spread=_deviation(values).value if any(len(own) > 1 for own in values) else None,
            evaluation=self._evaluation(column, trained),
            training=self._training(column, trained),
            apart=apart,
            difference=difference,
            orders=tuple(self._orders(column, trained)),
            doses=tuple(self._doses(column, trained)),
        )

    def ranks(self, column: Column) -> dict[str, float]:
        """Return the place of each SAE among those at its hook, from -1 for the worst to 1 for the best."""
        places: dict[str, float] = {}
        for rows in self._at_hooks(column, self._trained(column)):
            values = np.array([_number(row, column.name) for row in rows]) * (-1 if column.better == "lower" else 1)
            if len(rows) > 1 and np.ptp(values) > ROUNDING * np.abs(values).max():
                below = (values[:, None] > values).sum(1) - (values[:, None] < values).sum(1)
                places |= {r.name: float(p) for r, p in zip(rows, below / (len(rows) - 1), strict=True)}
        return places

    def _trained(self, column: Column) -> list[Row]:
        """Return the rows of SAEs, or of groups, that have the value."""
        return [
            row
            for row in self.board.rows
            if row.kind in ("sae", "group")
            and (entry := row.entries.get(column.name)) is not None
            and entry.value is not None
        ]

    def _at_hooks(self, column: Column, rows: Sequence[Row]) -> list[list[Row]]:
        """Return the rows by hook; together if no two are at one hook and the value is comparable between hooks."""
        hooks: dict[str, list[Row]] = {}
        for row in rows:
            hooks.setdefault(row.site, []).append(row)
        several = [own for own in hooks.values() if len(own) > 1]
        return several or ([] if column.comparable == "hook" else [list(rows)])

    def _evaluation(self, column: Column, trained: Sequence[Row]) -> Interval | None:
        aliases = self.roles.reseeds.get(column.metric, ())
        if not aliases:
            return None
        names = [column.name, *(f"{alias}.{column.value}" for alias in aliases)]
        found = [[e.value for name in names if (e := row.entries.get(name)) and e.value is not None] for row in trained]
        return _deviation(found) if any(len(values) > 1 for values in found) else None

    def _training(self, column: Column, trained: Sequence[Row]) -> Interval | None:
        by_name = {row.name: row for row in trained}
        found = []
        for members in self.roles.groups.values():
            own = [by_name[name] for name in members if name in by_name]
            if len(own) > 1 and len({row.site for row in own}) == 1:
                found.append([_number(row, column.name) for row in own])
        return _deviation(found) if found else None

    def _apart(self, column: Column, trained: Sequence[Row]) -> tuple[Interval | None, float | None]:
        """Return the share of pairs that tests tell apart, without those of one recipe: these need not differ.

        Beside it, the median difference of those told apart, as a share of the larger of both values.
        """
        pairs = [
            (a, b)
            for rows in self._at_hooks(column, trained)
            for a, b in itertools.combinations(rows, 2)
            if not any(a.name in group and b.name in group for group in self.roles.groups.values())
        ]
        tests = [_difference(a.entries[column.name], b.entries[column.name]) for a, b in pairs]
        p_values = holm([test.p_value if test is not None else None for test in tests])
        if all(p is None for p in p_values):
            return None, None
        told = [pair for pair, p in zip(pairs, p_values, strict=True) if p is not None and p < ALPHA]
        both = np.array([[_number(row, column.name) for row in pair] for pair in told]).reshape(-1, 2)
        relative = np.abs(both[:, 0] - both[:, 1]) / np.abs(both).max(axis=1)
        return _share(len(told) / len(pairs), len(trained)), float(np.median(relative)) if told else None

    def _orders(self, column: Column, trained: Sequence[Row]) -> Iterable[Order]:
        """Yield how often each kind of row is better than each lower one; the controls in their standing."""
        if column.better is None:
            return
        kinds = sorted(self.roles.standing, key=lambda name: -self.roles.standing[name])
        present = [k for k in kinds if any((row.name, k) in self.controls for row in trained)]
        for better, worse in itertools.combinations([TRAINED, *present], 2):
            wins, differ = [], False
            for row in trained:
                a, b = (self._value(row, kind, column.name) for kind in (better, worse))
                if a is None or b is None:
                    continue
                same = abs(a - b) <= _TWINS * max(abs(a), abs(b))
                differ |= not same
                wins.append(0.5 if same else float((a > b) == (column.better == "higher")))
            if wins:
                yield Order(better, worse, _share(float(np.mean(wins)), len(wins)) if differ else None)

    def _value(self, row: Row, kind: str, name: str) -> float | None:
        """Return the value of a row, or of its control of a kind."""
        other = row if kind == TRAINED else self.controls.get((row.name, kind))
        entry = other.entries.get(name) if other is not None else None
        return entry.value if entry is not None else None

    def _doses(self, column: Column, trained: Sequence[Row]) -> Iterable[Dose]:
        """Yield what each kind of damage does to a value, of those that it has values of."""
        for damage, rungs in self.roles.ladders.items() if column.better else ():
            names = [rung for rung in rungs if any(self._value(row, rung, column.name) is not None for row in trained)]
            if names:
                yield self._dose(column, trained, damage, {rung: rungs[rung] for rung in names})

    def _dose(self, column: Column, trained: Sequence[Row], damage: str, rungs: Mapping[str, float]) -> Dose:
        """Return what a growing damage does to a value."""
        from scipy.stats import kendalltau  # late: it takes a second

        sign = 1.0 if column.better == "lower" else -1.0
        taus, tests = [], []
        for row in trained:
            steps = [(0.0, row.entries[column.name])]
            steps += [
                (dose, entry)
                for rung, dose in rungs.items()
                if (other := self.controls.get((row.name, rung))) is not None
                and (entry := other.entries.get(column.name)) is not None
                and entry.value is not None
            ]
            values = [sign * entry.value for _, entry in steps if entry.value is not None]
            if len(values) < 2 or np.ptp(values) <= _TWINS * np.abs(values).max():
                continue
            taus.append(float(kendalltau([dose for dose, _ in steps], values).statistic))
            for dose, entry in steps[1:]:
                test = _difference(entry, steps[0][1])
                worse = test is not None and sign * test.value > 0
                tests.append((dose, test.p_value if test is not None and worse else None))
        if not taus:
            return Dose(damage, None)
        found = [(dose, p) for (dose, _), p in zip(tests, holm([p for _, p in tests]), strict=True)]
        detected = [
            dose
            for dose in dict.fromkeys(dose for dose, _ in found)
            if sum(p is not None and p < ALPHA for d, p in found if d == dose) >= len(taus) / 2
        ]
        return Dose(damage, _mean(taus), min(detected, default=None))


def _number(row: Row, name: str) -> float:
    value = row.entries[name].value
    assert value is not None
    return value


def _difference(a: Entry, b: Entry) -> Difference | None:
    return difference(a, b) if a.value is not None and b.value is not None else None


def _share(share: float, n: int) -> Interval:
    """Return a share of `n` SAEs with Wilson's interval."""
    return Interval(share, *proportion_interval(share, 0.0, n, n), n)


def _mean(taus: Sequence[float]) -> Interval:
    """Return the mean of a rank correlation over SAEs, with the t interval of these and one more SAE of 0.

    That one keeps the interval from vanishing where all agree: five of 1 give one from 0.4 on, three one that has 0.
    """
    value, n = float(np.mean(taus)), len(taus)
    if n < 2:
        return Interval(value, None, None, n)
    more = [*taus, 0.0]
    middle, reach = float(np.mean(more)), reach95(float(np.std(more, ddof=1)) / math.sqrt(n + 1), n)
    return Interval(value, max(middle - reach, -1.0), min(middle + reach, 1.0), n)


def _deviation(samples: Sequence[Sequence[float]]) -> Interval:
    """Return the standard deviation within samples, pooled, with its interval by the chi-square law."""
    from scipy.special import chdtri  # late: as above

    several = [np.asarray(own, dtype=np.float64) for own in samples if len(own) > 1]
    dof = sum(len(own) - 1 for own in several)
    squares = sum(float(np.square(own - own.mean()).sum()) for own in several)
    largest = max(float(np.abs(own).max()) for own in several)
    value = math.sqrt(squares / dof)
    if value <= ROUNDING * largest:
        return Interval(0.0, 0.0, 0.0, dof)
    low, high = (math.sqrt(squares / float(chdtri(dof, level))) for level in (0.025, 0.975))
    return Interval(value, low, high, dof)


def _correlations(name: str, ranked: Mapping[str, Mapping[str, float]], others: Sequence[str]) -> list[Correlation]:
    """Return Spearman's correlation of the places of the SAEs with those in other values, the closest first."""
    mine, found = ranked[name], []
    for other in others:
        both = [row for row in mine if row in ranked[other]]
        if len(both) < LEAST_RANKED:
            continue
        a, b = (np.array([places[row] for row in both]) for places in (mine, ranked[other]))
        if np.ptp(a) and np.ptp(b):
            found.append(Correlation(other, _spearman(a - a.mean(), b - b.mean())))
    return sorted(found, key=lambda one: -abs(one.rho.value))


def _spearman(a: Float[np.ndarray, "n"], b: Float[np.ndarray, "n"]) -> Interval:
    """Return the correlation of places with Fisher's interval, whose variance for ranks is 1.06 / (n − 3).

    Perfect ones have the interval of a correlation halfway to that of two neighbours out of order.
    """
    n = len(a)
    rho = float(np.clip((a @ b) / math.sqrt(float(a @ a) * float(b @ b)), -1, 1))
    most = 1 - 6 / (n * (n * n - 1))
    middle, reach = math.atanh(min(max(rho, -most), most)), 1.959964 * math.sqrt(1.06 / (n - 3))
    low, high = math.tanh(middle - reach), math.tanh(middle + reach)
    return Interval(rho, -1.0 if rho < -most else low, 1.0 if rho > most else high, n)
