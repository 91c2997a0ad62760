"""Pages: files that plugins make of a run's results, and arrays kept beside the JSON."""

from __future__ import annotations

import re

import numpy as np
import pytest

from saeval import Array, Metric, Scalar
from saeval.cli import main
from saeval.plugin import Chart, PageTable, Passage, Section, charts
from saeval.results.section_files import section_files
from saeval.testing import evaluate_tiny
from saeval.testing.claims import every

PLUGIN = '''
"""Norms of decoder rows, and a page that lists them."""
from saeval import Array, Metric, Scalar, hookimpl
from saeval.results.report import Report

class Norms(Metric):
    """Norms of the decoder rows."""
    name = "norms"
    def conclude(self, W_dec):
        norms = W_dec.norm(dim=1).numpy()
        return {"mean": Scalar(float(norms.mean())), "norms": Array(norms)}

def pages(results):
    found = [r for r in results if r.metric == "norms" and r.status == "ok"]
    return {"norms.csv": "".join(f"{r.subject},{v:.3f}\\n" for r in found for v in r.array("norms"))}

def broken(results):
    raise RuntimeError("no ink")

@hookimpl
def saeval_metrics():
    return [Norms]

@hookimpl
def saeval_reports():
    return [Report("norms", pages=pages), Report("broken", pages=broken)]
'''

SUITE = """
suite: pages
model: {use: testbed}
data: {use: python-stdlib, context: 16, sequences: 4}
saes: [testbed/topk-8]
metrics: [norms]
"""


@pytest.fixture
def ran(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p.py").write_text(PLUGIN)
    (tmp_path / "s.yaml").write_text(SUITE)
    assert main(["run", "s.yaml", "--plugin", "p.py"]) == 0
    capsys.readouterr()
    return tmp_path / "results" / "pages"


def test_report_writes_the_pages_of_every_plugin_and_a_failing_one_costs_its_own(ran, capsys):
    assert main(["report", "results/pages", "--plugin", "p.py"]) == 1
    told = capsys.readouterr()
    assert "norms.csv" in told.out
    assert told.err == "report 'broken' failed: RuntimeError: no ink\n"
    lines = (ran / "report" / "norms.csv").read_text().splitlines()
    assert len(lines) == 1024
    assert every(float(line.split(",")[1]) == pytest.approx(1, abs=1e-3) for line in lines)


def test_one_report_by_name_and_elsewhere(ran, tmp_path, capsys):
    assert main(["report", "results/pages", "--plugin", "p.py", "--format", "norms", "--to", "here"]) == 0
    assert (tmp_path / "here" / "norms.csv").exists()
    assert capsys.readouterr().err == ""


def section(name, rows=2, **more):
    """A section with a chart, and a folded table of so many rows."""
    x = charts.quantity("value", "cost, nats", [1.0])
    chart = Chart("c", "Costs", "no bars", charts.single(charts.dots(x, charts.names("SAE", None, "a")), 90, 90), [
        {"SAE": "a", "value": 1.0}], "A dot")  # fmt: skip
    table = PageTable("t", "All costs", ["SAE", "cost"], [["=1+1", 0.5]] * rows, {"cost": "in nats"}, folded=True)
    return Section(name, f"Title of {name}", ["Found."], [chart], [table], notes=["How."], **more)


def test_sections_are_one_page_with_its_pictures_and_large_tables_beside_it():
    small, large = section("one"), section("One", rows=500)
    files = section_files("costs", [small, large])
    assert list(files) == ["costs.md", "one-c.png", "One-c-2.png", "One-t.csv"]  # no two differ in case alone
    page = files["costs.md"]
    assert re.findall(r"\]\(([^)]*)\)", page) == ["#section-1", "#section-2", "one-c.png", "One-c-2.png"]
    assert "<details><summary>All costs</summary>\n\n| SAE | cost |" in page
    assert page.count("- cost: in nats") == 2
    assert "- All costs: 500 rows in `One-t.csv`" in page
    assert files["One-t.csv"].splitlines()[1] == "'=1+1,0.5"
    assert section_files("costs", []) == {}
    assert section_files("costs", [small]) == section_files("costs", [small])
    assert section_files("costs", [small], "Limited run")["one-c.png"] != files["one-c.png"]


def test_passages_of_one_heading_stand_together_and_active_tokens_are_bold():
    own = [
        Passage("Feature 3", f"{a}, row 1", [" if", " raise", " Error", "\n"], [0.0, a, 0.5, 0.0]) for a in (1.5, 2.5)
    ]
    page = section_files("p", [Section("s", "T", passages=[*own, Passage("Feature 4", "l", ["<b>"], [1.0])])])["p.md"]
    assert page.count("### Feature 3") == page.count("### Feature 4") == 1
    assert "- 1.5, row 1:  if **raise Error**⏎\n- 2.5, row 1:" in page
    assert "**&lt;b>**" in page


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["report", "results/pages", "--format", "md"], "format 'md' writes no pages;"),
        (
            ["leaderboard", "results/pages", "--format", "norms"],
            "format 'norms' writes no leaderboards; use csv, html, json, latex, md, parquet, text",
        ),
        (["report", "nowhere"], "nowhere: no such folder in "),
        (["report", "results/pages", "--format", "normz"], "unknown report format 'normz'; did you mean 'norms'?"),
    ],
)
def test_what_cannot_be_written_is_said(ran, capsys, argv, said):
    assert main([*argv, "--plugin", "p.py"]) == 2
    assert said in capsys.readouterr().err


def test_an_array_of_objects_is_its_own_cells_failure():
    class Odd(Metric):
        name = "odd"

        def conclude(self, d_in) -> dict[str, object]:
            return {"odd": Array(np.array([{}], dtype=object)), "d": Scalar(d_in)}

    (result,) = evaluate_tiny(["odd"], Odd)
    assert result.status == "failed"
    assert "Python objects" in result.reason
