"""The blocks of code in the documentation are what they claim to be: Python that defines things runs, suites are valid."""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from saeval import plugin
from saeval.suite.schema import SuiteModel, validate
from saeval.suite.yaml_marks import Marks

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
DEFINITIONS = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef, ast.Assign)


def blocks(language):
    """Return each block of a language, with the page and the line that it begins at."""
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for match in re.finditer(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE):
            place = f"{page.name}:{text[: match.start()].count(chr(10)) + 1}"
            found.append(pytest.param(match[1], id=place))
    return found


@pytest.mark.parametrize("code", blocks("python"))
def test_blocks_of_python_that_only_define_things_run(code):
    tree = ast.parse(code)
    defines = all(isinstance(node, DEFINITIONS) for node in tree.body)
    calls = any(
        isinstance(node, ast.Assign)
        and isinstance(node.value, ast.Call)
        and not ast.unparse(node.value).startswith("np.")
        for node in tree.body
    )
    if defines and not calls:
        names = {name: getattr(plugin, name) for name in plugin.__all__}
        exec(
            compile(code, "block.py", "exec", dont_inherit=True),
            {**names, "np": np, "torch": torch, "__name__": "block"},
        )


@pytest.mark.parametrize("text", blocks("yaml"))
def test_blocks_of_yaml_are_suites_or_parts_of_suites(text):
    content = yaml.safe_load(text)
    if isinstance(content, dict) and content.keys() <= SuiteModel.model_fields.keys():
        least = {"suite": "block", "data": {"texts": ["a"]}, "metrics": ["l0"], "model": "testbed"}
        assert validate({**least, **content}, Marks("block")).body.metrics


@pytest.mark.parametrize("text", blocks("toml"))
def test_blocks_of_toml_are_toml(text):
    assert tomllib.loads(text)
