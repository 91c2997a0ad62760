"""Tables for terminals: they fit, headers are unambiguous, and names of others are text."""

from __future__ import annotations

import contextlib
import os
import pty
import sys

import numpy as np
import pytest
from rich.cells import cell_len

import saeval
from filled_folders import fill
from made_results import NOISE, result
from saeval import Metric, Scalar, cli
from saeval.results import index
from saeval.results.column_choice import choose
from saeval.results.leaderboard import boards, from_results
from saeval.testing import evaluate_tiny
from saeval.testing.claims import every, none, some
from saeval_reports import terminal

HOSTILE = "<script>alert(1)</script>|`x`\n\x1b[31m=cmd()"


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory):
    """The boards of a run of the suite `quickstart`, cut to two sequences."""
    out = tmp_path_factory.mktemp("quickstart")
    assert not saeval.run("quickstart", limit=2, preflight="off", out=out).failed
    return boards([out / "quickstart"], include_limited=True)


@pytest.fixture
def folder(tmp_path):
    return str(fill(tmp_path / "s"))


def table_of(text):
    """The lines of the first table below its headers."""
    lines = text.splitlines()
    start = next(place for place, line in enumerate(lines) if line.startswith("─"))
    return lines[start + 1 : lines.index("", start)]


@pytest.mark.parametrize("width", [80, 120])
def test_the_table_of_quickstart_fits_in_one_line_a_row(quickstart, width, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(width))
    text = terminal.text(quickstart)
    rows = table_of(text)
    assert len(rows) == 23  # 19 SAEs and 4 controls
    assert every(cell_len(line) <= width for line in text.splitlines())
    assert every(" ± " in line for line in rows)
    assert "ce.delta_ce ↓" in text or "delta_ce ↓" in text
    assert sum(line.startswith("control") for line in rows) == 4


def columns_of(text):
    return len(next(line for line in text.splitlines() if line.startswith("─")).split())


def test_more_width_shows_more_columns(quickstart, monkeypatch):
    counts = []
    for width in (60, 80, 120, 200):
        monkeypatch.setenv("COLUMNS", str(width))
        counts.append(columns_of(terminal.text(quickstart)))
    assert counts == sorted(set(counts))
    assert counts[-1] == 2 + 8


class Described(Metric):
    """Counts, which judge nothing."""

    name, headline, main = "described", ("many", "more"), ()

    def conclude(self, W_dec):
        return {"many": Scalar(len(W_dec)), "more": Scalar(2 * len(W_dec))}


class Judged(Metric):
    """A score, and what it is made of."""

    name, headline, main = "judged", ("parts", "score"), ("score",)

    def conclude(self, W_dec):
        return {"parts": Scalar(123456.0), "score": Scalar(float(W_dec.norm()), better="higher")}


class Undeclared(Judged):
    name, headline, main = "undeclared", ("first", "second"), None

    def conclude(self, W_dec):
        return {"first": Scalar(1.0), "second": Scalar(2.0)}


@pytest.mark.parametrize("worth", [0, index.WORTH])
def test_a_narrow_table_keeps_the_main_values_and_names_the_others(worth, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(index, "WORTH", worth)  # with an index of the results, and without
    classes = Described, Judged, Undeclared
    evaluate_tiny([c.name for c in classes], *classes, out=tmp_path, name="t")

    def shown(width):
        monkeypatch.setenv("COLUMNS", str(width))
        assert cli.main(["leaderboard", str(tmp_path / "t"), "--format", "text"]) == 0
        text = capsys.readouterr().out
        return [
            name for name in ("many", "more", "parts", "score", "first", "second") if f" {name}" in head(text)
        ], text

    whole, _ = shown(100)
    assert whole == ["many", "more", "parts", "score", "first", "second"]
    narrow, text = shown(30)
    assert narrow == ["many", "score", "first"]  # the first shown value ranks
    footer = " ".join(text[text.index("- left out") :].split())
    assert footer.startswith("- left out to fit 30 columns: described.more, judged.parts, undeclared.second.")
    assert "--wide all" in footer


def head(text):
    """The header of the first table, on one line."""
    return text[: text.index("\n─")].rpartition("\n\n")[2].replace("\n", " ")


def test_wide_shows_all_columns_and_columns_those_named(folder, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "40")

    def printed(*words):
        assert cli.main(["leaderboard", folder, "--format", *words]) == 0
        return capsys.readouterr().out

    narrow = printed("text")
    assert columns_of(printed("text", "--wide")) == 2 + 4  # with `ce.whole`, and the lead over the control
    assert columns_of(printed("text", "--columns", "ce.whole", "l0")) == 2 + 2
    assert printed("text") == narrow  # no text of other columns was kept
    head = printed("md", "--columns", "ce.whole", "l0").splitlines()[4]
    assert [cell.strip() for cell in head.split("|")[3:-1]] == ["ce.whole", "l0.l0"]
    assert cli.main(["leaderboard", folder, "--columns", "ce.los"]) == 2
    assert capsys.readouterr().err == "--columns: no value 'ce.los' in these results; did you mean 'ce.loss'?\n"


def test_a_pseudo_terminal_gets_text_of_its_width_and_a_pipe_markdown(folder, monkeypatch, capsys):
    ours, theirs = pty.openpty()
    monkeypatch.setenv("COLUMNS", "70")
    with os.fdopen(theirs, "w", encoding="utf-8") as terminal_, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", terminal_)
        assert cli.main(["leaderboard", folder]) == 0
        assert cli.main(["compare", folder, "sae-0", "sae-2"]) == 0
    content = b""
    with contextlib.suppress(OSError):  # the other end is closed
        while more := os.read(ours, 65536):
            content += more
    os.close(ours)
    text = content.decode()
    assert every(cell_len(line) <= 70 for line in text.splitlines())
    assert text.count("─  ─") > 2
    assert "## " not in text
    assert cli.main(["leaderboard", folder]) == 0
    assert capsys.readouterr().out.startswith("## s")


def made(names, metrics=("m",), **settings):
    results = [
        result(name, float(place), NOISE * (1 + place), metric=metric)
        for place, name in enumerate(names)
        for metric in metrics
    ]
    return from_results(results, "t", settings)


def test_a_header_is_short_only_where_no_other_metric_has_the_value(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert set(terminal.headers(made("ab")[0].columns).values()) == {"v ↓"}
    both = made("ab", ("m", "n"))[0]
    assert set(terminal.headers(both.columns).values()) == {"m.v ↓", "n.v ↓"}
    choose([both], ["m.v"])  # it is still there, if not shown
    assert "m.v" in terminal.text([both])


def test_long_names_are_shortened_and_stay_apart(monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    names = [f"runs/{'x' * 30}-{n}-{'y' * 30}" for n in range(12)]
    lines = table_of(terminal.text(made(names)))
    assert every(cell_len(line) <= 60 for line in lines)
    assert len({line.split()[1] for line in lines}) == 12
    wide = terminal.shortened(["模" * 20 + "a", "模" * 20 + "b"], 10)
    assert len(set(wide)) == 2
    assert every(cell_len(name) <= 10 for name in wide)


def test_names_of_folders_leave_out_what_the_column_of_hooks_says(tmp_path, monkeypatch, capsys):
    """Ladders at several hooks, in the folders that trainers make: the table fits, and each row tells its setting."""
    hooks = {"blocks.6.hook_resid_post": "layers.6", "blocks.14.hook_mlp_out": "layers.14.mlp"}
    saes = [
        {"name": f"small/{hook}/topk-k{k}-seed0/{module}", "hook_name": hook, "key": f"{hook}{k}", "kind": "sae"}
        for hook, module in hooks.items()
        for k in (16, 32, 128)
    ]
    monkeypatch.setenv("COLUMNS", "80")
    results = []
    for place, sae in enumerate(saes):
        one = result(sae["name"], float(place), NOISE * (1 + place))
        one.cell["subjects"][0] |= sae
        results.append(one)
    text = terminal.text(from_results(results, "t", {"rank_by": "m.v"}))
    rows = table_of(text)
    assert every(cell_len(line) <= 80 for line in rows)
    assert [line.split()[1] for line in rows] == [f"topk-k{k}-seed0" for _ in hooks for k in (16, 32, 128)]


def test_hostile_names_are_text_on_one_line(monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    text = terminal.text(made([HOSTILE, "b"], rank_by="m.v"))
    assert "<script>alert(1)</script>|`x`⏎\\x1b[31m=cmd()" in text
    assert none(line.startswith("=") for line in text.splitlines())
    assert len(table_of(text)) == 2


def test_notes_are_wrapped_below(monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    board = made("abcd", rank_by="m.v")[0]
    board.warnings.append("this is a warning " * 12)
    text = terminal.text([board])
    assert every(cell_len(line) <= 60 for line in some(text.splitlines()))
    assert text.index("this is a warning") > text.index("─")
    assert np.all([line.startswith(("- ", "  ")) for line in text[text.index("- this is") :].splitlines()])
