"""Pages: files that plugins make of a run's results, and arrays kept beside the JSON."""

from __future__ import annotations

import numpy as np
import pytest

from saeval import Array, Metric, Scalar
from saeval.cli import main
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
