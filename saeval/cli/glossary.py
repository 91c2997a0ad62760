"""The documentation of a name: a metric, one of its values, a quantity, a structure, anything registered."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from pydantic import BaseModel

from saeval.base.errors import SaevalError, blamed, said, suggestion
from saeval.base.names import names_matching
from saeval.base.parameters import schema
from saeval.interfaces.documentation import Documented, documentation, documented_values
from saeval.interfaces.metric import Metric, conclude_requests, names_of_values, observe_requests, substitute_requests
from saeval.interfaces.model import RegisteredModel
from saeval.plan.leaves import LEAVES
from saeval.registry.registry import Entry, Registry


def structures(registry: Registry) -> dict[str, type]:
    """The classes of what metrics and quantities are given, by name: those that quantities return, and the engine's."""
    found = {cls.__name__: cls for leaf in LEAVES.values() if (cls := leaf.gives)}
    for entry in registry.quantities:
        found |= {cls.__name__: cls for cls in _returned(entry.thing)}
    for cls in list(found.values()):  # and those that these are made of
        found |= {inner.__name__: inner for inner in _named(_annotations(cls), vars(inspect.getmodule(cls)))}
    return dict(sorted(found.items()))


def _annotations(cls: type) -> str:
    return " ".join(member.shape for member in members(cls))


def _returned(quantity: Any) -> list[type]:
    function = inspect.unwrap(quantity.function)
    return _named(quantity.shape, getattr(function, "__globals__", {}))


def _named(annotation: str, names: Mapping[str, Any]) -> list[type]:
    """The classes with documented members in an annotation as written."""
    bare = re.sub(r'"[^"]*"', "", annotation)  # the shapes of jaxtyping
    found = (names.get(word) for word in re.findall(r"[A-Za-z_]\w*", bare))
    return [cls for cls in found if isinstance(cls, type) and cls.__module__.startswith("saeval") and members(cls)]


@dataclass(frozen=True)
class Member:
    """A field, property or method of a structure."""

    name: str
    shape: str
    """Its annotation, or a method's arguments."""
    doc: str


def members(cls: type) -> list[Member]:
    """The public fields, properties and methods of a structure, its base classes' after its own."""
    found: dict[str, Member] = {}
    for one in cls.__mro__:
        if one.__module__.startswith("saeval"):
            for member in _own_members(one):
                if not found.setdefault(member.name, member).doc:  # an override without a text has its base's
                    found[member.name] = replace(found[member.name], doc=member.doc)
    return list(found.values())


def _own_members(cls: type) -> Iterator[Member]:
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(cls)))
    except (OSError, SyntaxError, TypeError):  # made at run time, or without source
        return
    assert isinstance(tree.body[0], ast.ClassDef)
    body = tree.body[0].body
    for index, node in enumerate(body):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            following = body[index + 1] if index + 1 < len(body) else None
            doc = _text(following)
            shape, name = ast.unparse(node.annotation).replace("'", '"'), node.target.id
        elif isinstance(node, ast.FunctionDef):
            doc = ast.get_docstring(node) or ""
            property_ = any(isinstance(d, ast.Name) and d.id == "property" for d in node.decorator_list)
            returns = ast.unparse(node.returns).replace("'", '"') if node.returns else ""
            arguments = ", ".join(a.arg for a in node.args.args if a.arg not in ("self", "cls"))
            shape, name = (returns if property_ else f"({arguments}) -> {returns}"), node.name
        else:
            continue
        if not name.startswith("_"):
            yield Member(name, shape, " ".join(doc.split("\n\n")[0].split()))


def _text(node: ast.stmt | None) -> str:
    is_text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
    return inspect.cleandoc(node.value.value) if is_text else ""  # type: ignore[union-attr]


def _fields(cls: type) -> list[str]:
    """A structure as lines: its name, its documentation, its members."""
    lines = [f"{cls.__name__}: {(inspect.getdoc(cls) or '').split(chr(10) + chr(10))[0]}"]
    for member in members(cls):
        lines.append(f"  {member.name}: {member.shape}".rstrip(": "))
        lines += textwrap.wrap(member.doc, 110, initial_indent="      ", subsequent_indent="      ")
    return lines


def document(name: str, registry: Registry) -> str | None:
    """What there is to read of a name; None for an unknown one. `SaevalError` for a name that is claimed twice."""
    found = []
    for _, names in registry.every():
        if name not in names:
            continue
        entry = names.entry(name)
        with blamed(f"{names.kind} '{name}'", entry.origin):
            found.append("\n".join([_page(entry, names.kind), *_hooks(entry.thing, registry)]))
    if found:  # one name may be a metric and a quantity
        return "\n\n".join(found)
    if name in LEAVES:
        leaf = LEAVES[name]
        rest = ["", *_fields(leaf.gives)] if leaf.gives else []
        return "\n".join([f"quantity {name} (saeval:engine)", "", leaf.doc, *rest])
    metric, _, value = name.partition(".")
    if value and metric in registry.metrics:  # a column, `metric.value`
        return _value_page(registry.metrics.entry(metric), value)
    return _substituted(name, registry) or _structure(name, registry) or _parameter(name, registry)


def unknown(name: str, registry: Registry, also: list[str]) -> SaevalError:
    """The error for a name that is nothing."""
    known = [n for _, names in registry.every() for n in names.names()] + [*LEAVES, *structures(registry), *also]
    known += [n.replace("spliced_", "substitute_", 1) for n in registry.quantities.names() if n.startswith("spliced_")]
    near = suggestion(name, known, "; `saeval ls metrics` lists the metrics, `saeval ls KIND` anything else")
    return SaevalError(f"'{name}' is neither a results folder, a result, nor a known name{near}")


def _page(entry: Entry[Any], kind: str) -> str:
    thing = entry.thing
    version = f"@{thing.version}" if isinstance(getattr(thing, "version", None), int) else ""
    lines = [f"{kind} {entry.name}{version} ({entry.origin})", ""]
    if hasattr(thing, "rebinds"):
        return "\n".join([*lines, *_quantity(thing)])
    if isinstance(thing, type):
        lines.append(documentation(thing) or "(no documentation)")
        parameters = schema(thing).model_fields
        if parameters:
            lines += ["", "parameters:", *(f"  {name}: {default(field)}" for name, field in parameters.items())]
        if issubclass(thing, Metric):
            lines += _metric(thing)
        if model := getattr(thing, "entry", None):
            lines += _keys(model)
        return "\n".join(lines)
    lines.append(str(getattr(thing, "description", "")))
    where = getattr(thing, "reference", None) or getattr(thing, "path", "")
    return "\n".join([*lines, str(where)]).rstrip()


def _keys(model: type[BaseModel]) -> list[str]:
    """The keys of an entry of a format, with what its loader says of them."""
    docs = {member.name: member.doc for member in members(model)}
    lines = ["", "keys of an entry (docs/formats.md has those of every format):"]
    for name, field in model.model_fields.items():
        words = (default(field), docs.get(name))
        lines.append(f"  {field.alias or name}: {'. '.join(word for word in words if word)}")
    return lines


def _hooks(thing: Any, registry: Registry) -> list[str]:
    """The hooks of a registered model, those of all blocks as one."""
    if not isinstance(thing, RegisteredModel):
        return []
    try:
        hooks = registry.adapters[thing.adapter]().spec(thing.reference).hooks()
    except Exception as error:  # its files are not here, or its adapter fails: the rest of the page is sound
        return ["", f"hooks: unknown ({said(error)})"]
    widths = {re.sub(r"^(.*?)\.\d+\.", r"\1.N.", hook): width for hook, width in hooks.items()}
    return ["", "hooks, with their widths (N is the number of a block):", *(f"  {h}: {w}" for h, w in widths.items())]


def default(field: Any) -> str:
    """A parameter's default, as text."""
    return "required" if field.is_required() else repr(field.default)


def _values(metric: type[Metric]) -> list[Documented]:
    """The values that a metric documents; none if a line is malformed, which `check_metric` reports."""
    try:
        return documented_values(metric)
    except ValueError:
        return []


def _metric(metric: type[Metric]) -> list[str]:
    """What else a metric's class says: its values, what a table shows of them, what it asks for."""
    asked: Any = metric
    requests = dict.fromkeys([*observe_requests(asked), *substitute_requests(asked), *conclude_requests(asked)])
    facts = {
        "values": () if _values(metric) else names_of_values(metric) or (),
        "shown first": metric.headline if isinstance(metric.headline, list | tuple) else (),
        "requests": [name for name in requests if name not in ("self", "total")],
    }
    shown = [f"{what}: {', '.join(map(str, names))}" for what, names in facts.items() if names and not callable(names)]
    return ["", *shown] if shown else []


def _quantity(quantity: Any) -> list[str]:
    lines = [inspect.getdoc(quantity.function) or "(no documentation)"]
    marked = "fold" in getattr(quantity.function, "__saeval__", {})
    fold = "a fold: the sum over all batches" if marked else "a fold, known by its annotation: write @fold above it"
    facts = {
        "gives": quantity.shape,
        "kind": fold if quantity.fold else "",
        "over": "the fit split" if quantity.on_fit else "",
        "requests": ", ".join(quantity.parameters),
        "source": f"{quantity.function.__module__}.{quantity.function.__qualname__}",
    }
    lines += ["", *(f"{what}: {text}" for what, text in facts.items() if text)]
    for cls in _returned(quantity):
        lines += ["", *_fields(cls)]
    return lines


def _value_page(entry: Entry[type[Metric]], value: str) -> str:
    """A value's own line above its metric's page."""
    page = _page(entry, "metric")
    for one in sorted(
        _values(entry.thing), key=lambda one: value not in one.names
    ):  # its own line, before that of its family
        if any(names_matching(pattern, [value]) for pattern in one.names):
            head = f"value {entry.name}.{value}: {one.equation}"
            return f"{head}\n  unit: {one.unit}\n  range: {one.range}\n  direction: {one.better}\n\n{page}"
    return page


def _substituted(name: str, registry: Registry) -> str | None:
    """`substitute_scores` and its kind: what a metric's own interventions give."""
    spliced = name.replace("substitute_", "spliced_", 1)
    if not name.startswith("substitute_") or spliced not in registry.quantities:
        return None
    quantity = registry.quantities[spliced]
    lines = [
        f"quantity {name} (saeval:engine)",
        "",
        f"`{spliced}` of each of a metric's own interventions: a dict by the names that the metric declares in",
        "`interventions`. Only `observe` of such a metric can request it. Each name costs one resumed pass a batch.",
        "",
        f"gives: dict[str, {quantity.shape}]",
    ]
    for cls in _returned(quantity):
        lines += ["", *_fields(cls)]
    return "\n".join(lines)


def _structure(name: str, registry: Registry) -> str | None:
    cls = structures(registry).get(name)
    if cls is None:
        return None
    by = [e.name for e in registry.quantities if cls in _returned(e.thing)]
    by += [leaf.name for leaf in LEAVES.values() if leaf.gives is cls]
    given = ["", f"given by: {', '.join(by)}"] if by else []
    return "\n".join([f"structure {name} ({cls.__module__})", "", *_fields(cls), *given])


def _parameter(name: str, registry: Registry) -> str | None:
    """A parameter of metrics, which a quantity that they request may ask for by name."""
    owners = [(e.name, f) for e in registry.metrics for n, f in schema(e.thing).model_fields.items() if n == name]
    if not owners:
        return None
    lines = [f"parameter {name} of metrics", ""]
    lines += [f"  {metric}: {default(field)}" for metric, field in owners]
    lines += [
        "",
        f"A quantity that such a metric requests may ask for '{name}' by name; `saeval show METRIC` explains it.",
    ]
    return "\n".join(lines)
