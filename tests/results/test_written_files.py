"""`saeval report` removes the files of the last report that it does not write again, and no others."""

from __future__ import annotations

import hashlib

import pytest

from saeval.base.sealed_json import sealed
from saeval.cli import main
from saeval.results.written_files import LIST
from saeval.testing import TinySAE, evaluate_tiny, tiny_tokens

PLUGIN = """
from saeval.plugin import Report, hookimpl


@hookimpl
def saeval_reports():
    return [Report("names", pages=lambda results: {{name: "of a report" for name in {names!r}}})]
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    return evaluate_tiny(["l0"], saes={"a": TinySAE()}, rows=tiny_tokens(rows=8), out=out, key="written").folder


def report(folder, to, tmp_path, *names):
    plugin = tmp_path / f"p{len(names)}.py"
    plugin.write_text(PLUGIN.format(names=list(names)))
    assert main(["report", str(folder), "--to", str(to), "--plugin", str(plugin)]) == 0
    return {path.name for path in to.iterdir()} - {LIST}


def test_files_of_the_last_report_go_and_files_of_others_stay(folder, tmp_path):
    to = tmp_path / "to"
    assert report(folder, to, tmp_path, "old.md", "edited.md", "kept.md") == {
        "old.md", "edited.md", "kept.md", "index.html",
    }  # fmt: skip
    (to / "edited.md").write_text("by a user")
    (to / "mine.md").write_text("of a report")
    assert report(folder, to, tmp_path, "kept.md") == {"edited.md", "kept.md", "mine.md", "index.html"}
    assert (to / "edited.md").read_text() == "by a user"


def test_a_list_that_names_other_places_or_is_damaged_removes_nothing(folder, tmp_path):
    to = tmp_path / "to"
    report(folder, to, tmp_path, "old.md", "older.md")
    listed = (to / LIST).read_text()
    (to / LIST).write_text(listed.replace("old.md", "new.md"))
    assert report(folder, to, tmp_path, "kept.md") == {"old.md", "older.md", "kept.md", "index.html"}
    outside = tmp_path / "outside.md"
    outside.write_bytes((to / "older.md").read_bytes())
    digest = hashlib.sha256(outside.read_bytes()).hexdigest()
    (to / LIST).write_bytes(sealed({"files": {"../outside.md": digest, str(outside): digest, "older.md": digest}}))
    assert report(folder, to, tmp_path, "kept.md") == {"old.md", "kept.md", "index.html"}
    assert outside.exists()
