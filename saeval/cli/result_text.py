"""A stored result as text: its values with their errors, curves, tables, arrays, notes and traceback."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from saeval.base.escapes import line, terminal
from saeval.base.formatting import interval, number, scalar, with_error
from saeval.results.board import dependences_in_words, size_in_words, stop_in_words, tokens_in_words
from saeval.results.result import Result
from saeval.stats.estimate import reliability_warnings

ROWS = 20
"""Maximum number of printed rows of a curve or table; the stored JSON has all of them."""
WIDTH = 72
"""Maximum number of printed characters of a table's cell."""


def detail(result: Result) -> str:
    """Return a result as text, with arrays as summaries."""
    parts = ["\n".join(map(line, _heading(result)))]
    scalars = {name: record for name, record in result.values.items() if "kind" not in record}
    if scalars:
        parts.append(_scalars(scalars))
    for name, record in result.values.items():
        match record.get("kind"):
            case "curve":
                parts.append(
                    line(f"{name}: {record['unit'] or 'value'} by {record['x_unit'] or 'x'}") + f"\n{_curve(record)}"
                )
            case "table":
                parts.append(f"{line(name)}: a table\n{_grid(record['columns'], record['rows'])}")
            case "array":
                parts.append(_array(name, record, result))
    here = tokens_in_words(result.cell["data"], result.sample)
    dependent = dependences_in_words([(name, record.get("depends")) for name, record in result.values.items()], here)
    if notes := [*reliability_warnings(result.supports), *result.notes, *dependent]:
        parts.append("\n".join(f"- {line(note)}" for note in notes))
    parts.append(_run(result.provenance))
    if result.traceback:
        parts.append(terminal(result.traceback.rstrip("\n")))
    return "\n\n".join(part for part in parts if part)


def _heading(result: Result) -> list[str]:
    cell = result.cell
    subjects = cell["subjects"]
    names = ", ".join(s["name"] for s in subjects) or "the model"
    hooks = " and ".join(dict.fromkeys(s["hook_name"] for s in subjects))
    alias = "" if result.metric == cell["metric"] else f" as '{result.metric}'"
    subject = f"{cell['over']} ({names})" if cell.get("over") else names
    metric = f"{cell['metric']}@{cell.get('metric_version', 1)}{alias}"
    lines = [f"{metric} of {subject}{f' at {hooks}' if hooks else ''}: {result.status}"]
    if result.reason:
        lines[0] += f", {result.reason}"
    parameters = ", ".join(f"{name} {value}" for name, value in dict(cell.get("params") or {}).items())
    data = cell.get("data") or {}
    model = (cell.get("model") or {}).get("name")
    facts = [f"suite {cell['suite']}"] if cell.get("suite") else []
    facts += [f"model {model}"] if model else ["no model"]
    facts += [", ".join([f"data {data.get('use')}", *size_in_words(data)])]
    lines += [f"key {result.key}; parameters: {parameters or 'none'}", "; ".join(facts)]
    if data.get("limit") is not None:
        lines.append(f"limited to {data['limit']} sequences: not comparable with other runs")
    if stop := stop_in_words(result.sample):
        lines.append(f"the run {stop}")
    return lines


def _scalars(scalars: Mapping[str, Mapping[str, Any]]) -> str:
    rows: list[list[Any]] = []
    reasons: dict[str, list[str]] = {}
    for name, record in scalars.items():
        value, ends = record["value"], record["ci95"]
        span = interval(ends, record["stderr"]) if ends else ""
        rows.append([name, scalar(record), span, record["n"], record["unit"], record["better"] or "–"])
        if record.get("reason"):
            kind = "undefined" if value is None else "no standard error" if record["stderr"] is None else "not tested"
            reasons.setdefault(f"{kind}: {record['reason']}", []).append(name)
    table = _grid(["value", "number ± standard error", "95% interval", "n", "unit", "better"], rows, all_rows=True)
    return "\n".join([table, *(line(f"- {reason} ({', '.join(names)})") for reason, names in reasons.items())])


def _curve(record: Mapping[str, Any]) -> str:
    errors = record.get("stderr") or [None] * len(record["x"])
    points = zip(record["x"], record["y"], errors, strict=True)
    rows = [[number(x), "undefined" if y is None else with_error(y, error)] for x, y, error in points]
    shown = rows if len(rows) <= ROWS else [rows[i] for i in np.linspace(0, len(rows) - 1, ROWS).round().astype(int)]
    text = _grid([record["x_unit"] or "x", record["unit"] or "value"], shown)
    return text + (f"\n{ROWS} of {len(rows)} points; --json has all" if len(shown) < len(rows) else "")


def _array(name: str, record: Mapping[str, Any], result: Result) -> str:
    unit = f", {record['unit']}" if record["unit"] else ""
    heading = line(f"{name}: an array {record['shape']} of {record['dtype']}{unit}")
    if f"value/{name}" not in result.arrays:
        return f"{heading}; its file {result.key}.npz is missing"
    data = result.array(name)
    lines = [heading]
    if data.dtype.kind in "iuf" and data.size:
        finite = data[np.isfinite(data)] if data.dtype.kind == "f" else data
        if finite.size:
            summary = {"min": finite.min(), "median": np.median(finite), "mean": finite.mean(), "max": finite.max()}
            lines.append("  " + ", ".join(f"{statistic} {number(float(x))}" for statistic, x in summary.items()))
        if finite.size < data.size:
            lines.append(f"  {data.size - finite.size} of {data.size} are not finite")
    elif data.dtype.kind == "b":
        lines.append(f"  {int(data.sum())} of {data.size} are true")
    lines.append(f"  in {result.key}.npz as value/{line(name)}; from Python: result.array('{line(name)}')")
    return "\n".join(lines)


def _grid(columns: Sequence[str], rows: Sequence[Sequence[Any]], all_rows: bool = False) -> str:
    from tabulate import tabulate  # late: `ls` does not need it

    shown = rows if all_rows else rows[:ROWS]
    lines = [[_cell(cell) for cell in row] for row in shown]
    text = tabulate(lines, [line(column) for column in columns], tablefmt="simple", disable_numparse=True)
    return text + (f"\n... {len(rows) - ROWS} more rows; --json has all" if len(shown) < len(rows) else "")


def _cell(cell: Any) -> str:
    """Return a cell on one line, escaped and cut: it may contain any text of the data or a model."""
    if cell is None:
        return ""
    text = number(cell) if isinstance(cell, float) else line(str(cell))
    return text if len(text) <= WIDTH else f"{text[: WIDTH - 1]}…"


def _run(provenance: Mapping[str, Any]) -> str:
    """Return a line on the versions, dtypes and device that computed the result, then the preflight's findings."""
    if not provenance:
        return ""
    dtypes = provenance.get("dtypes") or {}
    facts = {
        "saeval": provenance.get("saeval"),
        "commit": (provenance.get("commit") or "")[:12] or None,
        "torch": (provenance.get("libraries") or {}).get("torch"),
        "device": provenance.get("device"),
        "model": dtypes.get("model"),
        "SAEs": dtypes.get("saes"),
        "batch size": provenance.get("batch_size"),
    }
    computed = "computed with " + ", ".join(f"{name} {value}" for name, value in facts.items() if value is not None)
    preflight = provenance.get("preflight") or {}
    messages = [f"- preflight: {name}: {finding['message']}" for name, some in preflight.items() for finding in some]
    return "\n".join(map(line, [computed, *messages]))
