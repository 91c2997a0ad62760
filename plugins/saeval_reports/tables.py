"""Leaderboards as Markdown, CSV and JSON."""

from __future__ import annotations

import csv as csv_files
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

from saeval.plugin import (
    Board,
    Column,
    Entry,
    Row,
    Support,
    Verdict,
    document_count,
    escapes,
    formatting,
    limit_notice,
    size_in_words,
    verdicts,
    verdicts_in_words,
)

MOST_NAMES = 4


def markdown(boards: Sequence[Board]) -> str:
    """Return a table per board: values with their standard errors, then a legend and notes on missing values."""
    return "\n\n".join(_markdown(board) for board in boards)


def _markdown(board: Board) -> str:
    rows = shown_rows(board)
    hooks = {row.hook_name for row in board.rows}
    ranked = any(row.rank for row in board.rows)
    columns = board.shown
    headers = [
        *(["rank"] if ranked else []),
        "SAE",
        *(["hook"] if len(hooks) > 1 else []),
        *(header(c) for c in columns),
    ]
    lines = []
    for row in rows:
        name = escapes.markdown(row.name) if row.copies == 1 else f"{escapes.markdown(row.name)} ×{row.copies}"
        shown = f"*{name}*" if row.kind in ("control", "hook") else name
        hook = [escapes.markdown(row.hook_name)] if len(hooks) > 1 else []
        lines.append(
            [
                *([rank(row)] if ranked else []),
                shown,
                *hook,
                *(number(row.entries.get(c.name)) for c in columns),
            ]
        )
    table = markdown_table(headers, lines)
    where = f"All at {escapes.markdown(next(iter(hooks)))}. " if len(hooks) == 1 and hooks != {""} else ""
    text = [f"## {escapes.markdown(board.title)}", f"{escapes.markdown(facts(board))}.", table]
    if board.stop:
        text.insert(2, f"**Adaptive**: {escapes.markdown(stop(board))}")
    if board.limited:
        text.insert(1, f"**{escapes.markdown(limit_notice(board.data))}**")
    more = f"{len(board.columns) - len(columns)} more values: see --format csv or json, or name them with --columns"
    items = [f"- {escapes.markdown(note)}" for note in notes(board)]
    items += [f"- {more}"] if len(board.columns) > len(columns) else []
    controls = "; *controls* were not trained" if any(r.kind == "control" for r in board.rows) else ""
    text.append(f"{where}{escapes.markdown(legend(board))}{controls}.{escapes.markdown(least_difference(board))}")
    return "\n\n".join([*text, *(["\n".join(items)] if items else [])])


def shown_rows(board: Board) -> list[Row]:
    """Return the rows of a printed table: those of hooks without an SAE only if they have a number there."""

    def empty(row: Row) -> bool:  # the columns are of SAEs and controls
        return {e.value for c in board.shown if (e := row.entries.get(c.name))} <= {None}

    return [row for row in board.rows if row.kind != "hook" or not empty(row)]


def facts(board: Board) -> str:
    """Return the model, the data and its size in words."""
    model = f"model {board.model}" if board.model else "no model"
    data = [f"data {board.data['use']}"] if board.data.get("use") else []
    return ", ".join([model, *data, *size_in_words(board.data)])


def legend(board: Board) -> str:
    """Return the meaning of errors, arrows, ranks and leads, as clauses without a full stop."""
    vs = "; x vs y is the paired lead of a row over that control in x" if any(c.paired for c in board.columns) else ""
    return f"{_errors(board)}↓ lower is better, ↑ higher is better{_ranks(board)}{vs}"


def notes(board: Board) -> list[str]:
    """Return what to know of a board's numbers: unreliable errors, claims, missing values and their reasons."""
    alone = "one document: no error bars, since they need several independent documents"
    single = [alone] if document_count(board.data) == 1 else []
    return [*board.doubts, *single, *_verdicts(board), *board.notes]


def _errors(board: Board) -> str:
    """Return the meaning of ±; empty for a table without errors."""
    entries = (row.entries.get(column.name) for row in board.rows for column in board.shown)
    if not any(entry is not None and entry.stderr is not None for entry in entries):
        return ""
    draws = "; for rows marked ×n it includes the spread over the n random draws"
    several = draws if any(row.copies > 1 for row in board.rows) else ""
    return f"± is one standard error, clustered by document{_of_groups(board)}{several}; "


def markdown_table(headers: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table whose columns are aligned in plain text too. Cells contain no line breaks.

    The layout is tabulate's, which takes as long for 16,000 lines as all their paired tests.
    """
    columns = zip(*lines, strict=True) if lines else [()] * len(headers)
    widths = [max([len(h) + 2, *map(len, column)]) for h, column in zip(headers, columns, strict=True)]
    rows = ["| " + " | ".join(map(str.ljust, line, widths)) + " |" for line in (headers, *lines)]
    rows.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(rows)


def _of_groups(board: Board) -> str:
    """Return the clause on errors of groups that are over the seeds of their SAEs instead of over documents."""
    entries = [(name, e) for r in board.rows if r.kind == "group" for name, e in r.entries.items() if e.stderr]
    over_seeds = list(dict.fromkeys(name.split(".")[0] for name, e in entries if e.seeds))
    if not over_seeds:
        return ""
    if all(e.seeds for _, e in entries):
        return ", of groups over the seeds of their SAEs"
    return f", of {', '.join(over_seeds)} over the seeds of the group's SAEs"


def stop(board: Board) -> str:
    """Return the sentences on where an adaptive run stopped, and on the values that use its first rows only."""
    sample = board.sample or {}
    prefix = sample.get("prefix", {})
    first = f"{prefix.get('sequences')} sequences ({prefix.get('tokens')} tokens)"
    return f"{board.stop}. Counts, curves and quantiles of counts always use the first {first} only."


def rank(row: Row) -> str:
    """Return a row's interval of ranks, `2–3`; empty for an unranked row."""
    if row.rank is None:
        return ""
    return f"{row.rank}" if row.rank_high in (None, row.rank) else f"{row.rank}–{row.rank_high}"


def _ranks(board: Board) -> str:
    """Return the meaning of ranks, with the first interval among them as the example."""
    ranked = [row for row in board.rows if row.rank is not None]
    if len(ranked) < 2:
        return ""
    if not any(e.testable for row in ranked if (e := row.entries.get(board.rank_by or ""))):
        return f"; ranks are by the value of {board.rank_by}: its differences cannot be tested"
    tests = "paired tests (Holm-corrected at 5%)"
    row = next((row for row in ranked if row.rank_high not in (None, row.rank)), None)
    if row is None:
        together = " at one hook" * board.within_hooks
        return f"; ranks are by {board.rank_by}: every two of these SAEs{together} differ significantly in {tests}"
    places = f"any place from {row.rank} to {row.rank_high}{' at its hook' * board.within_hooks}"
    return f"; a rank of {rank(row)} in {board.rank_by} means {places}: {tests} cannot say which"


def least_difference(board: Board) -> str:
    """Return the sentence on the smallest differences to the top row that this run can detect."""
    detectable = sorted(row.detectable for row in board.rows if row.detectable)
    if not detectable:
        return ""
    ends = list(dict.fromkeys(formatting.number(end, 2) for end in (detectable[0], detectable[-1])))
    unit = next((c.unit for c in board.columns if c.name == board.rank_by), "")
    span = f"{' to '.join(ends)} {unit}".rstrip() + (" (depending on the row)" if len(ends) > 1 else "")
    finds = f"differences of {span}" if len(ends) > 1 else f"a difference of {span}"
    top = f"the top row{' of its hook' * board.within_hooks}"
    return f" A single uncorrected test against {top} finds {finds} with 80% power."


def _verdicts(board: Board) -> list[str]:
    """Return what the tests of the shown columns and of leads over controls claim, and the number of other claims."""
    given = verdicts(board)
    shown = [v for v in given if v.column.headline or v.column.paired]
    others = [v.column.name for v in given if v.claimed and not (v.column.headline or v.column.paired)]
    where = some(list(dict.fromkeys(others)), MOST_NAMES)
    rest = f"{formatting.counted(len(others), 'claim')} in columns that are not shown ({where}): see --format json"
    return [*verdicts_in_words(shown), *([rest] if others else [])]


def some(names: Sequence[str], most: int) -> str:
    """Return the first names in words, and the number of the others."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def header(column: Column) -> str:
    """Return a column's name with the arrow of its better direction."""
    return f"{escapes.markdown(column.name)}{arrow(column)}{mark(column)}"


def mark(column: Column) -> str:
    """Return the mark of the suite's certificate, after a space; empty without one."""
    return f" {column.certified[0]}" if column.certified[0] and not column.paired else ""


def arrow(column: Column) -> str:
    """Return the sign of a column's better direction, after a space; empty for a value without one."""
    return {"lower": " ↓", "higher": " ↑"}.get(column.better or "", "")


def number(entry: Entry | None) -> str:
    """Return a value to the second digit of its standard error, or a mark for a missing value."""
    if entry is None:
        return ""
    if entry.value is None:
        return {"failed": "FAILED", "undefined": "–", "missing": "…", "damaged": "DAMAGED"}.get(entry.status, "")
    return formatting.with_error(entry.value, entry.stderr, entry.ci95 if entry.proportion else None)


def p_value(value: float | None) -> str:
    """Return a p value to two digits; empty for None."""
    if value is None:
        return ""
    return "<0.0001" if value < 1e-4 else formatting.number(value, 2)


def rows(boards: Sequence[Board]) -> list[dict[str, Any]]:
    """Return a flat record per row: `METRIC.VALUE`, its `.stderr` and `.ci95`, of a value with a null hypothesis also
    `.p`, `.p_holm` and `.verdict`, and why values or verdicts are missing or errors unreliable."""
    given = {(id(v.row), v.column.name): v for board in boards for v in verdicts(board)}
    return [_row(place, board, row, given) for place, board in enumerate(boards, 1) for row in board.rows]


def _row(place: int, board: Board, row: Row, given: Mapping[tuple[int, str], Verdict]) -> dict[str, Any]:
    record: dict[str, Any] = {
        "board": place,
        "suite": board.title,
        "model": board.model,
        "data": board.data.get("fingerprint"),
        "name": row.name,
        "hook_name": row.hook_name,
        "kind": row.kind,
        "rank": row.rank,
        "rank_low": row.rank,
        "rank_high": row.rank_high,
        "detectable": row.detectable,
        "limited": board.limited,
        "stopped_adaptively": bool(board.sample and board.sample["stopped_adaptively"]),
        **({"tokens": board.sample["tokens"]} if board.sample else {}),
    }
    support = _support(board, row)
    record["documents"] = support.documents if support else None
    record["effective_documents"] = support.effective if support else None
    record["largest_share"] = support.largest_share if support else None
    missing = {}
    unreliable = {"rank": row.support.doubt} if row.support is not None and row.support.unreliable else {}
    for column in board.columns:
        verdict = given.get((id(row), column.name))
        entry = row.entries.get(column.name) or Entry()
        record[column.name] = entry.value
        record[f"{column.name}.stderr"] = entry.stderr
        record[f"{column.name}.ci95"] = list(entry.ci95) if entry.ci95 else None
        if column.paired:
            record[f"{column.name}.detectable"] = entry.detectable
        if column.null is not None:
            record[f"{column.name}.p"] = verdict.p if verdict else None
            record[f"{column.name}.p_holm"] = verdict.p_holm if verdict else None
            record[f"{column.name}.verdict"] = verdict.words if verdict else None
            if entry.untested and row.kind != "control":
                missing[f"{column.name}.verdict"] = f"not tested: {entry.untested}"
        if entry.support is not None and entry.stderr is not None and entry.support.unreliable:
            unreliable[column.name] = entry.support.doubt
        if entry.value is None:
            missing[column.name] = f"{entry.status}: {entry.reason}" if entry.reason else entry.status
    record["missing"] = missing
    record["unreliable"] = unreliable
    return record


def _support(board: Board, row: Row) -> Support | None:
    """Return the support of the column ranked by, or of the first column whose error is over documents."""
    entries = [row.entries.get(board.rank_by or ""), *(row.entries.get(column.name) for column in board.columns)]
    return next((entry.support for entry in entries if entry is not None and entry.support is not None), None)


def csv(boards: Sequence[Board]) -> str:
    """Return the rows as CSV in full precision."""
    return records_as_csv(flat_rows(boards))


def flat_rows(boards: Sequence[Board]) -> list[dict[str, Any]]:
    """Return the records of `rows` without nested values: intervals as two columns, reasons as one text."""
    flat = []
    for record in rows(boards):
        line: dict[str, Any] = {}
        for name, value in record.items():
            if name.endswith(".ci95"):
                low, high = value or (None, None)
                line |= {f"{name}.low": low, f"{name}.high": high}
            elif isinstance(value, dict):
                line[name] = "; ".join(f"{k}: {v}" for k, v in value.items())
            else:
                line[name] = value
        flat.append(line)
    return flat


def records_as_csv(records: Sequence[Mapping[str, Any]]) -> str:
    """Return records as CSV. Texts and column names are escaped, so that no spreadsheet takes one for a formula."""
    columns = list(dict.fromkeys(name for record in records for name in record))
    text = io.StringIO()
    writer = csv_files.writer(text, lineterminator="\n")
    writer.writerow(map(escapes.csv, columns))
    writer.writerows([escapes.csv(record.get(name)) for name in columns] for record in records)
    return text.getvalue().rstrip("\n")


def as_json(boards: Sequence[Board]) -> str:
    """Return the rows as a JSON list."""
    return json.dumps(rows(boards), indent=1)
