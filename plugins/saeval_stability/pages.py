"""The stability report: a section for each group, with the means first, charts, and all numbers in folded tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from saeval.plugin import PageTable, Section, formatting, verdicts_in_words, verdicts_on
from saeval_stability.plots import heat_map, matchings, pairs, similarities, views

if TYPE_CHECKING:
    from saeval.plugin import Result

METRICS = ("seed_stability", "functional_stability")
_COLUMNS = {
    "mean": "over independent pairs, or over members where the range says so",
    "floor": "mean over the same pairs of the larger null of each",
    "mean − floor": "the excess over chance, with its 95% interval over seeds if it has one",
}
_PAIRS = {
    "matched": "sum of the similarities of a one-to-one matching, over the larger number of features: Σ / max(n)",
    "matched_over_smaller": "the same sum over the smaller number of features",
    "max_a_to_b": "mean similarity of each feature of a to its most similar one of b, several of which may be the same",
    "collisions_a_to_b": "share of features of a whose most similar feature of b is that of another one too",
    "gap": "distance of the matching's sum from its upper bound; 0 is optimal",
    "seeds": "whether both SAEs were trained with different seeds",
}


def sections(results: Sequence[Result]) -> list[Section]:
    """Return a section for every group of a run and metric."""
    shown = [r for r in results if r.cell["metric"] in METRICS and r.status == "ok" and "twin" not in r.cell]
    return [_section(result, results) for result in shown]


def _section(result: Result, results: Sequence[Result]) -> Section:
    all_twins = _twins(result, results)
    twins = [twin for twin in all_twins if twin.status == "ok"]
    drawn = [pairs(result, twins), heat_map(result), similarities(result, twins)]
    if {"decoder", "encoder"} <= set(views(result)):
        drawn.append(matchings(result))
    return Section(
        f"{result.metric}-{result.cell['over']}".replace("_", "-"), f"{result.metric} of {result.cell['over']}",
        [*_found(result), *(f"{words}." for words in verdicts_in_words(verdicts_on([result, *twins])))],
        drawn, tables(result, results), notes=[*(f"{note}." for note in result.notes), *_explained(all_twins)],
    )  # fmt: skip


def _found(result: Result) -> list[str]:
    """Sentences on the mean of each view, beside its floor."""
    sentences = []
    for view in views(result):
        value, floor = result.values[f"{view}_matched"]["value"], _floor(result, f"{view}_matched")
        if value is not None:
            beside = f", where chance gives {formatting.number(floor, 3)}" if floor is not None else ""
            sentences.append(f"{view}: matched one-to-one, mean {formatting.number(value, 3)}{beside}.")
    return sentences


def _twins(result: Result, results: Sequence[Result]) -> list[Result]:
    """The results of the same metric for the group with its SAEs replaced by controls, also failed ones."""
    group = result.cell["over"]
    return [r for r in results if r.metric == result.metric and r.cell.get("twin", {}).get("of") == group]


def tables(result: Result, results: Sequence[Result]) -> list[PageTable]:
    """Return the tables of a group: its headline means, its members, and folded all means, pairs and floors."""
    twins = [twin for twin in _twins(result, results) if twin.status == "ok"]
    shown = [n for n, r in result.values.items() if "kind" not in r and not n.endswith(("_floor", "_excess"))]
    headline = [name for name in shown if name in result.headline]
    made = [_means("headline", "Means", headline, result, twins)] if headline else []
    made += [_members(result, results), _means("means", "All means", shown, result, twins, folded=True)]
    for name, title, notes in (
        ("kinds", "Within and across kinds", {}), ("pairs", "Pairs", _PAIRS), ("floors", "Floors", {}),
    ):  # fmt: skip
        if name in result.values:
            table = result.values[name]
            notes = {column: note for column, note in notes.items() if column in table["columns"]}
            made.append(PageTable(name, title, table["columns"], table["rows"], notes, folded=True))
    return made


def _means(
    name: str, title: str, values: Sequence[str], result: Result, twins: Sequence[Result], *, folded: bool = False
) -> PageTable:
    columns = ["value", "mean", "95% interval or range", "floor", "mean − floor"]
    notes = dict(_COLUMNS)
    for twin in twins:
        columns += [twin.cell["over"], f"mean − {twin.cell['over']}"]
        notes[f"mean − {twin.cell['over']}"] = "paired by seed, for values of which the twin is the null"
    rows: list[list[str | float | None]] = []
    for value in values:
        record, floor = result.values[value], _floor(result, value)
        excess = result.values.get(f"{value}_excess") or {"value": _less(record["value"], floor)}
        ends = _with_interval(excess.get("value"), excess.get("ci95"))
        rows.append([value, record["value"], _interval(record), floor, ends])
        for twin in twins:
            rows[-1] += [twin.values.get(value, {}).get("value"), _ahead(result, twin, value)]
    return PageTable(name, title, columns, rows, notes, folded=folded)


def _explained(twins: Sequence[Result]) -> list[str]:
    """Sentences on the columns of the means, and on twins without values."""
    sentences = [f"{t.cell['over']}: {t.status}: {t.reason}." for t in twins if t.status != "ok"]
    return sentences + [
        f"{t.cell['over']} is the same group with each SAE replaced by its control '{t.cell['twin']['control']}', each "
        "drawn independently. Differences to it are paired by seed."
        for t in twins
        if t.status == "ok"
    ]


def _ahead(result: Result, twin: Result, name: str) -> str:
    """The difference to a twin with its interval, for values of which the twin is the null."""
    record, other = result.values[name], twin.values.get(name, {})
    if record.get("null", {}).get("control") != twin.cell["twin"]["control"]:
        return "–"
    a, b = result.estimate(name), twin.estimate(name)
    paired = a - b if a is not None and b is not None and record.get("seeds") == other.get("seeds") else None
    return _with_interval(_less(record["value"], other.get("value")), paired.ci95 if paired is not None else None)


def _with_interval(value: float | None, ci95: Sequence[float] | None) -> str:
    number = formatting.number
    return number(value) + (f" [{number(ci95[0])}, {number(ci95[1])}]" if ci95 else "")


def _members(result: Result, results: Sequence[Result]) -> PageTable:
    """The members, with their L0, loss and explained variance if the run has them, so that readers can compare them."""
    table = result.values["members"]
    shown = ("l0", "delta_ce", "explained_variance")
    extra = list(dict.fromkeys(f"{r.metric}.{name}" for r in results for name in shown if name in r.values))
    rows = []
    for row, subject in zip(table["rows"], result.cell["subjects"], strict=True):
        mine = [r for r in results if [s["key"] for s in r.cell["subjects"]] == [subject["key"]]]
        values = {f"{r.metric}.{name}": record.get("value") for r in mine for name, record in r.values.items()}
        rows.append([*row, *(values.get(name) for name in extra)])
    notes = {f"{view}_features": "features that fire often enough to be compared" for view in views(result)}
    columns = [*table["columns"], *extra]
    return PageTable("members", "Members", columns, rows, {c: n for c, n in notes.items() if c in columns})


def _floor(result: Result, name: str) -> float | None:
    """Mean over independent pairs of the larger null; None if a null is missing for some pair."""
    columns, rows = (result.values["floors"][part] for part in ("columns", "rows"))
    nulls = [i + 4 for i, column in enumerate(columns[4:-1]) if not column.endswith("_sd")]
    pairs = result.values["pairs"]["rows"]
    dependent = {tuple(row[:2]) for row in pairs if row[-1] == "same"}
    if len(dependent) == len({tuple(row[:2]) for row in pairs}):
        dependent = set()  # no pair is independent, so means are over all pairs
    means = [[row[i] for i in nulls] for row in rows if row[2] == name and tuple(row[:2]) not in dependent]
    complete = means and nulls and all(value is not None for pair in means for value in pair)
    return float(np.mean([max(pair) for pair in means])) if complete else None


def _less(value: float | None, other: float | None) -> float | None:
    return value - other if value is not None and other is not None else None


def _interval(record: Mapping[str, Any]) -> str:
    return " – ".join(map(formatting.number, record["ci95"])) if record["ci95"] else str(record.get("reason", ""))
