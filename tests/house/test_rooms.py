"""The order of imports: sub-packages import in one direction, and plugins import only `saeval.plugin`."""

from __future__ import annotations

import ast
from pathlib import Path

from saeval.testing.claims import some

ROOT = Path(__file__).parents[2]
ORDER = (
    "base", "stats", "interfaces", "results", "page", "suite", "text", "registry", "plan", "engine", "", "testing", "cli",
)  # fmt: skip
"""Each sub-package imports only from those before it; "" stands for the modules directly in `saeval/`."""
EXCEPTIONS = {("registry.hookspecs", "plan.plan")}
"""For type checkers only: the hook specifications name the type of a plan."""
DOORS = {"plugin", "__init__"}
"""Modules that export names of all sub-packages, imported on first use."""


def imported(file):
    """Yield the modules of saeval that a file imports, at any level, including imports for type checkers."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "saeval":
            for alias in node.names:
                inner = ROOT.joinpath(*node.module.split("."), alias.name)
                whole = inner.with_suffix(".py").exists() or (inner / "__init__.py").exists()
                yield f"{node.module}.{alias.name}" if whole else node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == "saeval")


def room(module):
    """Return the sub-package that a module is in or is; "" for a module directly in `saeval/`."""
    parts = module.split(".")[1:]
    return parts[0] if parts and parts[0] in ORDER else ""


def test_the_order_lists_all_subpackages():
    folders = {folder.parent.name for folder in (ROOT / "saeval").glob("*/__init__.py")}
    assert folders == set(ORDER) - {""}
    for folder in some(folders):
        assert ast.get_docstring(ast.parse((ROOT / "saeval" / folder / "__init__.py").read_text()))


def test_each_subpackage_imports_only_from_those_before_it():
    backwards = []
    for file in some((ROOT / "saeval").rglob("*.py")):
        importer = file.relative_to(ROOT / "saeval").with_suffix("").as_posix().replace("/", ".")
        for module in imported(file) if importer not in DOORS else ():
            allowed = module == "saeval" or (importer, module.removeprefix("saeval.")) in EXCEPTIONS
            if not allowed and ORDER.index(room(module)) > ORDER.index(room(f"saeval.{importer}")):
                backwards.append(f"saeval.{importer} imports {module}, which comes later in the order")
    assert not backwards


def test_plugins_import_only_the_plugin_module():
    files = [file for folder in ("plugins", "suites") for file in (ROOT / folder).rglob("*.py")]
    for file in some(files):
        others = [module for module in imported(file) if module not in ("saeval.plugin", "saeval.testing")]
        assert not others, f"{file.relative_to(ROOT)} imports {others}; import from saeval.plugin instead"


def test_all_names_of_the_plugin_module_exist():
    from saeval import plugin

    for name in some(plugin.__all__):
        assert getattr(plugin, name) is not None
    tree = ast.parse((ROOT / "saeval" / "plugin.py").read_text())
    for_type_checkers = [node for block in tree.body if isinstance(block, ast.If) for node in block.body]
    typed = [alias.asname or alias.name for node in some(for_type_checkers) for alias in node.names]
    assert sorted(typed) == plugin.__all__
