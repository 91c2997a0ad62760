"""Tables for terminals: they fit, headers are unambiguous, and names of others are text."""

from __future__ import annotations

import contextlib
import os
import pty
import sys
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np
import pytest
import saeval_suites
import yaml
from rich.cells import cell_len

from filled_folders import fill
from made_results import NOISE, result
from saeval import cli
from saeval.registry.discovery import Plugins
from saeval.registry.registry import Registry
from saeval.results.column_choice import choose
from saeval.results.leaderboard import from_results
from saeval.testing.claims import every, none, some
from saeval_reports import terminal

RNG = np.random.default_rng(0)
HOSTILE = "<script>alert(1)</script>|`x`\n\x1b[31m=cmd()"
COLUMNS = {"l0.l0": 216.06, "density.frac_dead": 0.0009766, "reconstruction.explained_variance": 0.9612, "ce.delta_ce": 1.325,
           "ce.recovered": 0.7555, "ce_zero.recovered": 0.8183, "kl.kl_sae": 1.342, "kl.top1_agreement": 0.3716}  # fmt: skip


@pytest.fixture(scope="module")
def quickstart():
    """The rows and columns of the suite `quickstart`, with numbers as wide as its own."""
    suite = yaml.safe_load((Path(saeval_suites.__file__).parent / "quickstart.yaml").read_text())
    assert suite["leaderboard"]["columns"] == list(COLUMNS)
    saes = [
        name
        for name in Registry(Plugins()).saes.names()
        if any(fnmatchcase(name, pattern) for pattern in suite["saes"])
    ]
    controls = ["identity", "zero", "mean", *(f"random(testbed/relu-5)#{n}" for n in range(5))]
    results = []
    for name in [*saes, *controls]:
        of = {"kind": "control", "control": name.split("(")[0]} if name in controls else {}
        of |= {"copy": int(name[-1])} if "#" in name else {}
        for column, size in COLUMNS.items():
            metric, _, value = column.partition(".")
            made = result(name, 0.0, np.zeros(4), metric=metric, **of)
            own = size * (1 + RNG.normal(size=12) / 40)
            made.values = {value: {**made.values["v"], "value": own.mean(), "stderr": size / 1234}}
            made.arrays = {f"without/{value}": own.mean() - (own - own.mean()) / 11, f"sizes/{value}": np.ones(12)}
            results.append(made)
    by_cell = {}
    for made in results:  # a cell has several values
        first = by_cell.setdefault(made.key, made)
        first.values |= made.values
        first.arrays |= made.arrays
    return from_results(list(by_cell.values()), "quickstart", suite["leaderboard"])


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
    assert counts[-1] == 2 + len(COLUMNS)


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
