"""What `ls` and `show` print."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from saeval.errors import SaevalError, blamed, said, suggestion
from saeval.nodes import LEAVES
from saeval.parameters import schema
from saeval.registry import Entry, Names, Registry
from saeval.store import LIMITED, MANIFEST, Store


def listing(registry: Registry, kind: str) -> list[dict[str, Any]]:
    """Rows of name, description, origin, and what else that kind of thing has."""
    if kind == "plugins":
        return _plugins(registry)
    if kind == "models":
        return [_row(e, "registered") for e in registry.models] + [_row(e, "adapter") for e in registry.adapters]
    names: dict[str, Names[Any]] = {
        "metrics": registry.metrics,
        "saes": registry.saes,
        "data": registry.data,
        "controls": registry.controls,
        "suites": registry.suites,
        "quantities": registry.quantities,
        "formats": registry.loaders,
        "reports": registry.reports,
    }
    rows = [_row(entry) for entry in names[kind]]
    if kind == "quantities":
        rows += [{"name": n, "description": d, "from": "saeval:engine"} for n, d in LEAVES.items()]
    for name, origins in names[kind].duplicates().items():
        rows.append(
            {"name": name, "description": "supplied twice: refused", "from": " and ".join(str(o) for o in origins)}
        )
    return rows


def _row(entry: Entry[Any], kind: str | None = None) -> dict[str, Any]:
    try:
        return _described(entry, kind)
    except Exception as error:  # a class that cannot be described costs its own line
        return {"name": entry.name, "description": f"FAILED: {said(error)}", "from": str(entry.origin)}


def _described(entry: Entry[Any], kind: str | None) -> dict[str, Any]:
    thing = entry.thing
    row: dict[str, Any] = {"name": entry.name, "description": _description(thing), "from": str(entry.origin)}
    if kind:
        row["kind"] = kind
    if isinstance(thing, type):
        row["version"] = getattr(thing, "version", None)
        row["parameters"] = {name: _default(f) for name, f in schema(thing).model_fields.items()}
    if hasattr(thing, "rebinds"):
        row |= {"requests": list(thing.parameters), "fold": thing.fold, "shape": thing.shape}
    return row


def _default(field: Any) -> Any:
    return "required" if field.is_required() else repr(field.default)


def _description(thing: Any) -> str:
    own = getattr(thing, "description", None)
    if isinstance(own, str):
        return own
    if hasattr(thing, "rebinds"):
        return str(thing.doc)
    return (inspect.getdoc(thing) or "").split("\n")[0]


def _plugins(registry: Registry) -> list[dict[str, Any]]:
    for name in ("metrics", "quantities", "loaders", "saes", "adapters", "data", "controls", "suites", "reports"):
        getattr(registry, name)  # a plugin may load and still fail when it is asked
    rows = []
    broken = {str(f.origin) for f in registry.plugins.failures}
    for name, origin in registry.plugins.origins.items():
        status = "ok" if name not in broken else "see below"
        rows.append({"name": name, "description": status, "from": f"{origin.distribution} {origin.version}".strip()})
    for failure in registry.plugins.failures:
        row = {
            "name": str(failure.origin),
            "description": f"FAILED: {failure.error}",
            "from": failure.origin.distribution,
        }
        rows.append({**row, "details": failure.details})
    return rows


def show(what: str, registry: Callable[[], Registry]) -> str:
    """A results folder's cells, one result whole, or a name's documentation."""
    path = Path(what)
    if path.suffix == ".json" and path.is_file():
        result = Store(path.parent).read(path.stem)
        if result is None:
            raise SaevalError(f"{what}: not a result of saeval")
        return json.dumps(result.record(), indent=1)
    if path.is_dir():
        return _folder(path)
    return _document(what, registry())


def _folder(path: Path) -> str:
    store = Store(path)
    if not any((path / name).exists() for name in (MANIFEST, LIMITED)):
        inner = [p.parent.name for p in sorted(path.glob(f"*/{MANIFEST}"))]
        near = f"; its suites: {', '.join(inner)}" if inner else ""
        raise SaevalError(f"{path}: no {MANIFEST} here{near}")
    lines = []
    for listed in store.manifest()["cells"]:
        result = store.read(listed["key"])
        cell = listed["cell"]
        name = ", ".join(s["name"] for s in cell["subjects"])
        status = result.status if result else "not computed"
        reason = f": {result.reason}" if result and result.reason else ""
        lines.append(f"{listed['key']}  {cell['alias']:<16} {name:<28} {status}{reason}")
    return "\n".join(lines)


def _document(name: str, registry: Registry) -> str:
    kinds = (
        registry.metrics, registry.quantities, registry.controls, registry.loaders, registry.data, registry.saes,
        registry.models, registry.adapters, registry.suites,
    )  # fmt: skip
    for names in kinds:
        if name in names:
            entry = names.entry(name)
            with blamed(f"{names.kind} '{name}'", entry.origin):
                return _page(names.kind, entry)
    if name in LEAVES:
        return f"quantity {name} (saeval:engine)\n\n{LEAVES[name]}"
    if name.split(".")[0] in registry.metrics:  # a column, `metric.value`
        return _document(name.split(".")[0], registry)
    known = [n for names in kinds for n in names.names()] + list(LEAVES)
    near = suggestion(name, known)
    near = near if "did you mean" in near else "; `saeval ls metrics` and its like list what there is"
    raise SaevalError(f"'{name}' is neither a results folder, a result, nor a known name{near}")


def _page(kind: str, entry: Entry[Any]) -> str:
    thing = entry.thing
    version = f"@{thing.version}" if isinstance(getattr(thing, "version", None), int) else ""
    lines = [f"{kind} {entry.name}{version} ({entry.origin})", ""]
    documented = thing.function if hasattr(thing, "rebinds") else thing
    if isinstance(thing, type) or hasattr(thing, "rebinds"):
        lines.append(inspect.getdoc(documented) or "(no documentation)")
    else:
        lines.append(str(getattr(thing, "description", "")))
        where = getattr(thing, "reference", None) or getattr(thing, "path", "")
        lines.append(str(where))
    row = _described(entry, None)
    if row.get("parameters"):
        lines += ["", "parameters:", *(f"  {k}: {v}" for k, v in row["parameters"].items())]
    if row.get("requests"):
        lines += ["", f"requests: {', '.join(row['requests'])}"]
    return "\n".join(lines)
