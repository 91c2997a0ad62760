"""Names and texts of other people in everything that is written: they are shown, and forge nothing."""

from __future__ import annotations

import csv as csv_files
import io
import itertools
import json
import logging
import re
from dataclasses import replace
from pathlib import Path

import pytest

import saeval
import saeval_perturbation.pages as perturbation_pages
from saeval import SaevalError, cli
from saeval.base.errors import SuiteError
from saeval.base.escapes import csv, file_name, html, line, markdown, terminal
from saeval.base.sealed_json import sealed, unsealed
from saeval.results.chart_files import csv_text
from saeval.results.comparison import compare
from saeval.results.leaderboard import from_results
from saeval.results.pages import write_pages
from saeval.results.report import Report
from saeval.results.result import Result
from saeval.results.section_files import section_files
from saeval.results.sections import Chart, Passage, Section
from saeval.results.sections import Table as PageTable
from saeval.suite.schema import validate
from saeval.suite.yaml_marks import Marks
from saeval.testing.claims import every, none, some
from saeval_reports import comparisons, tables
from scored_results import NOISE, scored

FORGERY = "a | b |\n| forged | 1 |\n## Forged <script>alert(1)</script> \x1b[2J\x9b1A\u202e *x* `y` __z__ [l](http://e) $\\frac$"
CONTROLS = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028-\u202e]")
SUITE = {
    "suite": "mine", "model": {"use": "testbed"}, "saes": ["testbed/topk-8"], "metrics": ["l0"],
    "data": {"use": "python-stdlib", "context": 16, "sequences": 4},
}  # fmt: skip


def forges_nothing(text):
    """A Markdown text whose lines all are the writer's own."""
    for is_table, lines in some(
        [(k, list(g)) for k, g in itertools.groupby(text.splitlines(), lambda line: line.startswith("|"))]
    ):
        assert not is_table or len({len(re.findall(r"(?<!\\)\|", row)) for row in lines}) == 1
    assert none(row.startswith(("| forged", "## Forged")) for row in text.splitlines())
    assert "<script" not in text
    assert not CONTROLS.search(text)
    assert "forged" in text  # it is shown
    return True


def test_markdown_is_escaped_where_it_would_mark_something_and_nowhere_else():
    for plain in (
        "testbed/relu-1",
        "blocks.2.hook_resid_pre",
        "a[lr=1e-4]",
        "x < y & z",
        "C:\\runs\\one",
        "random#2",
        "-0.5",
    ):
        assert markdown(plain) == plain
    for text, escaped in (
        ("a|b", r"a\|b"), ("a\\|b", r"a\\\|b"), ("# head", r"\# head"), ("1. item", r"1\. item"), ("> quote", r"\> quote"),
        ("- item", r"\- item"), ("---", r"\---"), ("[a](b)", r"[a]\(b)"), ("[a]: http://b", r"[a]\: http://b"), ("_em_", r"\_em\_"),
        ("&lt;b>", "&amp;lt;b>"), ("<!-- x -->", "&lt;!-- x -->"), ("a\r\nb\tc", "a⏎b⇥c"), ("`", r"\`"), ("~~x~~", r"\~\~x\~\~"), ("a\\", r"a\\"),
    ):  # fmt: skip
        assert markdown(text) == escaped


def test_control_characters_are_shown_and_obeyed_by_no_terminal():
    assert terminal("a\x1b[2J\r\nb\tc\rd\u202e\ud800") == "a\\x1b[2J\nb\tc\\x0dd\\u202e\\ud800"
    assert line("a\nb\x07") == "a⏎b\\x07"
    assert html("<b>\n\x1b") == "&lt;b&gt;⏎\\x1b"
    assert str(SaevalError("no tensor '\x1b]0;owned\x07'")) == "no tensor '\\x1b]0;owned\\x07'"


def test_a_warning_shows_control_characters(caplog):
    with caplog.at_level(logging.WARNING, "saeval"):
        logging.getLogger("saeval").warning("model '%s'", "\x1b[2J")
    assert caplog.messages == ["model '\\x1b[2J'"]


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("../../x.md", "--..-x.md"), ("/abs/x.md", "-abs-x.md"), ("C:\\x", "C--x"), ("a\0b\n", "a-b-"), ("nul.md", "-nul.md"),
        ("COM1", "-COM1"), ("console.md", "console.md"), (".hidden", "-hidden"), ("end. ", "end"), ("...", "-"), ("", "-"),
        ("reward-1-topk.png", "reward-1-topk.png"), ("групп é", "групп é"),
    ],
)  # fmt: skip
def test_a_file_name_is_one_component_on_every_system(text, name):
    assert file_name(text) == name
    assert file_name(name) == name


def test_long_file_names_stay_apart_and_keep_their_ending():
    one, other = (file_name("é" * 300 + end + ".png") for end in "ab")
    assert one != other
    assert every(len(name.encode()) <= 200 and name.endswith(".png") for name in (one, other))


def test_pages_stay_in_their_folder_and_apart(tmp_path):
    outside = tmp_path / "outside.md"
    outside.write_text("mine")
    folder = tmp_path / "pages"
    folder.mkdir()
    (folder / "link.md").symlink_to(outside)
    linked = Report("linked", pages=lambda results: {"link.md": "theirs"})
    named = Report("named", pages=lambda results: {"a:b.md": "1", "A?b.md": "2", "a*b.md": "3", "con.md": "4"})
    written, failed = write_pages([linked, named], [], folder)
    assert failed == ["report 'linked' failed: ValueError: the page 'link.md' is outside the report's folder"]
    assert outside.read_text() == "mine"
    assert [(file.name, file.read_text()) for file in written] == [
        ("a-b.md", "1"), ("A-b-2.md", "2"), ("a-b-3.md", "3"), ("-con.md", "4"),
    ]  # fmt: skip


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    folder = tmp_path_factory.mktemp("escapes")
    assert not saeval.run(SUITE, out=folder).failed
    return folder / "mine"


@pytest.fixture
def hostile(ran):
    """Rewrites the manifest as somebody else might have left it."""
    path = ran / "manifest.json"
    own = path.read_text()

    def write(suite="mine", subject=None, **changes):
        manifest = unsealed(own.encode())  # whoever forges one gives it its checksum
        manifest["suite"] = suite
        for kind in manifest["kinds"]:
            kind.update(suite=suite, **changes)
        for record in manifest["subjects"]:
            record.update(subject or {})
        path.write_bytes(sealed(manifest))

    yield write
    path.write_text(own)


@pytest.mark.parametrize("alias", ["../../../escaped", "/{}/escaped", "..\\..\\escaped", "a\nb", "NUL"])
def test_a_manifest_of_somebody_else_writes_nothing_outside_its_report(ran, hostile, tmp_path, capsys, alias):
    hostile(alias=alias.format(tmp_path), metric="perturbation", subject={"kind": "control"})
    before = {file for file in tmp_path.parent.rglob("*") if tmp_path not in file.parents}
    assert cli.main(["report", str(ran), "--to", str(tmp_path / "a" / "b" / "pages")]) == 0
    written = {file for file in tmp_path.rglob("*") if file.is_file()}
    assert {file.parent for file in written} == {tmp_path / "a" / "b" / "pages"}
    assert {file for file in tmp_path.parent.rglob("*") if tmp_path not in file.parents} == before
    listed = {str(file) for file in written if file.name != ".saeval-report.json"}
    assert {*capsys.readouterr().out.splitlines()} == listed


@pytest.mark.parametrize(
    "verb", [["leaderboard"], ["show"], ["leaderboard", "--format", "csv"], ["leaderboard", "--format", "json"]]
)
def test_a_manifest_of_somebody_else_forges_no_line_and_no_command(ran, hostile, capsys, verb):
    hostile(suite=FORGERY, alias=FORGERY, subject={"name": FORGERY, "hook_name": FORGERY})
    assert cli.main([verb[0], str(ran), *verb[1:]]) == 0
    out = capsys.readouterr().out
    assert "forged" in out
    assert not CONTROLS.search(out)
    assert none(row.startswith(("| forged", "## Forged")) for row in out.splitlines())
    if verb == ["leaderboard"]:
        assert forges_nothing(out)


def test_names_in_a_comparison_forge_nothing():
    results = [
        one for name in (FORGERY, "b") for one in scored(name, 0.5 if name == "b" else 0.4, 3.0, NOISE * len(name))
    ]
    found = compare(from_results(results, FORGERY, {}), FORGERY, "b")
    assert forges_nothing(comparisons.markdown(found))
    found.notes.append(FORGERY)
    found.limit = FORGERY
    assert forges_nothing(comparisons.markdown(found))


def test_names_in_pages_forge_nothing():
    record = {"value": 0.5, "stderr": 0.1, "ci95": [0.3, 0.7], "n": 9, "unit": "nats", "better": "lower"}
    cell = {
        "metric": "perturbation",
        "alias": "p",
        "subjects": [{"name": FORGERY, "hook_name": FORGERY, "kind": "control"}],
        "model": None,
        "data": {"fingerprint": "f"},
    }
    result = Result("k", "ok", cell, values={"kl_sae": record})
    chart = Chart("c", FORGERY, FORGERY, {"mark": "point", "encoding": {}}, [{"name": FORGERY}], FORGERY)
    table = PageTable("t", FORGERY, ["name", FORGERY], [[FORGERY, "1"]], {FORGERY: FORGERY})
    passage = Passage(FORGERY, FORGERY, [FORGERY, "forged"], [1.0, 0.0])
    made = Section("s", FORGERY, [FORGERY], [chart], [table, replace(table, folded=True)], [passage], [FORGERY])
    for section in some([*perturbation_pages.sections([result]), made]):
        files = section_files("page", [section, section], FORGERY)
        assert forges_nothing(re.sub(r"(?m)^(<details><summary>|- \[.*?\]\(#|<a id=).*$", "", files["page.md"]))
        assert "<script" not in files["page.md"]
    rows = csv_text([{"subject": "=1+1", "hook": FORGERY, "p": -0.25}])
    assert list(csv_files.reader(io.StringIO(rows)))[1][::2] == ["'=1+1", "-0.25"]
    assert not CONTROLS.search(rows)


def test_no_cell_of_a_csv_file_is_a_formula_and_numbers_stay_numbers():
    for text in ("=1+1", "+cmd", "-2+3", "@SUM(A1)", "\t=1", "  =1"):
        assert csv(text).startswith("'")
    for value in (-0.5, None, 3, "-0.5", "1e-4", "relu-1", ""):
        assert csv(value) == value
    board = from_results([*scored("=HYPERLINK(1)", -0.5), *scored("b", -0.25)], "@t", {})
    lines = list(csv_files.DictReader(io.StringIO(tables.csv(board))))
    assert [(row["suite"], row["name"], row["ce.delta_ce"]) for row in some(lines)] == [
        ("'@t", "'=HYPERLINK(1)", "-0.5"), ("'@t", "b", "-0.25"),
    ]  # fmt: skip
    (row,) = csv_files.DictReader(io.StringIO(comparisons.csv(compare(board, "=HYPERLINK(1)", "b"))))
    assert (row["a"], float(row["difference"])) == ("'=HYPERLINK(1)", -0.25)


@pytest.mark.parametrize("name", ["-/x", "/abs", "a\\b", "a\nb", "a\x1b[2J", "nul", "", "x" * 300, "a:b"])
def test_a_name_for_a_metric_is_one_for_files(name):
    body = {**SUITE, "metrics": [{"l0": {"as": name}}]}
    problems = []
    assert validate(body, Marks("s.yaml")).metrics(problems) == []
    (problem,) = problems
    assert "'as' of metric 'l0' becomes a file name, but it " in str(problem)
    assert not CONTROLS.search(str(problem))


@pytest.mark.parametrize(
    "changes",
    [
        {"saes": [{"use": "saelens", "path": "PATH", "name": "a\x1b[2J"}]},
        {"saes": [{"use": "saelens", "path": "PATH", "name": "a\n| forged |"}]},
        {"groups": {"a\nb": ["*"]}},
        {"controls": [{"use": "mean", "name": "a\nb"}]},
    ],
)
def test_names_that_cannot_be_shown_are_refused(changes, saelens_folder, tmp_path):
    text = json.dumps({**SUITE, **changes}).replace("PATH", str(saelens_folder()))
    with pytest.raises(SuiteError, match="cannot be shown: it has the control character") as raised:
        saeval.run(json.loads(text), out=tmp_path)
    assert not CONTROLS.search(str(raised.value))


def test_one_module_escapes_and_one_matches():
    """A writer with an escaping of its own would miss what the next one finds."""
    sources = [file for folder in ("saeval", "plugins") for file in (Path(__file__).parents[2] / folder).rglob("*.py")]
    for pattern, owners in (
        (r"html\.escape|^import html\b", {"escapes.py"}), (r"fnmatch", {"names.py", "conformance.py"}), (r"isprintable", set()),
    ):  # fmt: skip
        users = {file.name for file in some(sources) if re.search(pattern, file.read_text(encoding="utf-8"), re.M)}
        assert users <= owners, pattern
