"""Leaderboards and comparisons in every format: what others wrote is text, and boards that are not comparable stay apart."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest

from filled_folders import fill
from made_results import result
from saeval import Mean, Metric, Scalar, cli
from saeval.base import escapes
from saeval.registry.discovery import Plugins
from saeval.registry.registry import Registry, writer
from saeval.results.comparison import compare
from saeval.results.leaderboard import from_results
from saeval.results.result import Result
from saeval.results.store import Store
from saeval.testing import evaluate_tiny, tiny_tokens
from saeval.testing.claims import every, none, some
from saeval_reports import files

HOSTILE = [
    "<script>alert(1)</script>",
    "a|b`c`d",
    "one\ntwo",
    "\x1b[31mred\x1b[0m",
    "=cmd()",
    "\\input{x}%$&#_^~{}",
    "[x]*",
]
RNG = np.random.default_rng(1)
TEXTS = ("text", "md", "csv", "json", "latex", "html")


def board_of(names):
    results = [result(name, float(place + 1), RNG.normal(size=8) / 100) for place, name in enumerate(names)]
    return from_results(results, "=t", {"rank_by": "m.v"})


def written(form, thing, of="write"):
    return writer(Registry(Plugins()).reports, form, of)(thing)


def cells_of(page):
    """The tags of a page, and the text of its cells."""
    tags, cells = set(), []

    class Reader(HTMLParser):
        def handle_starttag(self, tag, attributes):
            tags.add(tag)
            if tag == "td":
                cells.append("")

        def handle_data(self, data):
            if cells:
                cells[-1] += data

    Reader().feed(page)
    return tags, cells


def test_hostile_names_are_text_in_every_format():
    boards = board_of(HOSTILE)
    shown = [escapes.line(name) for name in HOSTILE]
    page, markdown = written("html", boards), written("md", boards)
    tags, cells = cells_of(page)
    assert "script" not in tags
    assert every(name in cells for name in shown)
    assert every(escapes.markdown(name) in markdown for name in HOSTILE)
    assert every(name in written("text", boards) for name in shown)
    assert [row["name"] for row in json.loads(written("json", boards))] == HOSTILE
    names = [row["name"] for row in csv.DictReader(io.StringIO(written("csv", boards)))]
    assert names == [f"'{name}" if name == "=cmd()" else name for name in shown]
    assert pd.read_parquet(io.BytesIO(written("parquet", boards)))["name"].tolist() == HOSTILE
    assert none(re.search(r"[\x00-\x08\x0b-\x1f\x7f]", written(form, boards)) for form in TEXTS)


def test_hostile_names_are_text_in_every_comparison():
    board, other = board_of(["<script>", "=cmd()\n\x1b"]), "=cmd()\n\x1b"
    compared = compare(board, "<script>", other)
    for form in TEXTS:
        text = written(form, compared, "compare")
        assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f]", text), form
    (row,) = csv.DictReader(io.StringIO(written("csv", compared, "compare")))
    assert row["b"] == "'=cmd()⏎\\x1b"
    assert "<script" not in written("html", compared, "compare")
    assert pd.read_parquet(io.BytesIO(written("parquet", compared, "compare")))["b"].tolist() == [other]


@pytest.mark.parametrize(
    ("text", "latex"),
    [
        ("50% of $x & #1_a {b}", r"50\% of \$x \& \#1\_a \{b\}"),
        (r"\input{/etc/passwd}", r"\textbackslash{}input\{/etc/passwd\}"),
        ("[x]*--", r"{[}x{]}{*}-{}-{}"),
        ("one\ntwo ± ☃ é", r"one$\hookleftarrow$two $\pm$ \textbackslash{}u2603 é"),
    ],
)
def test_latex_has_no_commands_of_others(text, latex):
    assert escapes.latex(text) == latex


def test_latex_is_a_table_of_booktabs():
    text = files.latex(board_of(["a", "b", "[c"]))
    assert "Needs \\usepackage{booktabs}" in text
    body = text[text.index(r"\begin{tabular}") : text.index(r"\end{tabular}")]
    rules = [line for line in body.splitlines() if line in (r"\toprule", r"\midrule", r"\bottomrule")]
    assert rules == [r"\toprule", r"\midrule", r"\bottomrule"]
    rows = [line for line in body.splitlines() if line.endswith(r"\\")]
    assert len(rows) == 4
    assert {line.count("&") for line in rows} == {2}
    assert r"\begin{tabular}{llr}" in body
    assert none(line.startswith("[") for line in rows)


def wide_board():
    """A board of many values with long names and numbers, some of them negative."""
    results = [
        result(f"runs/sae-{place}", -3.5 - place, RNG.normal(size=8) / 1e4, metric=f"metric_of_{metric}")
        for place in range(6)
        for metric in "abcdefghij"
    ]
    return from_results(results, "wide & long", {"rank_by": "metric_of_c.v"})


def test_latex_splits_a_wide_table_and_prints_its_notes_below_the_last():
    (board,) = wide_board()
    board.warnings.append("mind 50% of this")
    text = files.latex([board])
    tables = text.split(r"\begin{table}")[1:]
    labels = re.findall(r"\\label\{(.*?)\}", text)
    assert labels == ["tab:wide-long", *(f"tab:wide-long-{n}" for n in range(2, len(tables) + 1))]
    assert len(tables) > 2
    assert every("runs/sae-{}5" in table for table in tables)
    heads = [re.findall(r"metric\\_of\\_(\w)", table[: table.index(r"\midrule")]) for table in tables]
    assert heads[0][0] == "c"  # ranks come first
    assert sorted(name for own in heads for name in own) == list("abcdefghij")
    assert [r"mind 50\% of this\par" in table for table in tables] == [*[False] * (len(tables) - 1), True]
    assert every(f"Table~\\ref{{{labels[-1]}}}" in table for table in tables[:-1])
    assert "$-$3.5" in text
    assert "longtable" not in text


def test_a_long_latex_table_breaks_over_pages():
    text = files.latex(board_of([f"sae-{n}" for n in range(60)]))
    assert text.startswith("% Needs \\usepackage{booktabs} and \\usepackage{longtable}.")
    assert text.count(r"\begin{longtable}") == text.count(r"\end{longtable}") == 1
    assert r"\caption{=t: " in text
    assert r"\label{tab:t}" in text


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="LaTeX is not installed")
def test_latex_compiles(tmp_path):
    boards = board_of([*HOSTILE, "50% ± ☃ é ↓ Δ '\"<>|", "a--b"])
    boards += [*wide_board(), *board_of([f"sae-{n}" for n in range(60)])]
    both = files.latex(boards) + files.compare_latex(compare(boards, "a--b", HOSTILE[0]))
    packages = r"\usepackage{booktabs}\usepackage{longtable}"
    text = f"\\documentclass{{article}}{packages}\\begin{{document}}{both}\n\\end{{document}}"
    (tmp_path / "t.tex").write_text(text, encoding="utf-8")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "t.tex"]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, errors="replace", check=False)
    assert ran.returncode == 0, ran.stdout[-2000:]
    assert "Overfull" not in ran.stdout  # no table is wider than the text


def test_tables_round_trip_into_pandas_with_their_types(tmp_path, capsys):
    folder, file = str(fill(tmp_path / "s")), tmp_path / "board.parquet"
    assert cli.main(["leaderboard", folder, "--format", "parquet", "--to", str(file)]) == 0
    captured = capsys.readouterr()
    assert captured.out == ""
    assert str(file) in captured.err
    table = pd.read_parquet(file)
    assert table.dtypes["rank"] == "Int64"
    assert table.dtypes["limited"] == "boolean"
    assert table.dtypes["name"] == "string"
    assert table.dtypes["ce.loss"] == table.dtypes["ce.loss.stderr"] == "float64"
    assert cli.main(["leaderboard", folder, "--format", "json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    exact = [np.nan if row["ce.loss"] is None else row["ce.loss"] for row in rows]
    np.testing.assert_array_equal(table["ce.loss"], exact)  # in full precision
    assert table["rank"].isna().tolist() == [row["rank"] is None for row in rows]
    assert cli.main(["leaderboard", folder, "--format", "csv"]) == 0
    text = pd.read_csv(io.StringIO(capsys.readouterr().out))
    np.testing.assert_array_equal(text["ce.loss"], table["ce.loss"])


def test_a_terminal_gets_no_parquet(tmp_path, monkeypatch, capsys):
    folder = str(fill(tmp_path / "s"))
    monkeypatch.setattr(type(sys.stdout), "isatty", lambda self: True, raising=False)
    assert cli.main(["leaderboard", folder, "--format", "parquet"]) == 2
    captured = capsys.readouterr()
    assert captured.err.endswith("format 'parquet' is no text for a terminal; write it to a file: --to FILE\n")
    assert captured.out == ""


def edited(folder, change):
    """Change the cells of all results of a folder, as another version of saeval or another model would have."""
    store = Store(folder)
    manifest = store.manifest()
    for listed in manifest["cells"]:
        listed["cell"] = change(dict(listed["cell"]))
        if (stored := store.read(listed["key"], arrays=True)) is not None:
            whole = Result(**{**vars(stored), "cell": listed["cell"]})
            store.write(whole)
    store.write_manifest({**manifest, "suite": "other"})
    return str(folder)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (lambda cell: {**cell, "model": {"name": "gpt2", "weights": "w"}}, "model.name (none; gpt2)"),
        (
            lambda cell: {**cell, "data": {**cell["data"], "fingerprint": "e", "exclude": ["bos"]}},
            "data.exclude (none; bos)",
        ),
        (lambda cell: {**cell, "metric_version": 2}, "ce.metric_version (none; 2)"),
        (lambda cell: {**cell, "params": {"ablation": "zero"}}, "ce.params.ablation (none; zero)"),
    ],
)
def test_rows_that_are_not_comparable_are_ranked_apart_and_the_fields_are_named(change, field, tmp_path, capsys):
    first, second = str(fill(tmp_path / "a")), edited(fill(tmp_path / "b"), change)
    assert cli.main(["leaderboard", first, second, "--format", "json"]) == 0
    captured = capsys.readouterr()
    rows = json.loads(captured.out)
    assert [row["board"] for row in rows] == sorted(row["board"] for row in rows)
    for number in some({row["board"] for row in rows}):
        ranked = [row["rank"] for row in rows if row["board"] == number and row["kind"] == "sae" and row["rank"]]
        assert min(ranked) == 1
        assert len(ranked) == 6
    assert "not ranked together with s, from which it differs in" in captured.err
    assert field in captured.err
    assert cli.main(["leaderboard", first, second, "--format", "text"]) == 0
    assert "not ranked together with s" in capsys.readouterr().out


class Lopsided(Metric):
    """A value of all tokens, shown first, and one that a single token moves."""

    name, headline = "lopsided", ("steady",)

    def observe(self, activations, mask):
        norm = activations.norm(dim=-1)
        return {"steady": Mean.of(norm.square(), mask), "moved": Mean.of((norm == norm[mask].max()) * norm, mask)}

    def conclude(self, total):
        return {name: Scalar(one.value) for name, one in total.items()}


def test_every_format_says_the_same_of_the_errors(tmp_path, capsys):
    evaluate_tiny(["lopsided"], Lopsided, rows=tiny_tokens(rows=8, documents=8), batch_size=8, out=tmp_path, name="t")
    said = {}
    for form in TEXTS:
        capsys.readouterr()
        assert cli.main(["leaderboard", str(tmp_path / "t"), "--format", form]) == 0
        captured = capsys.readouterr()
        notes = captured.err if form in ("csv", "json") else captured.out
        said[form] = re.findall(r"fewer than 20 effective documents .*?: errors", " ".join(notes.split()))
    (sentence,) = said["text"]
    assert "lopsided.steady of tinysae" in sentence  # of the value shown, whatever else a file has
    assert "lopsided.moved" not in sentence
    assert every(found == [sentence] for found in said.values())


def test_comparable_folders_are_one_board(tmp_path, capsys):
    folders = [str(fill(tmp_path / name)) for name in "ab"]
    assert cli.main(["leaderboard", *folders, "--format", "json"]) == 0
    captured = capsys.readouterr()
    assert {row["board"] for row in json.loads(captured.out)} == {1}
    assert "not ranked" not in captured.err
