"""The reference, which the site of the documentation writes from the code, has an entry for every public name."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

import saeval
from saeval import cli, plugin, testing
from saeval.plan.leaves import LEAVES
from saeval.registry.discovery import Plugins
from saeval.registry.registry import Registry
from saeval.suite.schema import Leaderboard, SuiteModel
from saeval.testing.claims import some

DOCS = Path(__file__).parents[2] / "docs"
REGISTRY = Registry(Plugins([]))


@pytest.fixture(scope="module")
def pages():
    spec = importlib.util.spec_from_file_location("reference", DOCS / "reference.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.pages()


def entries(page):
    """The entries of a page by name, each with its text."""
    parts = re.split(r"^## `(.*)`$", page, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


@pytest.mark.parametrize(
    ("page", "names"),
    [
        ("python.md", saeval.__all__),
        ("plugin.md", plugin.__all__),
        ("testing.md", testing.__all__),
        ("metrics.md", REGISTRY.metrics.names()),
        ("quantities.md", {*REGISTRY.quantities.names(), *LEAVES}),
        (
            "hooks.md",
            list(re.findall(r"def (saeval_\w+)", (DOCS.parent / "saeval/registry/hookspecs.py").read_text())),
        ),
        ("commands.md", [f"saeval {verb}" for verb in (*cli.VERBS, "testbed", "pareto", "export")]),
        ("suites.md", REGISTRY.suites.names()),
        ("formats.md", REGISTRY.loaders.names()),
        ("data.md", REGISTRY.data.names()),
        ("controls.md", REGISTRY.controls.names()),
        ("reports.md", REGISTRY.reports.names()),
    ],
)
def test_every_name_has_an_entry(page, names, pages):
    texts = entries(pages[page])
    for name in some(names):
        assert len(texts.get(name, "").strip()) > 20, f"docs/reference/{page} has no entry for {name}"


def test_every_metric_has_its_values_with_unit_and_range(pages):
    for name, text in some(entries(pages["metrics.md"])).items():
        assert "| value | equation | unit | range | direction |" in text, name
        assert re.search(r"^\| `[^|]+` \| [^|]+.* \| .+ \| .+ \| .+ better.* \|$", text, re.MULTILINE), name


def test_every_key_of_a_suite_has_a_row(pages):
    keys = [*SuiteModel.model_fields, *(f"leaderboard.{key}" for key in Leaderboard.model_fields)]
    for key in some(keys):
        assert f"\n| `{key}` |" in pages["suite.md"], key


def test_no_page_names_a_place_on_this_machine(pages):
    for name, text in some(pages).items():
        assert str(DOCS.parent) not in text, name


def test_the_contents_list_every_page():
    trees = re.findall(r"```{toctree}\n(.*?)```", (DOCS / "index.md").read_text(encoding="utf-8"), re.DOTALL)
    listed = {line for tree in trees for line in tree.split("\n") if line and not line.startswith(":")}
    for page in some(sorted(DOCS.glob("*.md"))):
        assert page.stem in listed | {"index"}, f"docs/index.md does not list {page.name}"
