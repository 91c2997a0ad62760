"""The documentation of a name: a metric or its values, a quantity, a structure, a parameter, anything registered."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, TypeVar

from pydantic import BaseModel

from saeval.base.errors import SaevalError, blamed, said, suggestion
from saeval.base.names import names_matching_any
from saeval.base.parameters import schema
from saeval.base.text_files import read_text
from saeval.interfaces.documentation import Claim, Documented, documentation, documented_claims, documented_values
from saeval.interfaces.metric import Metric, names_of_values, requested
from saeval.interfaces.model import RegisteredModel
from saeval.plan.leaves import LEAVES
from saeval.registry.registry import Entry, Registry
from saeval.suite.schema import RegisteredSuite

Line = TypeVar("Line", Documented, Claim)


def structures(registry: Registry) -> dict[str, type]:
    """Return the classes that metrics and quantities may receive, by name, with the classes of their members."""
    classes = {cls.__name__: cls for leaf in LEAVES.values() if (cls := leaf.gives)}
    for entry in registry.quantities:
        classes |= {cls.__name__: cls for cls in _returned(entry.thing)}
    for cls in list(classes.values()):
        annotations = " ".join(member.shape for member in members(cls))
        classes |= {inner.__name__: inner for inner in _named(annotations, vars(inspect.getmodule(cls)))}
    return dict(sorted(classes.items()))


def _returned(quantity: Any) -> list[type]:
    function = inspect.unwrap(quantity.function)
    return _named(quantity.shape, getattr(function, "__globals__", {}))


def _named(annotation: str, names: Mapping[str, Any]) -> list[type]:
    """Return saeval's classes with members that the text of an annotation names."""
    bare = re.sub(r'"[^"]*"', "", annotation)  # without the shapes of jaxtyping
    objects = (names.get(word) for word in re.findall(r"[A-Za-z_]\w*", bare))
    return [cls for cls in objects if isinstance(cls, type) and cls.__module__.startswith("saeval") and members(cls)]


@dataclass(frozen=True)
class Member:
    """A field, property or method of a structure."""

    name: str
    shape: str
    """Its annotation, or a method's arguments and return type."""
    doc: str


def members(cls: type) -> list[Member]:
    """Return the public fields, properties and methods of a structure, followed by those of its base classes."""
    by_name: dict[str, Member] = {}
    for base in cls.__mro__:
        if base.__module__.startswith("saeval"):
            for member in _own_members(base):
                if not by_name.setdefault(member.name, member).doc:  # an override may inherit its docstring
                    by_name[member.name] = replace(by_name[member.name], doc=member.doc)
    return list(by_name.values())


@cache  # many classes share their bases
def _own_members(cls: type) -> list[Member]:
    return list(_read_members(cls))


def _read_members(cls: type) -> Iterator[Member]:
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(cls)))
    except (OSError, SyntaxError, TypeError):  # the class has no source file
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
    """Return the lines on a structure: its name, its documentation, its members."""
    lines = [f"{cls.__name__}: {(inspect.getdoc(cls) or '').split(chr(10) + chr(10))[0]}"]
    for member in members(cls):
        lines.append(f"  {member.name}: {member.shape}".rstrip(": "))
        lines += textwrap.wrap(member.doc, 110, initial_indent="      ", subsequent_indent="      ")
    return lines


def document(name: str, registry: Registry) -> str | None:
    """Return the documentation of a name; None for an unknown name. `SaevalError` if two plugins provide the name."""
    pages, kinds = [], []
    for _, names in registry.every():
        if name not in names:
            continue
        entry = names.entry(name)
        with blamed(f"{names.kind} '{name}'", entry.origin):
            pages.append("\n".join([_page(entry, names.kind), *_hooks(entry.thing, registry)]))
            kinds.append(names.kind)
    if pages:  # a name may be a metric, a quantity and a suite
        *most, last = (f"a {kind}" for kind in kinds)
        several = [f"'{name}' is {', '.join(most)} and {last}:"] if most else []
        return "\n\n".join([*several, *pages])
    if name in LEAVES:
        leaf = LEAVES[name]
        rest = ["", *_fields(leaf.gives)] if leaf.gives else []
        return "\n".join([f"quantity {name} (saeval:engine)", "", leaf.doc, *rest])
    metric, _, value = name.partition(".")
    if value and metric in registry.metrics:  # a column, `metric.value`
        return _value_page(registry.metrics.entry(metric), value)
    return (
        _substituted(name, registry)
        or _structure(name, registry)
        or _parameter(name, registry)
        or _values(name, registry)
    )


def unknown(name: str, registry: Registry, also: list[str]) -> SaevalError:
    """Return the error for an unknown name; `also` lists further names to suggest."""
    names = [n for _, namespace in registry.every() for n in namespace.names()]
    names += dict.fromkeys(value for entry in registry.metrics for value in names_of_values(entry.thing) or ())
    names += [*LEAVES, *structures(registry), *also]
    names += [n.replace("spliced_", "substitute_", 1) for n in registry.quantities.names() if n.startswith("spliced_")]
    near = suggestion(name, names, "; `saeval ls metrics` lists the metrics, `saeval ls KIND` anything else")
    return SaevalError(f"'{name}' is neither a results folder, a result, nor a known name{near}")


def _page(entry: Entry[Any], kind: str) -> str:
    registered = entry.thing
    version = f"@{registered.version}" if isinstance(getattr(registered, "version", None), int) else ""
    lines = [f"{kind} {entry.name}{version} ({entry.origin})", ""]
    if hasattr(registered, "rebinds"):
        return "\n".join([*lines, *_quantity(registered)])
    if isinstance(registered, RegisteredSuite):
        return "\n".join([*lines, *_suite(registered)])
    if isinstance(registered, type):
        lines.append(documentation(registered) or "(no documentation)")
        parameters = schema(registered).model_fields
        if parameters:
            lines += ["", "parameters:", *(f"  {name}: {default(field)}" for name, field in parameters.items())]
        if issubclass(registered, Metric):
            lines += _metric(registered)
        if model := getattr(registered, "entry", None):
            lines += _keys(model)
        return "\n".join(lines)
    lines.append(str(getattr(registered, "description", "")))
    reference = getattr(registered, "reference", None) or getattr(registered, "path", "")
    return "\n".join([*lines, str(reference)]).rstrip()


def _suite(suite: RegisteredSuite) -> list[str]:
    """The description of a suite, how to run it, and its file, to copy and change."""
    run = f"`saeval run {suite.name}` runs it; copy {suite.path} to change it, and give it another name (`suite:`):"
    return [suite.description, "", run, "", read_text(suite.path).rstrip()]


def _keys(model: type) -> list[str]:
    """The keys of an entry of a format or an adapter, with what its class says of them."""
    docs = {member.name: member.doc for member in members(model)}
    lines = ["", "keys of an entry (docs/formats.md has those of every format):"]
    fields = model.model_fields if issubclass(model, BaseModel) else schema(model).model_fields
    for name, field in fields.items():
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
    """Return a parameter's default as text."""
    return "required" if field.is_required() else repr(field.default)


def _read(section: Callable[[type[Metric]], list[Line]], metric: type[Metric]) -> list[Line]:
    """The entries of a section of a metric's docstring; none if one is malformed, which `check_metric` reports."""
    try:
        return section(metric)
    except ValueError:
        return []


def _metric(metric: type[Metric]) -> list[str]:
    """Return the lines on a metric's values, the values that a table shows, and its requests."""
    requests = dict.fromkeys(name for m in ("observe", "substitutes", "conclude") for name in requested(metric, m))
    facts = {
        "values": () if _read(documented_values, metric) else names_of_values(metric) or (),
        "shown first": metric.headline if isinstance(metric.headline, list | tuple) else (),
        "kept first in narrow tables": metric.main if isinstance(metric.main, list | tuple) else (),
        "requests": [name for name in requests if name not in ("self", "total")],
    }
    shown = [f"{label}: {', '.join(map(str, v))}" for label, v in facts.items() if v and not callable(v)]
    return ["", *shown] if shown else []


def _quantity(quantity: Any) -> list[str]:
    lines = [inspect.getdoc(quantity.function) or "(no documentation)"]
    marked = "fold" in getattr(quantity.function, "__saeval__", {})
    fold = "a fold: the sum over all batches" if marked else "a fold, by its annotation only: decorate it with @fold"
    facts = {
        "returns": quantity.shape,
        "kind": fold if quantity.fold else "",
        "over": "the fit split" if quantity.on_fit else "",
        "requests": ", ".join(quantity.parameters),
        "source": f"{quantity.function.__module__}.{quantity.function.__qualname__}",
    }
    lines += ["", *(f"{label}: {text}" for label, text in facts.items() if text)]
    for cls in _returned(quantity):
        lines += ["", *_fields(cls)]
    return lines


def _value_page(entry: Entry[type[Metric]], value: str) -> str:
    """Return the documentation of one value, or of its lead over a control, above its metric's.

    `SaevalError` for a value that a metric with a section `Values:` does not describe.
    """
    page = _page(entry, "metric")
    lines = []
    value, lead, control = value.partition(" vs ")
    documented = _read(documented_values, entry.thing)
    declared = names_of_values(entry.thing) or ()
    names = [*(name for doc in documented for name in doc.names), *declared]
    if documented and not names_matching_any(names, [value]):
        near = suggestion(value, names, f"; `saeval show {entry.name}` describes its values")
        raise SaevalError(f"metric '{entry.name}' has no value '{value}'{near}")
    if lead:
        lines += [
            f"value {entry.name}.{value} vs {control}: the lead of a row over {control}, a paired difference",
            "  direction: higher is better",
            "  null hypothesis: 0, by the paired t test, with Holm's correction over the tests of the metric",
        ]
    if doc := _named_first(value, documented):
        lines += [f"value {entry.name}.{value}: {doc.equation}"]
        lines += [f"  unit: {doc.unit}", f"  range: {doc.range}", f"  direction: {doc.better}"]
    if claim := _named_first(value, _read(documented_claims, entry.thing)):
        lines += [f"  may be claimed: {claim.may}", f"  null hypothesis: {claim.null}"]
        lines += [f"  needs at least: {claim.needs}", f"  may not be claimed: {claim.never}"]
    return "\n".join([*lines, "", page] if lines else [page])


def _values(name: str, registry: Registry) -> str | None:
    """Return the documentation of all values of this name, of whatever metric."""
    pages = []
    for entry in registry.metrics:
        documented = _read(documented_values, entry.thing)
        has_it = name in (names_of_values(entry.thing) or ()) or any(name in doc.names for doc in documented)
        if has_it and (doc := _named_first(name, documented)):
            lines = [f"value {entry.name}.{name}: {doc.equation}", f"  unit: {doc.unit}", f"  range: {doc.range}"]
            pages.append("\n".join([*lines, f"  direction: {doc.better}"]))
    more = f"\n\n`saeval show METRIC.{name}` says more of one of them, and what it allows to claim." if pages else ""
    return "\n\n".join(pages) + more or None


def _named_first(value: str, entries: Sequence[Line]) -> Line | None:
    """Return the entry that has a value's name, or else the first with a pattern that matches it."""
    entries = sorted(entries, key=lambda entry: value not in entry.names)
    return next((entry for entry in entries if names_matching_any(entry.names, [value])), None)


def _substituted(name: str, registry: Registry) -> str | None:
    """Return the page on a quantity of a metric's own interventions, such as `substitute_scores`."""
    spliced = name.replace("substitute_", "spliced_", 1)
    if not name.startswith("substitute_") or spliced not in registry.quantities:
        return None
    quantity = registry.quantities[spliced]
    lines = [
        f"quantity {name} (saeval:engine)",
        "",
        f"`{spliced}` for each of a metric's own interventions: a dict by the names that the metric declares in",
        "`interventions`. Only `observe` of such a metric can request it. Each name costs one resumed pass per batch.",
        "",
        f"returns: dict[str, {quantity.shape}]",
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
    returned = ["", f"returned by: {', '.join(by)}"] if by else []
    return "\n".join([f"structure {name} ({cls.__module__})", "", *_fields(cls), *returned])


def _parameter(name: str, registry: Registry) -> str | None:
    """Return the page on a parameter of metrics, which quantities may request by name."""
    owners = [(e.name, f) for e in registry.metrics for n, f in schema(e.thing).model_fields.items() if n == name]
    if not owners:
        return None
    lines = [f"  {metric}: {default(field)}" for metric, field in owners]
    use = f"A quantity that such a metric requests may itself request '{name}'; `saeval show METRIC` explains it."
    return "\n".join([f"parameter {name} of metrics", "", *lines, "", use])
