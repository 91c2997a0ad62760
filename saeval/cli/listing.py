"""The output of `ls` and `show`."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from saeval.base.errors import said
from saeval.base.escapes import line
from saeval.base.parameters import schema
from saeval.cli import glossary, result_lookup
from saeval.cli.result_text import detail
from saeval.interfaces.documentation import description
from saeval.plan.leaves import LEAVES
from saeval.registry.registry import Entry, Registry
from saeval.results.result import Result
from saeval.results.store import LIMITED, MANIFEST, finite


def listing(registry: Registry, kind: str) -> list[dict[str, Any]]:
    """Return a row per name of a kind: name, description, origin, and further facts, such as a metric's parameters."""
    if kind == "plugins":
        return _plugins(registry)
    rows = []
    for named, names in registry.every(kind):
        rows += [_row(entry, named.label) for entry in names]
        for name, origins in names.duplicates().items():
            both = " and ".join(map(str, origins))
            rows.append({"name": name, "description": "ERROR: provided twice", "from": both})
    if kind == "quantities":
        rows += [{"name": leaf.name, "description": leaf.doc, "from": "saeval:engine"} for leaf in LEAVES.values()]
    return rows


def _row(entry: Entry[Any], kind: str) -> dict[str, Any]:
    try:
        return _described(entry, kind)
    except Exception as error:  # the other names are still listed
        return {"name": entry.name, "description": f"FAILED: {said(error)}", "from": str(entry.origin)}


def _described(entry: Entry[Any], kind: str) -> dict[str, Any]:
    registered = entry.thing
    row: dict[str, Any] = {"name": entry.name, "description": _description(registered), "from": str(entry.origin)}
    if kind:
        row["kind"] = kind
    if isinstance(registered, type):
        row["version"] = getattr(registered, "version", None)
        row["parameters"] = {name: glossary.default(f) for name, f in schema(registered).model_fields.items()}
    if hasattr(registered, "rebinds"):
        row |= {"requests": list(registered.parameters), "fold": registered.fold, "shape": registered.shape}
    return row


def _description(registered: Any) -> str:
    return str(registered.doc) if hasattr(registered, "rebinds") else description(registered) or "(no description)"


def _plugins(registry: Registry) -> list[dict[str, Any]]:
    list(registry.every())  # call all hooks: a plugin may load and still fail in one
    rows = []
    broken = {str(f.origin) for f in registry.plugins.failures}
    for name, origin in registry.plugins.origins.items():
        status = "ok" if name not in broken else "see below"
        rows.append({"name": name, "description": status, "from": f"{origin.distribution} {origin.version}".strip()})
    for failure in dict.fromkeys(registry.plugins.failures):  # a hook that is called for two kinds fails twice
        row = {"name": str(failure.origin), "description": f"FAILED: {failure.error}"}
        rows.append({**row, "from": failure.origin.distribution, "details": failure.details})
    return rows


def show(words: Sequence[str], registry: Callable[[], Registry], out: str = "results", as_json: bool = False) -> str:
    """Return the text of a results folder, of one result, or of the documentation of a name.

    `words` are one of: a folder, or a suite with results under `out`, alone or followed by the first letters of a key,
    or by a metric and perhaps a subject; a key; a result's file; a name that `ls` lists. `SaevalError` otherwise.
    """
    if len(words) > 1:
        return _shown(result_lookup.chosen(words, out), as_json)
    word, path = words[0], Path(words[0])
    if path.suffix == ".json" and os.path.isfile(path):
        return _cells(path.parent) if path.name in (MANIFEST, LIMITED) else _shown(result_lookup.of_file(path), as_json)
    if os.path.isdir(path):
        return _cells(path)
    if (page := glossary.document(word, registry())) is not None:
        return page
    if (folder := result_lookup.folder(word, out)) is not None:
        return _cells(folder)
    matches = result_lookup.by_key(word, result_lookup.under(out))
    if len(matches) == 1:
        return _shown(matches[0], as_json)
    if matches:
        return _lines(matches)
    raise glossary.unknown(word, registry(), result_lookup.suites(out))


def _shown(chosen: list[result_lookup.Listed] | Result, as_json: bool) -> str:
    if isinstance(chosen, Result):
        return json.dumps(finite(chosen.record()), indent=1) if as_json else detail(chosen)
    return _lines(cell.result for cell in chosen)


def _cells(path: Path) -> str:
    return _lines(cell.result for cell in result_lookup.cells(path))


def _lines(results: Iterable[Result]) -> str:
    """Return a line per result: key, metric, subjects, hooks, status and reason."""
    rows = []
    for result in results:
        subjects = result.cell["subjects"]
        names = result.subject or "the model"
        group = f"{result.cell['over']} ({names})" if result.cell.get("over") else names
        hooks = ", ".join(dict.fromkeys(s["hook_name"] for s in subjects))
        status = "not computed" if result.status == "missing" else result.status
        row = [result.key, result.metric, group, hooks, f"{status}{f': {result.reason}' if result.reason else ''}"]
        rows.append([line(text) for text in row])
    widths = [max(len(row[column]) for row in rows) for column in range(4)] if rows else []
    return "\n".join(
        "  ".join([*(f"{text:<{width}}" for text, width in zip(row, widths, strict=False)), row[4]]) for row in rows
    )
