"""What the page holds: one block of data for each kind, no address, and the differences of the core."""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import re

import numpy as np
import pytest

from made_folders import CLOSING, FORMULA, MARKUP, NAMES, SCRIPT, fill, subjects
from saeval import Array, Metric, cli
from saeval.base.escapes import line
from saeval.page import libraries
from saeval.page.board_data import board_data
from saeval.page.deviations import deviations_data
from saeval.page.pairs import pairs_data
from saeval.results.families import Palette
from saeval.results.leaderboard import boards
from saeval.results.paired_tests import difference
from saeval.testing import TinySAE, evaluate_tiny, tiny_tokens
from saeval.testing.claims import every, none, some


def block(file, name):
    text = file.read_text(encoding="utf-8")
    (content,) = re.findall(rf'<script type="application/json" id="data-{name}">(.*?)</script>', text, re.DOTALL)
    return json.loads(content)


@pytest.fixture(scope="module")
def board(folder):
    (made,) = boards([folder])
    return made


def test_nothing_in_the_page_has_an_address(file):
    text = re.sub(r"<script[^>]*>.*?</script>", "", file.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert none(re.search(r"https?:|//\w|url\(|@import", tag) for tag in some(re.findall(r"<[^>]*>", text)))
    assert "url(" not in text.partition("<style>")[2].partition("</style>")[0]
    targets = {*re.findall(r'(?:src|href)="([^"]*)"', text)}
    assert every(re.fullmatch(r"data:,|#main|#board-\d+|#section-\d+", target) for target in targets)


def test_only_the_pages_own_scripts_may_run(file):
    text = file.read_text(encoding="utf-8")
    scripts = re.findall(r'<script(?: type="module")?>(.*?)</script>', text, re.DOTALL)
    hashes = {base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in some(scripts)}
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)[1].replace("&#39;", "'")
    assert {*re.findall(r"'sha256-([^']*)'", policy)} == hashes
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert len(hashes) == 3
    assert "unsafe-eval" not in policy
    assert "connect-src" not in policy


def test_hostile_names_stay_inside_their_block_and_have_a_form_for_each_copy(file):
    (made,) = block(file, "boards")
    assert [row["name"] for row in made["rows"]][: len(NAMES)] != list(NAMES)
    assert {row["name"] for row in made["rows"]} >= {line(name) for name in NAMES}
    assert made["forms"][FORMULA]["csv"] == "'=cmd()"
    assert made["forms"][SCRIPT]["md"].startswith("&lt;script")
    assert made["forms"][line(MARKUP)]["tex"] == r"a\textbar{}b\textasciigrave{}c\textasciigrave{}$\hookleftarrow$" + (
        r"\textbackslash{}x1b{[}31mred"
    )
    assert CLOSING not in file.read_text(encoding="utf-8")


def test_each_row_has_its_facts_values_and_reasons(file, board):
    (made,) = block(file, "boards")
    facts = {one["name"]: one["values"] for one in made["properties"]}
    columns = {column["name"]: column for column in made["columns"]}
    for place, row in some(enumerate(board.rows)):
        subject = next((one for one in subjects() if one["name"] == row.name), {})
        assert facts["architecture"][place] == subject.get("architecture")
        assert facts["training.steps"][place] == subject.get("training", {}).get("steps")
        assert (made["rows"][place]["rank"], made["rows"][place]["rank_high"]) == (row.rank, row.rank_high)
        entry, loss = row.entries["ce.loss"], columns["ce.loss"]
        if entry.value is None:
            assert (loss["value"][place], loss["said"][str(place)]) == (None, [entry.status, entry.reason])
        else:
            assert loss["value"][place] == pytest.approx(entry.value, rel=1e-6)
            assert loss["error"][place] == pytest.approx(entry.stderr, rel=1e-3)
    assert columns["ce.loss"]["documents"] == 24
    assert not columns["ce.extra"]["shown"]


def test_pairs_have_the_differences_of_the_core(board):
    made = {column["name"]: column for column in pairs_data(board)}
    assert next(iter(made)) == board.rank_by
    pairs = [(a, b) for place, a in enumerate(board.rows) for b in board.rows[place + 1 :]]
    checked = 0
    for at, (a, b) in some(enumerate(pairs)):
        one, other = a.entries["ce.loss"], b.entries["ce.loss"]
        if one.value is None or other.value is None:
            assert made["ce.loss"]["difference"][at] is None
            continue
        own = difference(one, other)
        assert made["ce.loss"]["difference"][at] == pytest.approx(own.value, rel=1e-6)
        assert made["ce.loss"]["error"][at] == pytest.approx(own.stderr, rel=1e-3)
        assert made["ce.loss"]["reach"][at] == pytest.approx((own.ci95[1] - own.ci95[0]) / 2, rel=1e-3)
        checked += 1
    assert checked == 21
    assert len(pairs_data(board, most=len(pairs))) == 1
    assert pairs_data(board, most=len(pairs) - 1) == []


def test_deviations_give_the_errors_of_the_core(board):
    (own,) = deviations_data(board)
    assert own["name"] == "ce.loss"
    steps = np.frombuffer(base64.b64decode(own["codes"]), "<i2").reshape(len(own["rows"]), own["documents"])
    deviations = steps * np.array(own["scale"])[:, None]
    entries = [board.rows[place].entries["ce.loss"] for place in own["rows"]]
    assert len(entries) == 6  # neither the failed one nor the mean over draws
    for a, b in some(itertools.combinations(range(6), 2)):
        paired = difference(entries[a], entries[b])
        error = float(np.sqrt(np.square(deviations[a] - deviations[b]).sum()))
        assert error == pytest.approx(paired.stderr, rel=1e-3)
        assert own["reach"] * error == pytest.approx((paired.ci95[1] - paired.ci95[0]) / 2, rel=1e-3)
    assert deviations_data(board, {"ce.loss"}) == []
    assert deviations_data(board, most=10) == []


def test_details_have_components_and_histograms_once_each(file):
    made = block(file, "details")
    rows = dict(zip([row["name"] for row in block(file, "boards")[0]["rows"]], made["rows"][0], strict=True))
    results = {result["metric"]: result for result in rows["plain"]}
    assert results["ce"]["components"]["counts"] == "1000 items"
    assert sum(results["shape"]["arrays"][0]["counts"]) == 100
    assert made["shared"][results["l0"]["curves"][0]["x"]] == [1, 2, 4]
    assert made["shared"][results["ce"]["of"]]["parameters"] == {"ablation": "mean"}
    assert made["shared"][results["ce"]["command"]] == "saeval run 'my suite.yaml' --out results"
    assert [result["status"] for result in rows["broken"]] == ["failed", "undefined", "ok"]
    assert len(rows["random(plain)"]) == 3  # those of the first draw


@pytest.mark.parametrize(
    "numbers", [[0.9999999999999994, 1.0, 1.0000000000000002], [2.0, 2.0], [-1e308, 1e308], [0.0, 5e-324]]
)
def test_an_array_that_has_no_room_for_bins_costs_no_page(numbers, tmp_path):
    """Numbers that are equal up to rounding, such as the cosines of tied weights, or too far apart."""

    class Cosines(Metric):
        name = "cosines"

        def conclude(self, W_dec):
            return {"cosines": Array(np.array(numbers))}

    evaluate_tiny([Cosines], rows=tiny_tokens(rows=4), out=tmp_path)
    assert cli.main(["report", str(tmp_path / "evaluate"), "--to", str(tmp_path / "page")]) == 0
    (array,) = block(tmp_path / "page" / "index.html", "details")["rows"][0][0][0]["arrays"]
    assert sum(array.get("counts", [len(numbers)])) == len(numbers)


def test_names_in_charts_leave_out_what_their_hook_says(tmp_path):
    hooks = ("blocks.6.hook_resid_post", "blocks.14.hook_mlp_out")
    saes = [
        {"name": f"small/{hook}/topk-k{k}-seed0-of-a-ladder", "hook_name": hook, "key": f"{hook}{k}", "kind": "sae"}
        for hook in hooks
        for k in (16, 128)
    ]
    rows = board_data(boards([fill(tmp_path / "made", saes, metrics=("l0",))])[0], Palette.of([]))["rows"]
    assert [row["short"] for row in rows] == [f"topk-k{k}-seed0-of-a-ladder" for _ in hooks for k in (16, 128)]


SECTIONS = """
from saeval.plugin import Chart, PageTable, Passage, Report, Section, hookimpl

def sections(results):
    if any(result.metric == "none" for result in results):
        return []
    spec = {"mark": "point", "encoding": {"x": {"field": "a", "type": "quantitative"}}, "width": 200}
    chart = Chart("dots", "Dots </script>", "bars", spec, [{"a": 1.0, "b": "<b>"}], "dots")
    table = PageTable("t", "Numbers", ["name", "value"], [["<i>x</i>", 1.5], [None, None]], {"value": "its unit"}, True)
    long = PageTable("long", "Many", ["name"], [[f"row-{i}."] for i in range(550)], {}, False)
    words = Passage("Feature 1", "here", ["a", "<u>"], [0.0, 2.0])
    return [Section("s", "Mine & yours", ["one <sentence>"], [chart], [table, long], [words], ["read on"])]

def broken(results):
    raise RuntimeError("planted")

@hookimpl
def saeval_reports():
    return [Report("mine", sections=sections), Report("broken", sections=broken)]
"""


def test_sections_of_a_plugin_are_parts_of_the_page(folder, tmp_path, capsys):
    (tmp_path / "plugin.py").write_text(SECTIONS)
    words = ["report", str(folder), "--plugin", str(tmp_path / "plugin.py"), "--to", str(tmp_path)]
    assert cli.main([*words, "--format", "mine", "broken"]) == 1
    captured = capsys.readouterr()
    assert captured.err.splitlines() == ["report 'broken' failed: RuntimeError: planted"]
    assert captured.out.splitlines()[-1] == str(tmp_path / "index.html")
    text = (tmp_path / "index.html").read_text(encoding="utf-8")
    shown = (
        "Mine &amp; yours",
        "one &lt;sentence&gt;",
        "&lt;i&gt;x&lt;/i&gt;",
        "its unit",
        "&lt;u&gt;</mark>",
        "read on",
        "row-499.",
        "The first 500 of 550 rows",
    )
    assert every(words in text for words in shown)
    assert "row-500." not in text
    assert "row-549." in (tmp_path / "mine.md").read_text(encoding="utf-8")
    (section,) = block(tmp_path / "index.html", "sections")
    assert set(section) == {"charts"}
    assert section["charts"][0]["spec"]["data"] == {"values": [{"a": 1, "b": "<b>"}]}


def test_no_page_of_a_report_replaces_the_page(folder, tmp_path, capsys):
    plugin = "from saeval.plugin import Report, hookimpl\n\n@hookimpl\ndef saeval_reports():\n"
    plugin += "    return [Report('mine', pages=lambda results: {'INDEX.html': 'x'})]\n"
    (tmp_path / "plugin.py").write_text(plugin)
    assert (
        cli.main(
            ["report", str(folder), "--plugin", str(tmp_path / "plugin.py"), "--to", str(tmp_path), "--format", "mine"]
        )
        == 0
    )
    assert {*capsys.readouterr().out.splitlines()} == {str(tmp_path / name) for name in ("INDEX-2.html", "index.html")}


def test_results_of_different_data_are_boards_of_their_own(tmp_path):
    few = subjects(NAMES[:3])
    one, other = fill(tmp_path / "one", few), fill(tmp_path / "other", few, fingerprint="e", suite="second")
    assert cli.main(["report", str(one), str(other), "--to", str(tmp_path / "to")]) == 0
    made = block(tmp_path / "to" / "index.html", "boards")
    assert [board["title"] for board in made] == ["made", "second"]
    assert every(max(row["rank"] or 0 for row in board["rows"]) == 3 for board in made)


def test_live_results_have_a_page_too(tmp_path):
    results = evaluate_tiny(["l0"], saes={"one": TinySAE()})
    assert results.report(tmp_path)[-1] == tmp_path / "index.html"
    (made,) = block(tmp_path / "index.html", "boards")
    assert {row["name"] for row in made["rows"]} == {"one"}


def test_a_bundle_that_is_packed_in_another_way_is_refused(monkeypatch, tmp_path):
    (tmp_path / "html").mkdir()
    (tmp_path / "html" / "dt_bundle.js").write_text("export { a }; export { b };")
    monkeypatch.setattr(
        "saeval.page.libraries.find_spec",
        lambda name: type("Spec", (), {"submodule_search_locations": [str(tmp_path)]}),
    )
    libraries.datatables.cache_clear()
    with pytest.raises(Exception, match="itables has no bundle of DataTables that saeval can read"):
        libraries.datatables()
    libraries.datatables.cache_clear()
