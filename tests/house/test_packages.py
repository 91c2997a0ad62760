"""The distribution lists every package and marks it as typed."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import yaml

from saeval.testing.claims import some

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
SETUP = PROJECT["tool"]["setuptools"]


def test_every_package_is_listed():
    rooms = {f"saeval.{file.parent.name}" for file in (ROOT / "saeval").glob("*/__init__.py")}
    plugins = {file.parent.name for file in (ROOT / "plugins").glob("*/__init__.py")}
    assert set(SETUP["packages"]) == {"saeval", "saeval_suites"} | rooms | plugins


def test_every_package_has_a_py_typed_file():
    for package, folder in some(SETUP["package-dir"].items()):
        assert (ROOT / folder / "py.typed").exists(), package
    assert "py.typed" in SETUP["package-data"]["*"]


def test_pre_commit_runs_the_commands_of_make_check():
    (repository,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    hooks = {hook["entry"].replace(" --force-exclude", "").removeprefix(".venv/bin/") for hook in repository["hooks"]}
    recipe = (ROOT / "Makefile").read_text().partition("\ncheck: setup\n")[2].partition("\n\n")[0]
    assert hooks == {line.removesuffix(" .") for line in re.findall(r"\$\(BIN\)/(.+)", recipe)}
