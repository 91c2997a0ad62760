"""What is printed: on consoles of every encoding, on devices that are full, and into pipes that nobody reads."""

from __future__ import annotations

import errno
import io
import sys

import pytest

import saeval
from saeval import cli
from saeval.base.console import Shown, device
from saeval.testing.claims import every

ENCODINGS = ("cp1252", "cp437", "latin-1", "cp932", "ascii")
SUITE = """
suite: mine
model: testbed
data: {use: python-stdlib, context: 16, sequences: 4}
saes: [testbed/topk-8, testbed/relu-3]
metrics: [l0]
"""


class Device(io.RawIOBase):
    """A device that answers every write with an error."""

    def __init__(self, code):
        self.code = code

    def writable(self):
        return True

    def write(self, data):
        if self.code:
            raise OSError(self.code, "No space left on device")
        return len(data)


@pytest.fixture
def failing(monkeypatch):
    """Replaces a stream by one of a device that fails."""
    devices = []

    def replace(stream, code=errno.ENOSPC):
        devices.append(Device(code))
        monkeypatch.setattr(sys, stream, io.TextIOWrapper(io.BufferedWriter(devices[-1]), encoding="utf-8"))

    yield replace
    for one in devices:  # what a stream still holds is written when it goes
        one.code = 0


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    folder = tmp_path_factory.mktemp("console")
    (folder / "s.yaml").write_text(SUITE)
    assert not saeval.run(folder / "s.yaml", out=folder).failed
    return folder


def arguments(ran, verb):
    results = str(ran / "mine")
    return {
        "run": ["run", str(ran / "s.yaml"), "--out", str(ran)],
        "check": ["check", str(ran / "s.yaml"), "--out", str(ran)],
        "leaderboard": ["leaderboard", results],
        "compare": ["compare", results, "testbed/topk-8", "testbed/relu-3"],
        "show": ["show", results, "l0", "testbed/relu-3"],
        "document": ["show", "ce"],
        "ls": ["ls", "controls"],
        "report": ["report", results],
        "doctor": ["doctor", "testbed/topk-8", "--data", "{use: python-stdlib, context: 16, sequences: 4}"],
    }[verb]


@pytest.mark.parametrize(
    ("verb", "encoding"),
    [
        *((verb, encoding) for verb in ("leaderboard", "compare", "document") for encoding in ENCODINGS),
        *((verb, "ascii") for verb in ("run", "check", "show", "ls", "report", "doctor")),
    ],
)
def test_every_verb_prints_on_every_console(ran, monkeypatch, verb, encoding):
    streams = {name: io.TextIOWrapper(io.BytesIO(), encoding=encoding) for name in ("stdout", "stderr")}
    for name, stream in streams.items():
        monkeypatch.setattr(sys, name, stream)
    assert cli.main(arguments(ran, verb)) == 0
    for stream in streams.values():
        stream.flush()
    shown = streams["stdout"].buffer.getvalue().decode(encoding)
    assert shown.strip()
    assert "?" not in shown
    if verb in ("leaderboard", "run"):
        assert ("±" in shown) == (encoding in ("cp1252", "cp437", "latin-1", "cp932"))
        assert ("(v)" in shown or "v lower" in shown) == (encoding in ("cp1252", "latin-1", "ascii", "cp437"))


def test_a_sign_is_spelled_in_ascii_only_where_the_console_lacks_it():
    for encoding, spelled in (("utf-8", "± − é ☃"), ("latin-1", "± - é \\u2603"), ("ascii", "+- - \\xe9 \\u2603")):
        stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
        Shown(stream, True).write("± − é ☃")
        stream.flush()
        assert stream.buffer.getvalue().decode(encoding) == spelled


def test_a_progress_bar_of_a_library_still_moves_on_standard_error():
    stream = io.StringIO()
    shown = Shown(stream, False)
    for text in ("\r 10%|#", "\n\x1b[A", "a\rb\x1b[2J", "\r\x1b[2J"):
        shown.write(text)
    assert stream.getvalue() == "\r 10%|#\n\x1b[Aa\\x0db\\x1b[2J\r\\x1b[2J"
    assert device(shown) is stream


def test_a_full_device_is_one_sentence(ran, failing, capsys):
    failing("stdout")
    assert cli.main(["leaderboard", str(ran / "mine")]) == 2
    assert capsys.readouterr().err == (
        "standard output cannot be written (No space left on device); free some space, or redirect it\n"
    )


def test_a_run_that_cannot_print_keeps_its_results(ran, failing, capsys, tmp_path):
    failing("stdout")
    assert cli.main(["run", str(ran / "s.yaml"), "--out", str(tmp_path)]) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("standard output cannot be written (No space left on device)")
    assert last.endswith("mine shows them")
    assert len(list((tmp_path / "mine").glob("*.json"))) == 3


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EPIPE])
def test_progress_that_nobody_can_read_stops_no_run(ran, failing, capsys, tmp_path, code):
    failing("stderr", code)
    assert cli.main(["run", str(ran / "s.yaml"), "--out", str(tmp_path)]) == 0
    assert "| testbed/topk-8" in capsys.readouterr().out


@pytest.mark.parametrize("verb", ["leaderboard", "ls", "help"])
def test_a_pipe_that_nobody_reads_ends_quietly(ran, failing, capsys, verb):
    failing("stdout", errno.EPIPE)
    assert cli.main(["--help"] if verb == "help" else arguments(ran, verb)) == 0
    assert capsys.readouterr().err == ""


def test_the_streams_are_the_callers_again(ran, capsys):
    before = sys.stdout, sys.stderr
    assert cli.main(["leaderboard", str(ran / "mine")]) == 0
    assert every(now is then for now, then in zip((sys.stdout, sys.stderr), before, strict=True))
