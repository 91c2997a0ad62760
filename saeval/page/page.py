"""`page`: all results of some folders as one HTML file, which holds its scripts and data and fetches nothing."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from saeval.base.escapes import line
from saeval.base.formatting import counted
from saeval.base.provenance import version
from saeval.page import libraries
from saeval.page.board_data import board_data
from saeval.page.details import Shared, details_data
from saeval.page.deviations import deviations_data
from saeval.page.pairs import pairs_data
from saeval.page.plain import as_json
from saeval.page.sections_data import section_data
from saeval.results import chart_files
from saeval.results.board import Board, limit_notice, size_in_words, some
from saeval.results.families import Palette
from saeval.results.sections import Section
from saeval.results.verdicts import verdicts, verdicts_in_words

SCRIPTS = (
    "elements.js",
    "rows.js",
    "filters.js",
    "copies.js",
    "table.js",
    "charts.js",
    "detail.js",
    "compare.js",
    "main.js",
)
"""Our own scripts, which share one scope, in the order of their use."""
BRIEF = 3
"""Most warnings and notes that the page shows without a click, `SHORT` letters of each."""
SHORT = 150


@dataclass(frozen=True)
class Part:
    """The sections that one report has on the results of a folder."""

    source: str
    """The folder's name, shown if the page has several."""
    sections: Sequence[Section]


def page(boards: Sequence[Board], parts: Sequence[Part], folders: Sequence[str], palette: Palette | None = None) -> str:
    """Return the page of some boards and of the sections that reports have on their results.

    `folders` are the results folders, for the commands that the page shows; `palette` has the families of SAEs with
    their colours and shapes (default: of these boards). Nothing in the page has an address, and its policy forbids the
    browser to fetch anything. Raises `SaevalError` if a library lacks its scripts.
    """
    palette = palette or Palette.of(result for board in boards for row in board.rows for result in row.results)
    shared = Shared()
    details = [details_data(board, shared) for board in boards]
    sections = [{**section_data(section), "source": line(part.source)} for part in parts for section in part.sections]
    blocks = {
        "boards": [{**board_data(board, palette), **_differences(board)} for board in boards],
        "details": {"rows": details, "shared": shared.items, "folders": [line(str(folder)) for folder in folders]},
        "sections": [{"charts": section["charts"]} for section in sections],  # all else is in the page itself
    }
    vega, tables, own = chart_files.vega(), libraries.datatables(), "\n".join(map(_file, SCRIPTS))
    scripts = [chart_files.inline(script) for script in (vega, tables, own)]
    environment = Environment(
        autoescape=True, loader=FunctionLoader(_file), undefined=StrictUndefined, trim_blocks=True
    )
    return environment.get_template("page.html").render(
        title=_title(boards),
        version=version(),
        boards=[_heading(board) for board in boards],
        sections=sections,
        style=Markup(_file("page.css")),
        blocks={name: Markup(as_json(block)) for name, block in blocks.items()},
        scripts=[Markup(script) for script in scripts],
        policy=policy(scripts),
    )


def _differences(board: Board) -> dict[str, Any]:
    pairs = pairs_data(board)
    return {"pairs": pairs, "deviations": deviations_data(board, {column["name"] for column in pairs})}


def policy(scripts: Sequence[str]) -> str:
    """Return the content security policy: these scripts alone may run, and nothing may be fetched."""
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    allowed = " ".join(f"'sha256-{digest}'" for digest in hashes)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


def _file(name: str) -> str:
    return files("saeval.page").joinpath(name).read_text(encoding="utf-8")


def _title(boards: Sequence[Board]) -> str:
    names = list(dict.fromkeys(line(board.title) for board in boards))
    return " + ".join(names) or "no results"


def _heading(board: Board) -> dict[str, Any]:
    """Return what stands above a table, as text: the facts, warnings, and what the tests of its values claim."""
    facts = [f"model {board.model}" if board.model else "no model"]
    facts += [f"data {board.data['use']}"] if board.data.get("use") else []
    saes = sum(row.kind == "sae" for row in board.rows)
    hooks = list(dict.fromkeys(row.hook_name for row in board.rows if row.hook_name))
    facts += [counted(saes, "SAE"), *([f"all at {hooks[0]}"] if len(hooks) == 1 else [counted(len(hooks), "hook")])]
    claims = verdicts_in_words([v for v in verdicts(board) if v.column.headline or v.column.paired])
    limit = limit_notice(board.data)
    below = {*board.left_out, *board.dependences}  # that the page says elsewhere
    notes = [line(note) for note in (*board.doubts, *board.notes) if note not in below]
    return {
        "title": line(board.title),
        "facts": line(", ".join([*facts, *size_in_words(board.data)])),
        "alerts": [line(text) for text in (limit, *board.left_out) if text],
        "stop": line(board.stop),
        "first": line(_first(board)),
        "ranks": line(_ranks(board)),
        "claims": [line(claim) for claim in claims],
        "notes": notes,
        "brief": [shortened(note) for note in notes[:BRIEF]],
    }


def shortened(text: str) -> str:
    """Return the beginning of a sentence, to the end of a word; the whole if it is short."""
    return text if len(text) <= SHORT else text[: SHORT - 1].rpartition(" ")[0] + " …"


def _first(board: Board) -> str:
    """Return which SAEs may be the best in the column ranked by; empty if the board does not rank all together."""
    ranked = [row for row in board.rows if row.rank is not None]
    if len(ranked) < 2 or board.within_hooks:
        return ""
    best = [row.name for row in ranked if row.rank == 1]
    if len(best) == 1:
        return f"{best[0]} is the best of {len(ranked)} SAEs in {board.rank_by}."
    several = f"{len(best)} of the {len(ranked)} SAEs"
    return f"Tests cannot say which of {several} is the best in {board.rank_by}: {some(best)}."


def _ranks(board: Board) -> str:
    """Return what a rank means; empty if no row has one."""
    ranked = [row for row in board.rows if row.rank is not None]
    if len(ranked) < 2:
        return ""
    where = " at its hook" * board.within_hooks
    if not any(e.testable for row in ranked if (e := row.entries.get(board.rank_by or ""))):
        return f"Ranks are by the value of {board.rank_by}; its differences cannot be tested."
    row = next((row for row in ranked if row.rank_high not in (None, row.rank)), None)
    tests = "by paired tests of all pairs, Holm-corrected at 5%"
    if row is None:
        return f"Ranks are by {board.rank_by}, {tests}: every two of these SAEs differ significantly{where}."
    return (
        f"Ranks are by {board.rank_by}, {tests}. A rank of {row.rank}–{row.rank_high} means any place "
        f"from {row.rank} to {row.rank_high}{where}: the tests cannot say which. "
        "Filters and sorting do not change ranks."
    )
