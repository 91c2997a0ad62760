"""Rules of the house that a reader relies on."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import saeval
from saeval import cli, hookspecs

ROOT = Path(__file__).parent.parent


def imports(file):
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def test_the_core_imports_no_plugin():
    for file in (ROOT / "saeval").glob("*.py"):
        plugins = [name for name in imports(file) if name.startswith("saeval_")]
        assert not plugins, f"{file.name} imports {plugins}"


def test_files_stay_short():
    """A file is one noun; past 300 lines it is usually two."""
    long = {
        str(file.relative_to(ROOT)): lines
        for folder in ("saeval", "plugins")
        for file in (ROOT / folder).rglob("*.py")
        if (lines := len(file.read_text().splitlines())) > 300
    }
    assert not long


def test_weights_are_only_ever_loaded_as_data():
    for folder in ("saeval", "plugins"):
        for file in (ROOT / folder).rglob("*.py"):
            text = file.read_text()
            assert not re.search(r"\b(pickle\.load|yaml\.load\(|yaml\.unsafe)", text), file
            for call in re.findall(r"torch\.load\([^)]*\)", text):
                assert "weights_only=True" in call, file
            for call in re.findall(r"np\.load\([^\n]*", text):
                assert "allow_pickle=False" in call, file


def test_every_public_name_exists_and_is_documented():
    for name in saeval.__all__:
        assert getattr(saeval, name).__doc__, name


def test_every_hook_says_what_it_is_for():
    hooks = [getattr(hookspecs, n) for n in dir(hookspecs) if n.startswith("saeval_")]
    assert len(hooks) >= 14
    assert all(hook.__doc__ for hook in hooks)


def test_the_readme_names_what_exists():
    text = "".join(re.findall(r"```\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL))
    for command in re.findall(r"^saeval (\w+)", text, re.MULTILINE):
        assert command in (*cli.VERBS, "testbed"), command
    for target in re.findall(r"^make (\w+)", text, re.MULTILINE):
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE), target
