"""Suites with a judge, from the command line: what is foretold, sent, kept, refused, and continued after a kill."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from chat_server import Answer, error
from saeval.cli import main
from saeval.results.store import Store
from saeval.testing.claims import every, none, some

PLUGIN = str(Path(__file__).with_name("asking.py"))
SUITE = """\
suite: asked
model: {{use: testbed}}
data: {{texts: ["def one():\\n  return 1\\n", "import os\\nprint(os)\\n"], context: 8}}
saes: [testbed/relu-3, testbed/relu-5]
judge: {judge}
metrics: {metrics}
"""
JUDGE = "{{use: openai, model: m, base_url: '{url}', retries: 1{more}}}"


@pytest.fixture
def cli(tmp_path, server, key, capsys):
    """Runs a verb on a suite with a judge; returns the exit code, standard output and standard error."""

    def run(verb="run", more="", judge=None, metrics="[clear, spread]", *words):
        file = tmp_path / "suite.yaml"
        judge = JUDGE.format(url=server.base_url, more=more) if judge is None else judge
        file.write_text(SUITE.format(judge=judge, metrics=metrics), encoding="utf-8")
        capsys.readouterr()
        code = main([verb, str(file), "--out", str(tmp_path / "out"), "--plugin", PLUGIN, *words])
        return code, *capsys.readouterr()

    return run


def stored(tmp_path):
    store = Store(tmp_path / "out" / "asked")
    return [store.read(entry["key"]) for entry in store.manifest()["cells"]]


def test_what_is_foretold_is_sent_and_a_second_run_sends_nothing(cli, server, tmp_path):
    server.reply = lambda request: Answer("no" if "feature 0" in request["messages"][0]["content"] else "yes")
    code, printed, _ = cli("check")
    (foretold,) = re.findall(r"judge: openai: up to (\d+) requests, about (\d+) tokens", printed)
    assert code == 0
    assert server.requests == []

    code, _, _ = cli()
    assert code == 0
    assert len(server.requests) == int(foretold[0]) == 2 * 4  # of two metrics, which share them
    assert len(set(server.asked)) == 4 + 4 * (len({text.split()[4] for text in server.asked}) - 1)
    results = stored(tmp_path)
    assert [r.values["share"]["value"] for r in results if "share" in r.values] == [0.75, 0.75]
    for result in some(results):
        record = result.cell["judge"]
        assert record == {"use": "openai", "model": "m", "base_url": server.base_url, "temperature": 0.0}

    assert cli()[0] == 0
    assert cli("run", ", concurrency: 2, timeout: 9")[0] == 0  # these do not decide the answers
    assert len(server.requests) == 8
    code, printed, _ = cli("check")
    assert "judge: openai: up to 0 requests" in printed
    (tmp_path / "out" / "asked").joinpath("judge").rename(tmp_path / "judge")
    assert cli("run", "", None, "[clear: {questions: 5}]")[0] == 0
    assert len(server.requests) == 18
