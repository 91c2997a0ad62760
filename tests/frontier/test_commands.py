"""`saeval frontier`, `saeval pareto` and `saeval trajectory`, and the report's pages, on a stored run."""

from __future__ import annotations

import json

import pytest

from saeval.cli import main
from saeval.plugin import stored_results
from saeval.testing import TinySAE, evaluate_tiny, tiny_tokens
from saeval.testing.claims import every
from saeval_frontier import command
from saeval_frontier.pages import pages


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
    assert [record["SAE"] for record in records] == ["ladder/step_1k", "ladder/step_2k", "ladder/step_3k"]
    assert every(0 <= record["share of draws"] <= 1 for record in records)
    assert "that of 7 draws of all values" in printed(capsys, "pareto", folder, "--draws", 7)
    text = printed(capsys, "trajectory", folder, "--pattern", "step_{}", "--value", "l0.l0", "--format", "csv")
    assert text.splitlines()[0].startswith("family,hook,number,SAE,l0.l0,l0.l0 stderr")
    assert "TinySAE,blocks.1.hook_resid_pre,2000.0,ladder/step_2k" in text


def test_plots(folder, tmp_path, capsys):
    for verb, arguments in (("frontier", []), ("pareto", []), ("trajectory", ["--pattern", "step_{}"])):
        printed(capsys, verb, folder, "--plot", tmp_path / f"{verb}.png", *arguments)
        assert (tmp_path / f"{verb}.png").read_bytes().startswith(b"\x89PNG")


def test_pages(folder):
    files = pages(stored_results(folder))
    qualities = ["delta_ce", "explained_variance", "kl", "recovered"]
    charts = [f"sparsity_frontier_{name}.png" for name in [*qualities, "gaps"]]
    assert sorted(files) == sorted([*charts, "sparsity_frontier_gaps.md", "pareto.md", "pareto.png"])
    assert "paired by document" in files["sparsity_frontier_gaps.md"]


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
        (["trajectory", "--pattern", "step"], "--pattern needs one {} where the number is, got 'step'"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(folder, arguments, words, capsys):
    assert main([arguments[0], str(folder), *arguments[1:]]) == 2
    error = capsys.readouterr().err
    assert error.startswith(words)
    assert error.count("\n") == 1
