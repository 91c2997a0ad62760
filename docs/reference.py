"""The pages of the reference, written from docstrings, the registry, the command line and the schema of suites."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import io
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from saeval.cli import glossary, grammar
from saeval.cli.suite_schema import suite_schema
from saeval.interfaces.documentation import description, documentation, documented_claims, documented_values
from saeval.plan.leaves import LEAVES
from saeval.registry import hookspecs
from saeval.registry.discovery import Plugins
from saeval.registry.registry import Registry

SECTIONS = {
    "python": ("saeval", "What `import saeval` gives: runs, results, and what small metrics need."),
    "plugin": ("saeval.plugin", "The only module that plugins import."),
    "testing": ("saeval.testing", "Checks, fixtures and tiny models for tests of plugins."),
}
KINDS = {
    "controls": "Controls", "formats": "SAE formats", "data": "Data sources", "models": "Models and adapters",
    "judges": "Judges", "suites": "Suites", "reports": "Report formats",
}  # fmt: skip


def pages() -> dict[str, str]:
    """Return the text of each page by the name of its file, in Markdown."""
    registry = Registry(Plugins([]))
    written = {f"{page}.md": _module(module, words) for page, (module, words) in SECTIONS.items()}
    written["metrics.md"] = _metrics(registry)
    written["quantities.md"] = _quantities(registry)
    written["structures.md"] = _structures(registry)
    written["hooks.md"] = _hooks()
    written["commands.md"] = _commands()
    written["suite.md"] = _suite(registry)
    written |= {f"{kind}.md": _names(registry, kind, title) for kind, title in KINDS.items()}
    listed = "\n".join(f"- [{_title(text)}]({name})" for name, text in written.items())
    tree = "\n".join(name.removesuffix(".md") for name in written)
    index = f"# Reference\n\nWritten from the code of this version.\n\n{listed}\n\n"
    index += f"```{{toctree}}\n:hidden:\n\n{tree}\n```\n"
    return {"index.md": index, **written}


def write(folder: Path) -> None:
    """Write the pages that changed into a folder."""
    folder.mkdir(exist_ok=True)
    for name, text in pages().items():
        path = folder / name
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


def _title(text: str) -> str:
    return text.partition("\n")[0].removeprefix("# ")


def _cell(text: object) -> str:
    """Return text for a cell of a table: on one line, no bar of it ends the cell, nothing is read as HTML."""
    escaped = re.sub(r"(?<!\\)\|", r"\\|", " ".join(str(text).split()))
    return escaped.replace("<", "&lt;")


def _code(text: object) -> str:
    return f"`{_cell(text).replace('&lt;', '<')}`" if text else ""


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [" | ".join(heads), " | ".join("---" for _ in heads), *(" | ".join(row) for row in rows)]
    return "\n".join(f"| {line} |" for line in lines) + "\n"


def _prose(text: str) -> str:
    """Return a docstring as Markdown: its sections and examples are indented, which is code; `<` begins no tag."""
    return text.replace("<", "&lt;").replace("$", "\\$")


def _block(text: str) -> str:
    return f"```text\n{text.rstrip()}\n```\n"


def _module(name: str, words: str) -> str:
    module = importlib.import_module(name)
    parts = [f"# `{name}`\n\n{words}\n"]
    for public in sorted(module.__all__, key=str.lower):
        parts.append(f"## `{public}`\n\n{_documented(public, getattr(module, public))}")
    return "\n".join(parts)


def _documented(name: str, thing: Any) -> str:
    if inspect.ismodule(thing):
        functions = [
            n
            for n, f in vars(thing).items()
            if not n.startswith("_") and getattr(f, "__module__", "") == thing.__name__
        ]
        return f"{_prose(inspect.getdoc(thing) or '')}\n\nIt has {', '.join(_code(f) for f in functions)}.\n"
    if not (inspect.isclass(thing) or inspect.isroutine(thing)):
        shown = repr(thing)
        if isinstance(thing, str | int | float):
            return f"A constant of the module: {_code(shown)}.\n"
        first = (inspect.getdoc(type(thing)) or "").split("\n\n")[0]
        return f"An object of {_code(type(thing).__qualname__)}. {_prose(first)}\n"
    try:
        signature = f"```python\n{name}{_signature(thing)}\n```\n\n"
    except (TypeError, ValueError):
        signature = ""
    text = f"{signature}{_prose(inspect.getdoc(thing) or '')}\n"
    if inspect.isclass(thing) and (members := [m for m in glossary.members(thing) if m.doc]):
        rows = ((_code(m.name), _code(m.shape), _cell(m.doc)) for m in members)
        text += "\n" + _table(("member", "type", "what it is"), rows)
    return text


def _signature(thing: Any) -> str:
    text = str(inspect.signature(thing))
    bare = re.sub(r"(: |-> )'([^']*)'", r"\1\2", re.sub(r" at 0x[0-9a-f]+", "", text))
    return bare if len(bare) < 2000 else "(...)"


def _metrics(registry: Registry) -> str:
    parts = [
        "# Metrics\n\nEvery value of every metric: its equation, unit, range and direction. [docs/metrics.md](../metrics.md) "
        "explains them by topic, [docs/claims.md](../claims.md) says what each allows to claim.\n"
    ]
    for entry in registry.metrics:
        metric = entry.thing
        parts.append(f"## `{entry.name}`\n\n{description(metric)}\n\nVersion {metric.version}, of {entry.origin}.\n")
        rows = [
            (", ".join(map(_code, v.names)), _cell(v.equation), _cell(v.unit), _cell(v.range), v.better)
            for v in documented_values(metric)
        ]
        parts.append(_table(("value", "equation", "unit", "range", "direction"), rows))
        if documented_claims(metric):
            parts.append(f"[What may be claimed](../claims.md#{entry.name}).\n")
        parts.append(
            f"The whole documentation, as `saeval show {entry.name}` prints it:\n\n{_block(_without_paths(glossary.document(entry.name, registry) or ''))}"
        )
    return "\n".join(parts)


def _quantities(registry: Registry) -> str:
    parts = [
        "# Quantities\n\nWhat metrics and other quantities request by the names of their parameters. Those of several members "
        "are [structures](structures.md).\n"
    ]
    for name in sorted({*registry.quantities.names(), *LEAVES}):
        if name in registry.quantities:
            quantity = registry.quantities[name]
            facts = [("returns", _code(quantity.shape)), ("requests", ", ".join(map(_code, quantity.parameters)))]
            facts += [("kind", "a fold: the sum over all batches")] if quantity.fold else []
            facts += [("over", "the fit split")] if quantity.on_fit else []
            facts += [("source", _code(f"{quantity.function.__module__}.{quantity.function.__qualname__}"))]
            text = inspect.getdoc(quantity.function) or ""
        else:
            leaf = LEAVES[name]
            facts, text = [("returns", _code(leaf.gives.__name__))] if leaf.gives else [], leaf.doc
        lines = "".join(f"- {label}: {fact}\n" for label, fact in facts if fact)
        parts.append(f"## `{name}`\n\n{_prose(text)}\n\n{lines}")
    return "\n".join(parts)


def _structures(registry: Registry) -> str:
    parts = ["# Structures that metrics receive\n\nThe classes that quantities return, with their members.\n"]
    for name, cls in glossary.structures(registry).items():
        rows = ((_code(m.name), _code(m.shape), _cell(m.doc)) for m in glossary.members(cls))
        first = (inspect.getdoc(cls) or "").split("\n\n")[0]
        parts.append(f"## `{name}`\n\n{_prose(first)}\n\n{_table(('member', 'type', 'what it is'), rows)}")
    return "\n".join(parts)


def hooks() -> dict[str, Any]:
    """Return the specifications of all hooks by name."""
    return {name: hook for name, hook in vars(hookspecs).items() if name.startswith("saeval_")}


def _hooks() -> str:
    parts = ["# Hooks\n\nThe functions that a plugin may define, marked `@hookimpl`. Each is optional.\n"]
    for name, hook in hooks().items():
        arguments, returns = ", ".join(inspect.signature(hook).parameters), hook.__annotations__["return"]
        parts.append(
            f"## `{name}`\n\n```python\ndef {name}({arguments}) -> {returns}: ...\n```\n\n{inspect.getdoc(hook)}\n"
        )
    return "\n".join(parts)


def verbs() -> list[str]:
    """Return the verbs of the command line, those of plugins included."""
    return [*grammar.VERBS, *sorted({e.name for e in entry_points(group=grammar.COMMANDS)} - {*grammar.VERBS})]


def _commands() -> str:
    parts = ["# Commands\n\n`saeval VERB --help` prints the same.\n"]
    parts += [f"## `saeval {verb}`\n\n{_block(_help(verb))}" for verb in verbs()]
    return "\n".join(parts)


def _help(verb: str) -> str:
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "100"
    try:
        with contextlib.redirect_stdout(io.StringIO()) as text, contextlib.suppress(SystemExit):
            if verb in grammar.VERBS:
                grammar._parser([]).parse_args([verb, "--help"])
            else:
                next(iter(entry_points(group=grammar.COMMANDS, name=verb))).load()(["--help"])
    finally:
        os.environ.pop("COLUMNS") if before is None else os.environ.update(COLUMNS=before)
    return text.getvalue()


def suite_keys(registry: Registry) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the keys of a suite, those of its leaderboard, and those that all text sources share, with their schemas."""
    properties = suite_schema(registry)["properties"]
    for name, schema in properties.items():
        yield name, schema
        if name == "leaderboard":
            yield from ((f"{name}.{key}", inner) for key, inner in schema["properties"].items())


def _suite(registry: Registry) -> str:
    rows = []
    for name, schema in suite_keys(registry):
        schema = schema if isinstance(schema, Mapping) else {}
        kinds = [schema, *schema.get("anyOf", ())]
        types = dict.fromkeys(str(kind["type"]) for kind in kinds if isinstance(kind, Mapping) and "type" in kind)
        default = f"`{schema['default']!r}`" if "default" in schema else ""
        rows.append((_code(name), " or ".join(types), _cell(default), _cell(schema.get("description", ""))))
    return (
        "# Keys of a suite\n\n`saeval schema` prints the JSON Schema, which an editor can use "
        "([how](../tables.md#editors-and-shells)). The keys of `data:`, `saes:`, `controls:`, `model:`, `judge:` and `metrics:` "
        "are those of the [data sources](data.md), [formats](formats.md), [controls](controls.md), [adapters](models.md), "
        "[judges](judges.md) and [metrics](metrics.md).\n\n" + _table(("key", "type", "default", "what it is"), rows)
    )


def _names(registry: Registry, kind: str, title: str) -> str:
    parts = [f"# {title}\n\n`saeval ls {kind}` lists them.\n"]
    for _, names in registry.every(kind):
        for entry in names:
            text = glossary.document(entry.name, registry) or documentation(entry.thing)
            parts.append(f"## `{entry.name}`\n\n{_block(_without_paths(text))}")
    return "\n".join(parts)


def _without_paths(text: str) -> str:
    """Return text in which paths of this machine are relative to the repository."""
    return text.replace(f"{Path(__file__).resolve().parents[1]}/", "")


if __name__ == "__main__":
    write(Path(__file__).with_name("reference"))
