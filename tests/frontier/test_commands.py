"""`saeval frontier`, `saeval pareto` and `saeval trajectory`, and the report's pages, on a stored run."""

from __future__ import annotations

import json

import pytest

from saeval.cli import main
from saeval.plugin import stored_results
from saeval.testing import TinySAE, check_chart, evaluate_tiny, tiny_tokens
from saeval.testing.claims import every, some
from saeval_frontier import command
from saeval_frontier.frontier import QUALITIES
from saeval_frontier.pages import sections

NAMES = ["ladder/step_1k", "ladder/step_2k", "ladder/step_3k"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """SAEs of one family that differ in their bias, so in L0, at one hook."""
    saes = {}
    for number, bias in enumerate((-0.2, -0.6, -1.2), 1):
        saes[f"ladder/step_{number}k"] = sae = TinySAE()
        sae.b_enc.fill_(bias)
    metrics = ["l0", "ce", {"sparsity_frontier": {"fractions": [0.5], "orders": ["most_frequent"]}}]
    out = tmp_path_factory.mktemp("out")
    rows = tiny_tokens(rows=60, documents=40)
    return evaluate_tiny(metrics, saes=saes, rows=rows, out=out, key="ladder").folder


def printed(capsys, verb, *arguments):
    assert getattr(command, verb)([str(a) for a in arguments]) == 0
    return capsys.readouterr().out


def test_tables(folder, capsys):
    text = printed(capsys, "frontier", folder)
    assert "| ladder/step_1k | blocks.1.hook_resid_pre | TinySAE | most frequent | zero | 0.5 |" in text
    records = json.loads(printed(capsys, "pareto", folder, "--format", "json"))
    assert [record["SAE"] for record in records] == NAMES
    assert every(0 <= record["share of draws"] <= 1 for record in records)
    assert "that of 7 draws of all values" in printed(capsys, "pareto", folder, "--draws", 7)
    text = printed(capsys, "trajectory", folder, "--pattern", "step_{}", "--value", "l0.l0", "--format", "csv")
    assert text.splitlines()[0].startswith("family,hook,number,SAE,l0.l0,l0.l0 stderr")
    assert "TinySAE,blocks.1.hook_resid_pre,2000.0,ladder/step_2k" in text


def test_plots(folder, tmp_path, capsys):
    for verb, arguments in (("frontier", []), ("pareto", []), ("trajectory", ["--pattern", "step_{}"])):
        printed(capsys, verb, folder, "--plot", tmp_path / f"{verb}.png", *arguments)
        assert (tmp_path / f"{verb}.png").read_bytes().startswith(b"\x89PNG")
    printed(capsys, "pareto", folder, "--plot", tmp_path / "front.json")
    assert [r["SAE"] for r in json.loads((tmp_path / "front.json").read_text())["data"]["values"]] == NAMES


def test_sections(folder):
    gaps, pareto = sections(stored_results(folder))
    charts = [*gaps.charts, *pareto.charts]
    assert [chart.name for chart in gaps.charts] == [
        "delta_ce", "gaps", "kl", "explained_variance",
    ]  # fmt: skip
    (missing,) = [note for note in gaps.notes if note.startswith("No chart of CE recovered")]
    assert "not clearly above 0" in missing
    for chart in some(charts):
        check_chart(chart)
    assert "paired by document" in " ".join(gaps.notes)
    assert "ΔCE than trained SAEs" in gaps.summary[0]
    assert [table.name for table in gaps.tables] == [
        f"gaps-{quality}" for quality in QUALITIES if quality != "recovered"
    ]


def test_lines_join_one_sae_or_one_family_only(folder):
    (chart, *_), _ = (section.charts for section in sections(stored_results(folder)))
    curves = {(r["curve"], r["SAE"]) for r in chart.data}
    assert {sae for curve, sae in curves if curve.startswith("pruned")} == set(NAMES)
    assert {curve for curve, sae in curves if not sae} == {"trained: TinySAE"}
    for path in some([layer for layer in chart.spec["spec"]["layer"] if layer["mark"]["type"] == "line"]):
        assert [channel["field"] for channel in path["encoding"]["detail"]] == ["curve", "family", "SAE"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["pareto", "--x", "l0.nothing"], "no SAE of these results has a value 'l0.nothing'"),
        (["pareto", "--family", "all"], "--family needs NAME=GLOB, got 'all'"),
        (["pareto", "--family", "a=*", "--by", "k"], "--family and --by exclude each other"),
        (["pareto", "--draws", "0"], "--draws must be at least 1, got 0"),
        (["pareto", "--seed", "-1"], "--seed must be at least 0, got -1"),
        (["frontier", "--by", "width"], "'ladder/step_1k' does not declare 'width'"),
        (["frontier", "--family", "lone=ladder/step_1k"], "family 'lone' at blocks.1.hook_resid_pre has 1 trained L0"),
        (["frontier", "--metric", "other"], "no sparsity_frontier is named 'other'"),
        (["trajectory", "--number", "tokens"], "'ladder/step_1k' does not declare 'tokens'"),
        (["pareto", "--plot", "front.pdf"], "charts have no format 'pdf'; use png, svg, html, json"),
        (["trajectory", "--pattern", "step"], "--pattern needs one {} where the number is, got 'step'"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(folder, arguments, words, capsys):
    assert main([arguments[0], str(folder), *arguments[1:]]) == 2
    error = capsys.readouterr().err
    assert error.startswith(words)
    assert error.count("\n") == 1
