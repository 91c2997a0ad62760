"""Names that no file system can look up are one sentence, wherever they are typed."""

from __future__ import annotations

import pytest
import yaml

from saeval import cli
from saeval.testing.claims import some

LONG = "a" * 300
DEEP = "/".join(["b" * 200] * 25)
NOBODY = "~nobody-of-this-name/x"
SUITE = {
    "suite": "s", "model": "testbed", "data": {"use": "python-stdlib", "context": 16, "sequences": 4},
    "saes": ["testbed/relu-3"], "metrics": ["l0"],
}  # fmt: skip


def refused(capsys, words):
    assert cli.main(words) == 2, words
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_on_the_command_line(tmp_path, monkeypatch, capsys):
    name = LONG
    monkeypatch.chdir(tmp_path)
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(SUITE))
    typed = [
        ["run", name], ["check", "s.yaml", "--out", name], ["leaderboard", name], ["show", name, "x"],
        ["doctor", "testbed/relu-3", "--model", name], ["run", "s.yaml", "--plugin", name],
    ]  # fmt: skip
    for words in some(typed):
        assert refused(capsys, words), words


def test_a_word_that_can_be_no_path_is_looked_up_as_a_name(monkeypatch, capsys):
    monkeypatch.setattr("saeval.cli.glossary.document", lambda word, registry: f"the page of {word}")
    for name in (LONG, DEEP, f"{LONG}.json"):
        assert cli.main(["show", name]) == 0
        assert capsys.readouterr().out == f"the page of {name}\n"


@pytest.mark.parametrize("name", [LONG, DEEP, NOBODY], ids=["long", "deep", "nobody"])
def test_in_a_suite(tmp_path, capsys, name):
    changes = [
        {"saes": [name]}, {"saes": [{"path": name}]}, {"saes": [{"use": "saelens", "path": name}]}, {"model": name},
        {"data": {"use": "text", "path": name, "context": 16}},
    ]  # fmt: skip
    for change in some(changes):
        (tmp_path / "s.yaml").write_text(yaml.safe_dump({**SUITE, **change}))
        assert refused(capsys, ["check", str(tmp_path / "s.yaml")]).startswith(str(tmp_path / "s.yaml")), change


def test_as_the_name_of_a_suite(tmp_path, capsys):
    (tmp_path / "s.yaml").write_text(yaml.safe_dump({**SUITE, "suite": LONG}))
    for verb in ("check", "run"):
        assert refused(capsys, [verb, str(tmp_path / "s.yaml"), "--out", str(tmp_path)])
