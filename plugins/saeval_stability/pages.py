"""The stability report: plots, and tables as Markdown."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from saeval.plugin import (
    Result,
    escapes,
    figure,
    formatting,
    png,
    set_title,
    verdicts_in_words,
    verdicts_on,
    wrap_title,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

METRICS = ("seed_stability", "functional_stability")
_PANELS = 16
"""Most pairs in one plot."""


def pages(results: Sequence[Result]) -> Mapping[str, bytes | str]:
    """Plots and tables of every group of a run, by file name."""
    files: dict[str, bytes | str] = {}
    for result in (r for r in results if r.cell["metric"] in METRICS and r.status == "ok" and "twin" not in r.cell):
        twins = _twins(result, results)
        stem = escapes.file_name(f"{result.metric}-{result.cell['over']}".replace("_", "-"))
        while f"{stem}.md" in files:  # escaping can map two names of groups to one
            stem += "-"
        files[f"{stem}.md"] = tables(result, results)
        files[f"{stem}-matched.png"] = png(histograms(result, twins))
        files[f"{stem}-pairs.png"] = png(heat_maps(result, twins))
        if {"decoder", "encoder"} <= set(_views(result)):
            files[f"{stem}-encoder-decoder.png"] = png(scatter(result))
    return files


def _twins(result: Result, results: Sequence[Result]) -> list[Result]:
    """The results of the same metric for the group with its SAEs replaced by controls."""
    own = {"metric": result.metric, "of": result.cell["over"]}
    twins = [r for r in results if {"metric": r.metric, "of": r.cell.get("twin", {}).get("of")} == own]
    return [twin for twin in twins if twin.status == "ok"]


def _views(result: Result) -> list[str]:
    """The main views that every pair has."""
    suffix = "_found_in_all"
    return [n.removesuffix(suffix) for n, r in result.values.items() if n.endswith(suffix) and r["value"] is not None]


def _pairs(result: Result) -> list[tuple[int, int]]:
    """Indices of the two members of each pair."""
    view = _views(result)[0]
    ends = (re.fullmatch(rf"{view}_indices_(\d+)_(\d+)", name) for name in result.values)
    return [(int(m[1]), int(m[2])) for m in ends if m]


def _names(result: Result) -> list[str]:
    """Members' names, without the folder if all share it."""
    names = [s["name"] for s in result.cell["subjects"]]
    folder = names[0].rpartition("/")[0] + "/"
    return [n.removeprefix(folder) for n in names] if all(n.startswith(folder) for n in names) else names


def histograms(result: Result, twins: Sequence[Result] = ()) -> Figure:
    """Histograms of matched similarities, of one draw from a null and of twins: a row per pair, a column per view."""
    views, pairs, names = _views(result), _pairs(result)[:_PANELS], _names(result)
    width = 4.0 * len(views) + 0.4
    fig = figure(width, 1.9 * len(pairs) + 1.1 + 0.15 * len(twins))
    shown = {"the SAEs of the group (dotted: their Σ / max(n))": "C0"}
    shown |= {_replaced(result, twin): f"C{index}" for index, twin in enumerate(twins, 1)}
    matched = [_matched(group) for group in (result, *twins)]
    axes = fig.subplots(len(pairs), len(views), sharex="col", squeeze=False)
    for row, (a, b) in zip(axes, pairs, strict=True):
        for panel, view in zip(row, views, strict=True):
            cosines = result.array(f"{view}_cosines_{a}_{b}")
            cosines = cosines[~np.isnan(cosines)]
            chance = result.arrays.get(f"value/{view}_chance_{a}_{b}", np.zeros(0))
            low = min(0.0, float(np.concatenate([cosines, chance]).min(initial=0.0)))
            bins = np.linspace(low, 1, 61)
            if len(chance):
                panel.hist(chance, bins, color="0.75")
                shown[f"chance: one draw of the null model {_nulls(result)}"] = "0.75"
            panel.hist(cosines, bins, histtype="step", color="C0", linewidth=1.4)
            panel.axvline(matched[0][a, b, view], color="C0", linewidth=1, linestyle=":")
            for index, twin in enumerate(twins, 1):
                drawn = twin.arrays.get(f"value/{view}_cosines_{a}_{b}", np.zeros(0))
                panel.hist(drawn[~np.isnan(drawn)], bins, histtype="step", color=f"C{index}", linewidth=1.2)
            means = ", twin ".join(f"{of[a, b, view]:.3f}" for of in matched if (a, b, view) in of)
            title = wrap_title(f"{view}: {names[a]} – {names[b]}", 3.5, 8)
            panel.set_title(f"{title}\nΣ / max(n): {means}", fontsize=8)
            panel.tick_params(labelsize=7)
    for panel, view in zip(axes[-1], views, strict=True):
        panel.set_xlabel(f"{_similarity(view)} of matched features", fontsize=8)
    fig.supylabel("features", fontsize=9)
    handles = [axes[0, 0].plot([], [], color=colour, linewidth=3)[0] for colour in shown.values()]
    fig.legend(handles, [wrap_title(text, width - 1, 7) for text in shown], fontsize=7, loc="outside lower center")
    set_title(fig, _title(result, "matched one-to-one"))
    return fig


def _replaced(result: Result, twin: Result) -> str:
    """The description of a twin, with the name of the null hypothesis that it stands for."""
    control, group = twin.cell["twin"]["control"], twin.cell["over"]
    nulls = {r["null"].get("control"): r["null"]["name"] for r in result.values.values() if r.get("null")}
    meaning = f", {nulls[control]}" if control in nulls else ""
    return f"{group}: the twin, with each SAE replaced by its control '{control}'{meaning}"


def _nulls(result: Result) -> str:
    """The null models of the floors, by the names of their columns."""
    columns = result.values["floors"]["columns"][4:-1]
    return " or ".join(f"'{column}'" for column in columns if not column.endswith("_sd"))


def _matched(result: Result) -> dict[tuple[int, int, str], float]:
    """Σ / max(n) of each pair, by its members' indices and the view."""
    names = [row[0] for row in result.values["members"]["rows"]]
    columns, rows = (result.values["pairs"][part] for part in ("columns", "rows"))
    matched = columns.index("matched")
    return {(names.index(row[0]), names.index(row[1]), row[2]): row[matched] for row in rows}


def scatter(result: Result) -> Figure:
    """Each feature's cosine in the encoder matching against the decoder matching, coloured by equal partners."""
    pairs, names = _pairs(result)[:_PANELS], _names(result)
    columns = min(4, len(pairs))
    rows = -(-len(pairs) // columns)
    fig = figure(3.2 * columns + 0.4, 3.1 * rows + 0.7)
    axes = fig.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
    for panel in axes[len(pairs) :]:
        panel.set_visible(False)
    for panel, (a, b) in zip(axes, pairs, strict=False):
        x, y = (result.array(f"{view}_cosines_{a}_{b}") for view in ("decoder", "encoder"))
        dec, enc = (result.array(f"{view}_indices_{a}_{b}") for view in ("decoder", "encoder"))
        matched = (dec >= 0) & (enc >= 0)
        for chosen, colour, label in ((dec != enc, "C1", "different partners"), (dec == enc, "C0", "same partner")):
            shown = matched & chosen
            panel.scatter(x[shown], y[shown], s=4, color=colour, alpha=0.5, label=f"{label}: {int(shown.sum())}")
        panel.axline((0, 0), slope=1, color="0.7", linewidth=0.8)
        panel.set_title(wrap_title(f"{names[a]} – {names[b]}", 2.9, 8), fontsize=8)
        panel.legend(fontsize=6, loc="upper left")
        panel.tick_params(labelsize=7, labelbottom=True)
    fig.supxlabel("cosine in the decoder matching", fontsize=9)
    fig.supylabel("cosine in the encoder matching", fontsize=9)
    set_title(fig, _title(result, "features of the first SAE of each pair"))
    return fig


def heat_maps(result: Result, twins: Sequence[Result] = ()) -> Figure:
    """Heat maps of Σ / max(n) over all pairs: a row for the group and for each twin, a column per view."""
    views, labels = _views(result), [escapes.plot(name) for name in _names(result)]
    n, groups = len(labels), [result, *twins]
    side = 0.55 * n + 1.6
    fig = figure((side + 0.6) * len(views), (side + 0.2) * len(groups) + 0.4)
    axes = fig.subplots(len(groups), len(views), squeeze=False)
    for (group, view), panel in zip(itertools.product(groups, views), axes.ravel(), strict=True):
        matched, grid = _matched(group), np.eye(n)
        for a, b in _pairs(result):
            grid[a, b] = grid[b, a] = matched.get((a, b, view), np.nan)
        panel.imshow(grid, vmin=min(0.0, float(np.nanmin(grid))), vmax=1, cmap="viridis")
        for i in range(n):
            for j in range(n):
                if i != j and not np.isnan(grid[i, j]):
                    colour = "white" if grid[i, j] < 0.6 else "black"
                    panel.text(j, i, f"{grid[i, j]:.2f}", ha="center", va="center", fontsize=7, color=colour)
        panel.set_xticks(range(n), labels, rotation=45, ha="right", fontsize=7)
        panel.set_yticks(range(n), labels, fontsize=7)
        panel.set_title(
            wrap_title(f"{view} of {group.cell['over']}: Σ {_similarity(view)} / max(n)", side, 9), fontsize=9
        )
    set_title(fig, _title(result, "matched one-to-one"))
    return fig


def tables(result: Result, results: Sequence[Result]) -> str:
    """The tables of a group, as Markdown."""
    parts = [f"# {escapes.markdown(_title(result))}\n", *(f"{escapes.markdown(note)}.\n" for note in result.notes)]
    parts.append("## Members\n\n" + _members(result, results))
    twins = _twins(result, results)
    parts += [f"{escapes.markdown(sentence)}\n" for sentence in _explained(result, results)]
    parts += [f"{escapes.markdown(sentence)}.\n" for sentence in verdicts_in_words(verdicts_on([result, *twins]))]
    shown = [n for n, r in result.values.items() if "kind" not in r and not n.endswith(("_floor", "_excess"))]
    columns = ["value", "mean", "95% interval or range", "floor", "mean − floor"]
    for twin in twins:
        columns += [twin.cell["over"], f"mean − {twin.cell['over']}"]
    rows = []
    for name in shown:
        record, floor = result.values[name], _floor(result, name)
        excess = result.values.get(f"{name}_excess") or {"value": _less(record["value"], floor)}
        rows.append([name, *_interval(record), _cell(floor), _with_interval(excess.get("value"), excess.get("ci95"))])
        for twin in twins:
            rows[-1] += [_cell(twin.values.get(name, {}).get("value")), _ahead(result, twin, name)]
    parts.append("## Means over pairs\n\n" + _markdown(columns, rows))
    for name, title in (("kinds", "Within and across kinds"), ("pairs", "Pairs"), ("floors", "Floors")):
        if name in result.values:
            table = result.values[name]
            rows = [[_cell(cell) for cell in row] for row in table["rows"]]
            parts.append(f"## {title}\n\n" + _markdown(table["columns"], rows))
    return "\n".join(parts)


def _explained(result: Result, results: Sequence[Result]) -> list[str]:
    """Sentences on the columns of the means, and on twins without values."""
    own = [r for r in results if r.metric == result.metric and r.cell.get("twin", {}).get("of") == result.cell["over"]]
    sentences = [f"{r.cell['over']}: {r.status}: {r.reason}." for r in own if r.status != "ok"]
    for twin in _twins(result, results):
        control = twin.cell["twin"]["control"]
        sentences.append(
            f"{twin.cell['over']} is the same group with each SAE replaced by its control '{control}', each drawn "
            f"independently. Differences to it are paired by seed."
        )
    return sentences


def _ahead(result: Result, twin: Result, name: str) -> str:
    """The difference to a twin with its interval, for values of which the twin is the null."""
    record, other = result.values[name], twin.values.get(name, {})
    if record.get("null", {}).get("control") != twin.cell["twin"]["control"]:
        return "—"
    a, b = result.estimate(name), twin.estimate(name)
    paired = a - b if a is not None and b is not None and record.get("seeds") == other.get("seeds") else None
    return _with_interval(_less(record["value"], other.get("value")), paired.ci95 if paired is not None else None)


def _less(value: float | None, other: float | None) -> float | None:
    return value - other if value is not None and other is not None else None


def _with_interval(value: float | None, ci95: Sequence[float] | None) -> str:
    return _cell(value) + (f" [{_cell(ci95[0])}, {_cell(ci95[1])}]" if ci95 else "")


def _members(result: Result, results: Sequence[Result]) -> str:
    """The members, with their L0, loss and explained variance if the run has them, so that readers can compare them."""
    table = result.values["members"]
    extra = {
        f"{r.metric}.{value}": None
        for r in results
        for value in ("l0", "delta_ce", "explained_variance")
        if value in r.values
    }
    rows = []
    for row, subject in zip(table["rows"], result.cell["subjects"], strict=True):
        mine = [r for r in results if [s["key"] for s in r.cell["subjects"]] == [subject["key"]]]
        values = {f"{r.metric}.{name}": record.get("value") for r in mine for name, record in r.values.items()}
        rows.append([*map(_cell, row), *(_cell(values.get(name)) for name in extra)])
    return _markdown([*table["columns"], *extra], rows)


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


def _interval(record: Mapping[str, Any]) -> tuple[str, str]:
    if record["ci95"]:
        return _cell(record["value"]), " – ".join(map(_cell, record["ci95"]))
    return _cell(record["value"]), str(record.get("reason", ""))


def _markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    cells = [[escapes.markdown(cell) for cell in row] for row in rows]
    head = [escapes.markdown(column) for column in columns]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|", *(f"| {' | '.join(row)} |" for row in cells)]
    return "\n".join(lines) + "\n"


def _cell(value: Any) -> str:
    if value is None:
        return "—"
    return formatting.number(value) if isinstance(value, float) else str(value)


def _similarity(view: str) -> str:
    return {"pearson": "correlation", "jaccard": "Jaccard index"}.get(view, "|cos|" if view.endswith("abs") else "cos")


def _title(result: Result, subtitle: str = "") -> str:
    return f"{result.metric} of {result.cell['over']}{subtitle and f': {subtitle}'}"
