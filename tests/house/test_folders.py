"""Tests are in folders named after what they test, and share helpers instead of importing each other."""

from __future__ import annotations

import ast
from collections import Counter
from pathlib import Path

from saeval.testing.claims import some

ROOT = Path(__file__).parents[2]
TESTS = ROOT / "tests"
FILES = sorted(TESTS.rglob("*.py"))


def imported(file):
    """Yield the modules that a file imports, at any level."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom):
            yield node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def test_each_folder_is_named_after_a_subpackage_or_a_plugin():
    rooms = {file.parent.name for file in (ROOT / "saeval").glob("*/__init__.py")}
    plugins = {file.parent.name.removeprefix("saeval_") for file in (ROOT / "plugins").glob("*/__init__.py")}
    folders = {file.parent.relative_to(TESTS).as_posix() for file in some(FILES) if file.name.startswith("test_")}
    assert folders <= rooms | plugins | {"api", "house", "worlds"}
    assert plugins <= folders


def test_no_test_module_imports_another():
    imports = [(file.name, module) for file in some(FILES) for module in imported(file)]
    across = [f"{name} imports {module}" for name, module in some(imports) if module.startswith("test_")]
    assert not across, "move what test modules share into a helper beside them"


def test_module_names_are_unique():
    """Test folders are no packages, so pytest imports every file by its bare name."""
    names = Counter(file.name for file in some(FILES) if file.name != "conftest.py")
    assert "__init__.py" not in names
    assert not {name for name, count in names.items() if count > 1}
