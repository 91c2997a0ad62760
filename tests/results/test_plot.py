"""`saeval plot`: charts of stored results as files with their data, and values of metrics that have no chart of their own."""

from __future__ import annotations

import csv
import json
import re
import types
from pathlib import Path

import pytest

from saeval import SaevalError
from saeval.cli import main
from saeval.plugin import chart_files, charts
from saeval.results.board import Board, Column, Entry, Row
from saeval.results.value_charts import value_charts
from saeval.testing import TinySAE, check_chart, evaluate_tiny, tiny_tokens
from saeval.testing.claims import every, some

NAMES = ["=cmd()", "</script><script>alert(1)</script>", "a|b"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three SAEs of hostile names with controls, at one hook."""
    saes = {name: TinySAE(seed=seed) for seed, name in enumerate(NAMES)}
    for seed, sae in enumerate(saes.values()):
        sae.b_enc.fill_(-0.2 - 0.4 * seed)
    out = tmp_path_factory.mktemp("out")
    rows = tiny_tokens(rows=60, documents=40)
    return evaluate_tiny(["l0", "ce"], saes=saes, controls=["zero", "mean"], rows=rows, out=out, key="plots").folder


def test_every_metric_has_a_picture_with_its_data_beside_it(folder, tmp_path, capsys):
    assert main(["plot", str(folder), "--to", str(tmp_path)]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed == [
        str(tmp_path / f"{stem}.{form}")
        for stem in ("pareto-pareto", "l0-values", "ce-values") for form in ("png", "csv")
    ]  # fmt: skip
    assert every((tmp_path / name).read_bytes().startswith(b"\x89PNG") for name in ("l0-values.png", "ce-values.png"))
    with (tmp_path / "l0-values.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [line["name"] for line in lines] == ["a|b", NAMES[1], "'=cmd()", "mean", "zero"]  # by L0, controls last
    assert [line["number"] for line in lines[3:]] == ["", ""]
    assert every(line["reason"].startswith("undefined: ") for line in lines[3:])


def test_a_notebook_draws_the_same_charts():
    results = evaluate_tiny(["l0", "ce"], saes={"mine": TinySAE()}, rows=tiny_tokens(rows=20, documents=20))
    assert list(results.charts()) == ["l0-values", "ce-values"]
    (chart,) = results.charts("ce.delta_ce").values()
    shown = chart._repr_mimebundle_()
    assert (
        shown["application/vnd.vegalite.v6+json"]["data"]["values"][0]["number"]
        == results.value("ce.delta_ce")["value"]
    )
    assert shown["image/png"].startswith(b"\x89PNG")
    with pytest.raises(SaevalError, match="no metric of these results is named 'other'; known: ce, l0"):
        results.charts("other")


def test_the_example_of_the_documentation_runs():
    page = (Path(__file__).parents[2] / "docs" / "charts.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", page, re.S)
    module = types.ModuleType("example")
    exec(compile(code, "example.py", "exec", dont_inherit=True), vars(module))
    results = evaluate_tiny(
        ["ce"], saes={"mine": TinySAE()}, controls=["zero"], rows=tiny_tokens(rows=20, documents=20)
    )
    (section,) = module.sections(list(results))
    (chart,) = section.charts
    check_chart(chart)
    assert [r["SAE"] for r in chart.data] == ["mine", "zero"]
    named = re.findall(r"(?m)^\| `(.*)` \|", page.partition("| part |")[2])
    parts = {word.partition("(")[0] for row in some(named) for word in row.split("`, `")}
    assert every(callable(getattr(charts, part)) for part in parts)


@pytest.mark.parametrize("form", ["svg", "html", "json"])
def test_one_value_in_each_format(folder, tmp_path, form, capsys):
    assert main(["plot", str(folder), "--metric", "ce.delta_ce", "--format", form, "--to", str(tmp_path)]) == 0
    assert capsys.readouterr().out.splitlines() == [str(tmp_path / f"ce-values.{e}") for e in (form, "csv")]
    text = (tmp_path / f"ce-values.{form}").read_text()
    assert form == "json" or "<script>alert" not in text
    if form == "json":
        assert {r["value"] for r in json.loads(text)["data"]["values"]} == {"ce.delta_ce"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--metric", "cee"], "no metric of these results is named 'cee'; did you mean 'ce'?"),
        (["--metric", "ce.nothing"], "metric 'ce' has no number 'nothing' of an SAE or a control"),
        (["--format", "pdf"], "charts have no format 'pdf'; use png, svg, html, json"),
        (["elsewhere"], "charts of several folders need a folder of their own; add --to FOLDER"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(folder, arguments, words, capsys):
    assert main(["plot", str(folder), *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith(words)
    assert error.count("\n") == 1


def test_a_report_that_fails_costs_its_own_charts(folder, tmp_path, capsys):
    plugin = tmp_path / "p.py"
    plugin.write_text(
        "from saeval import hookimpl\nfrom saeval.results.report import Report\n\n\n"
        "def broken(results):\n    raise RuntimeError('no ink')\n\n\n"
        "@hookimpl\ndef saeval_reports():\n    return [Report('broken', sections=broken)]\n"
    )
    argv = ["plot", str(folder), "--metric", "l0", "--format", "json", "--to", str(tmp_path), "--plugin", str(plugin)]
    assert main(argv) == 1
    told = capsys.readouterr()
    assert told.err == "report 'broken' failed: RuntimeError: no ink\n"
    assert "l0-values.json" in told.out


def board(values, kind="sae", hooks=None):
    """A board of the column `m.v`, a row for each value."""
    hooks = hooks or ["blocks.1.hook_resid_pre"] * len(values)
    rows = [
        Row(f"sae-{i}", hook, kind, {"m.v": Entry(value, 0.1, None if value is None else (value - 0.2, value + 0.2))})
        for i, (value, hook) in enumerate(zip(values, hooks, strict=True))
    ]  # fmt: skip
    return Board("t", "model", {"documents": 40}, [Column("m.v", "nats", "lower")], rows, None)


def test_one_outlier_does_not_flatten_the_others():
    (chart,) = value_charts(board([0.1, 0.2, 0.3, 0.4, 0.5, 1000.0]), "m")
    check_chart(chart)
    assert "1 value of v beyond the edge, in figures" in chart.subtitle
    shown = [r["shown"] for r in chart.data]
    assert chart.data[-1]["number"] == 1000  # so does the CSV file
    assert shown[:-1] == [0.1, 0.2, 0.3, 0.4, 0.5]
    assert 0.5 < shown[-1] < 1
    assert chart.data[-1]["beyond"] == "→ 1000"


def test_rows_of_several_hooks_are_apart_in_the_order_of_the_layers_and_never_joined():
    (chart,) = value_charts(board([1.0, 2.0, 3.0], hooks=[f"blocks.{i}.hook_resid_pre" for i in (10, 9, 2)]), "m")
    assert [r["hook"].split(".")[1] for r in chart.data] == ["2", "9", "10"]
    marks = [layer["mark"]["type"] for part in chart.spec["concat"] for layer in part["layer"]]
    assert "line" not in some(marks)


def test_two_thousand_rows_fit_on_a_page_without_names():
    (chart,) = value_charts(board([float(i % 50) for i in range(2000)]), "m")
    (part,) = chart.spec["concat"]
    assert part["height"]["step"] * 2000 <= 2000
    assert part["layer"][0]["encoding"]["y"]["axis"]["labels"] is False
    assert chart_files.svg(chart).decode().count('aria-roledescription="point"') == 2000
    assert value_charts(board([None, None]), "m") == []
