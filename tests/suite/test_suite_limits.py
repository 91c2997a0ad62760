"""Suites, options and references that no person means to write: one sentence, and neither a traceback nor an hour."""

from __future__ import annotations

import pytest

import saeval
from saeval import SaevalError, cli
from saeval.suite.yaml_marks import MAX_BYTES

GOOD = """
suite: mine
model: testbed
data: {use: python-stdlib, context: 16, sequences: 4}
saes: [testbed/topk-8]
metrics: [l0]
"""
DEEP = "[" * 1000 + "]" * 1000
BOMB = "\n".join(["a0: &a0 [x]", *(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 9))])
VALUES = {
    "9" * 5000: "is not an integer; it has too many digits",
    "0x" + "f" * 5000: "is a number of more than 64 bits",
    "9" * 30: "is a number of more than 64 bits",
    "!!bool maybe": "'maybe' is neither true nor false; quote it if it is text",
    "!!timestamp abc": "'abc' is not a date; quote it if it is text",
    "2024-13-45": "'2024-13-45' is not a date; quote it if it is text",
    "!!int x": "'x' is not an integer",
    "!!binary aGk=": "binary data; a value must be text, a number, true, false or null",
    DEEP: "nested more than 50 deep",
}
CASES = pytest.mark.parametrize(("value", "said"), list(VALUES.items()), ids=[text[:15] for text in VALUES])


def refused(capsys, *arguments):
    """The one line of a mistake of the user's."""
    assert cli.main(list(arguments)) == 2
    told = capsys.readouterr()
    assert told.out == ""
    (line,) = told.err.splitlines()
    assert len(line) < 1200
    return line


@CASES
def test_in_a_suite(tmp_path, capsys, value, said):
    (tmp_path / "s.yaml").write_text(GOOD.replace("sequences: 4", f"sequences: {value}"))
    line = refused(capsys, "check", str(tmp_path / "s.yaml"))
    assert f"{tmp_path / 's.yaml'}:4:" in line
    assert said in line


@CASES
def test_in_set_and_doctor(tmp_path, capsys, value, said):
    (tmp_path / "s.yaml").write_text(GOOD)
    line = refused(capsys, "check", str(tmp_path / "s.yaml"), "--set", f"data.sequences={value}")
    assert line.startswith("--set data.sequences=")
    assert said in line
    line = refused(capsys, "doctor", "testbed/topk-8", "--model", f"{{use: {value}}}")
    assert line.startswith("--model {use: ")
    assert said in line


@pytest.mark.parametrize("index", ["9" * 5000, "²", "-1"])
def test_indices(tmp_path, capsys, index):
    (tmp_path / "s.yaml").write_text(GOOD)
    line = refused(capsys, "check", str(tmp_path / "s.yaml"), "--set", f"saes.{index}=x")
    assert "is not an index of a list of 1" in line


@pytest.mark.parametrize("number", ["9" * 5000, "9" * 30, "²"])
def test_counts_of_options(tmp_path, capsys, number):
    (tmp_path / "s.yaml").write_text(GOOD)
    with pytest.raises(SystemExit) as stopped:
        cli.main(["check", str(tmp_path / "s.yaml"), "--limit", number])
    assert stopped.value.code == 2
    assert "expected a positive number, got" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("- x\n" * (MAX_BYTES // 4 + 1), f"bytes, but at most {MAX_BYTES:,} are read"),
        (BOMB, "more than 100000 nodes after expanding aliases"),
        ("s: &s '" + "x" * 10**6 + "'\nl: [" + ", ".join(["*s"] * 20) + "]", "characters after expanding aliases"),
        ("a: &x [*x]", "nested more than 50 deep, or an alias of itself"),
    ],
    ids=["large", "bomb", "texts", "itself"],
)
def test_suites_that_would_run_without_end(tmp_path, capsys, text, said):
    (tmp_path / "s.yaml").write_text(text)
    assert said in refused(capsys, "check", str(tmp_path / "s.yaml"))


def nested():
    outer = inner = []
    for _ in range(2000):
        inner.append([])
        inner = inner[0]
    return outer


@pytest.mark.parametrize("key", ["suite", "batch", "metrics", "saes", "groups", "data", "precision"])
@pytest.mark.parametrize("value", [10**5000, nested()], ids=["number", "nested"])
def test_suites_given_from_python(tmp_path, key, value):
    body = {
        "suite": "s", "model": "testbed", "data": {"use": "python-stdlib", "context": 16, "sequences": 4},
        "saes": ["testbed/topk-8"], "metrics": ["l0"],
    }  # fmt: skip
    with pytest.raises(SaevalError, match=r"a number of more than 64 bits|nested more than 50 deep, or in itself"):
        saeval.run({**body, key: {"l0.l0": value} if key == "precision" else value}, out=tmp_path)


def test_options_given_from_python(tmp_path):
    with pytest.raises(SaevalError, match=r"limit must be a number of sequences, .*; got an object of type int"):
        saeval.run("quickstart", out=tmp_path, limit=10**5000)


@pytest.mark.parametrize(
    ("verb", "said"),
    [
        ("leaderboard", "ile name too long"),
        ("show", "is neither a results folder, a result, nor a known name"),
        ("check", "no such file"),
        ("report", "ile name too long"),
        ("doctor", "ile name too long"),
    ],
)
def test_paths_that_no_system_has(capsys, verb, said):
    assert said in refused(capsys, verb, "a" * 400)


def test_a_character_that_json_writes_as_two_escapes_is_one(tmp_path, capsys):
    (tmp_path / "s.yaml").write_text(GOOD.replace("sequences: 4", 'sequences: "\\ud83d\\ude42"'))
    assert "🙂" in refused(capsys, "check", str(tmp_path / "s.yaml"))
