"""The map of the house: rooms import in one direction, and plugins import the authors' door alone."""

from __future__ import annotations

import ast
from pathlib import Path

from saeval.testing.claims import some

ROOT = Path(__file__).parents[2]
ORDER = (
    "base", "stats", "interfaces", "results", "suite", "text", "registry", "plan", "engine", "", "testing", "cli",
)  # fmt: skip
"""Each room imports from those before it; "" is what stands in `saeval/` itself."""
EXCEPTIONS = {("registry.hookspecs", "plan.plan")}
"""For type checkers alone: the specifications of hooks name what a plan is."""
DOORS = {"plugin", "__init__"}
"""Names of everything, imported when first used."""


def imported(file):
    """The modules of saeval that a file imports, wherever it does, for type checkers too."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "saeval":
            for alias in node.names:
                inner = ROOT.joinpath(*node.module.split("."), alias.name)
                whole = inner.with_suffix(".py").exists() or (inner / "__init__.py").exists()
                yield f"{node.module}.{alias.name}" if whole else node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == "saeval")


def room(module):
    """The room of `saeval.room.module`, and of the room itself."""
    parts = module.split(".")[1:]
    return parts[0] if parts and parts[0] in ORDER else ""


def test_rooms_are_the_folders():
    folders = {folder.parent.name for folder in (ROOT / "saeval").glob("*/__init__.py")}
    assert folders == set(ORDER) - {""}
    for folder in some(folders):
        assert ast.get_docstring(ast.parse((ROOT / "saeval" / folder / "__init__.py").read_text()))


def test_each_room_imports_from_those_before_it():
    backwards = []
    for file in some((ROOT / "saeval").rglob("*.py")):
        own = file.relative_to(ROOT / "saeval").with_suffix("").as_posix().replace("/", ".")
        mine = own.split(".")[0] if "." in own else ""
        for module in imported(file) if own not in DOORS else ():
            allowed = module == "saeval" or (own, module.removeprefix("saeval.")) in EXCEPTIONS
            if not allowed and ORDER.index(room(module)) > ORDER.index(mine):
                backwards.append(f"saeval.{own} imports {module}, which stands above it")
    assert not backwards


def test_plugins_import_the_authors_door_alone():
    files = [file for folder in ("plugins", "suites") for file in (ROOT / folder).rglob("*.py")]
    for file in some(files):
        others = [module for module in imported(file) if module not in ("saeval.plugin", "saeval.testing")]
        assert not others, f"{file.relative_to(ROOT)} imports {others}; saeval.plugin is the authors' door"


def test_the_door_gives_what_it_names():
    from saeval import plugin

    for name in some(plugin.__all__):
        assert getattr(plugin, name) is not None
    typed = [
        alias.asname
        for node in ast.walk(ast.parse((ROOT / "saeval" / "plugin.py").read_text()))
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("saeval.")
        for alias in node.names
    ]
    assert sorted(typed) == plugin.__all__
