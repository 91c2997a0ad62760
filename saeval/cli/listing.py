"""What `ls` and `show` print."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from saeval.base.errors import said
from saeval.base.escapes import line
from saeval.base.parameters import schema
from saeval.cli import glossary
from saeval.cli import result_lookup as lookup
from saeval.cli.result_text import detail
from saeval.interfaces.documentation import description
from saeval.plan.leaves import LEAVES
from saeval.registry.registry import Entry, Registry
from saeval.results.result import Result
from saeval.results.store import LIMITED, MANIFEST, finite


def listing(registry: Registry, kind: str) -> list[dict[str, Any]]:
    """Rows of name, description, origin, and what else that kind of thing has."""
    if kind == "plugins":
        return _plugins(registry)
    rows = []
    for named, names in registry.every(kind):
        rows += [_row(entry, named.label) for entry in names]
        for name, origins in names.duplicates().items():
            both = " and ".join(map(str, origins))
            rows.append({"name": name, "description": "supplied twice: refused", "from": both})
    if kind == "quantities":
        rows += [{"name": leaf.name, "description": leaf.doc, "from": "saeval:engine"} for leaf in LEAVES.values()]
    return rows


def _row(entry: Entry[Any], kind: str) -> dict[str, Any]:
    try:
        return _described(entry, kind)
    except Exception as error:  # a class that cannot be described costs its own line
        return {"name": entry.name, "description": f"FAILED: {said(error)}", "from": str(entry.origin)}


def _described(entry: Entry[Any], kind: str) -> dict[str, Any]:
    thing = entry.thing
    row: dict[str, Any] = {"name": entry.name, "description": _description(thing), "from": str(entry.origin)}
    if kind:
        row["kind"] = kind
    if isinstance(thing, type):
        row["version"] = getattr(thing, "version", None)
        row["parameters"] = {name: glossary.default(f) for name, f in schema(thing).model_fields.items()}
    if hasattr(thing, "rebinds"):
        row |= {"requests": list(thing.parameters), "fold": thing.fold, "shape": thing.shape}
    return row


def _description(thing: Any) -> str:
    return str(thing.doc) if hasattr(thing, "rebinds") else description(thing) or "(no description)"


def _plugins(registry: Registry) -> list[dict[str, Any]]:
    for _ in registry.every():  # a plugin may load and still fail when it is asked
        pass
    rows = []
    broken = {str(f.origin) for f in registry.plugins.failures}
    for name, origin in registry.plugins.origins.items():
        status = "ok" if name not in broken else "see below"
        rows.append({"name": name, "description": status, "from": f"{origin.distribution} {origin.version}".strip()})
    for failure in dict.fromkeys(registry.plugins.failures):  # one hook may be asked for two kinds
        row = {
            "name": str(failure.origin),
            "description": f"FAILED: {failure.error}",
            "from": failure.origin.distribution,
        }
        rows.append({**row, "details": failure.details})
    return rows


def show(words: Sequence[str], registry: Callable[[], Registry], out: str = "results", as_json: bool = False) -> str:
    """A results folder's cells, one result, or a name's documentation.

    `words` are a folder or a suite with results under `out`, alone or with the beginning of a key or a metric and a
    subject; a key; a result's file; or a name that `ls` lists. `SaevalError` for what is none of these.
    """
    if len(words) > 1:
        return _shown(lookup.chosen(words, out), as_json)
    what, path = words[0], Path(words[0])
    if path.suffix == ".json" and os.path.isfile(path):
        return _cells(path.parent) if path.name in (MANIFEST, LIMITED) else _shown(lookup.of_file(path), as_json)
    if os.path.isdir(path):
        return _cells(path)
    if (page := glossary.document(what, registry())) is not None:
        return page
    if (folder := lookup.folder(what, out)) is not None:
        return _cells(folder)
    matches = lookup.by_key(what, lookup.under(out))
    if len(matches) == 1:
        return _shown(matches[0], as_json)
    if matches:
        return _lines(matches)
    raise glossary.unknown(what, registry(), lookup.suites(out))


def _shown(found: list[lookup.Listed] | Result, as_json: bool) -> str:
    if isinstance(found, Result):
        return json.dumps(finite(found.record()), indent=1) if as_json else detail(found)
    return _lines(one.result for one in found)


def _cells(path: Path) -> str:
    return _lines(one.result for one in lookup.cells(path))


def _lines(results: Iterable[Result]) -> str:
    """A line a result: key, metric, subjects, hooks, status and reason."""
    rows = []
    for result in results:
        subjects = result.cell["subjects"]
        names = result.subject or "the model"
        own = f"{result.cell['over']} ({names})" if result.cell.get("over") else names
        hooks = ", ".join(dict.fromkeys(s["hook_name"] for s in subjects))
        status = "not computed" if result.status == "missing" else result.status
        row = [result.key, result.metric, own, hooks, f"{status}{f': {result.reason}' if result.reason else ''}"]
        rows.append([line(text) for text in row])
    widths = [max(len(row[column]) for row in rows) for column in range(4)] if rows else []
    return "\n".join(
        "  ".join([*(f"{text:<{width}}" for text, width in zip(row, widths, strict=False)), row[4]]) for row in rows
    )
