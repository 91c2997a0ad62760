"""Progress of a run in lines: tokens per second and the time left, of this run alone."""

from __future__ import annotations

import io

import pytest

from saeval.base import progress


@pytest.fixture
def clock(monkeypatch):
    class Clock:
        now = 1000.0

    monkeypatch.setattr(progress.time, "monotonic", lambda: Clock.now)
    return Clock


def test_lines_tell_tokens_a_second_and_the_time_left(clock, capsys):
    lines = progress.Lines()
    lines.started("4 cells", 100, 20)  # an earlier run has done 20
    for _ in range(4):
        clock.now += 12
        lines.advanced(1, 60)
    lines.advanced(76, 4500)
    lines.finished()
    assert capsys.readouterr().err.splitlines() == [
        "pass: 4 cells: 100 sequences, from sequence 20",
        "pass: 4 cells: 21/100, 5 tokens/s, 15:48 left",
        "pass: 4 cells: 22/100, 5 tokens/s, 15:36 left",
        "pass: 4 cells: 23/100, 5 tokens/s, 15:24 left",
        "pass: 4 cells: 24/100, 5 tokens/s, 15:12 left",
        "pass: 4 cells: 100/100 done, 98.8 tokens/s",
    ]


def test_hours_are_shown_and_a_pass_without_tokens_has_no_speed(clock, capsys):
    lines = progress.Lines()
    lines.started("1 cell", 1000, 0)
    clock.now += 11
    lines.advanced(1, 0)
    lines.finished()
    shown = capsys.readouterr().err.splitlines()
    assert shown[1:] == ["pass: 1 cell: 1/1000, 3:03:09 left", "pass: 1 cell: 1/1000 done"]


def test_a_bar_shows_the_speed(clock, monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr(progress.sys, "stderr", stream)
    bar = progress.Bar()
    bar.started("1 cell", 10, 0)
    clock.now += 2
    bar.advanced(10, 1000)
    bar.finished()
    assert "500 tokens/s" in stream.getvalue()


def test_batches_that_cost_no_clean_pass_are_in_no_speed(clock, capsys):
    lines = progress.Lines()
    lines.started("1 cell", 12, 0)
    clock.now += 0.01
    lines.advanced(4, 0)  # the preflight has run it
    clock.now += 20
    lines.advanced(4, 400)
    clock.now += 20
    lines.advanced(4, 400)
    lines.finished()
    assert capsys.readouterr().err.splitlines()[1:] == [
        "pass: 1 cell: 8/12, 20 tokens/s, 00:20 left",
        "pass: 1 cell: 12/12, 20 tokens/s, 00:00 left",
        "pass: 1 cell: 12/12 done, 20 tokens/s",
    ]
    lines.started("1 cell", 12, 0)
    lines.advanced(12, 0)
    lines.finished()
    assert capsys.readouterr().err.splitlines()[1:] == ["pass: 1 cell: 12/12 done"]
