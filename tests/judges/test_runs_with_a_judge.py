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

from asking import Clear, opinions
from chat_server import Answer, error
from saeval.cli import main
from saeval.plugin import SaevalError
from saeval.results.store import Store
from saeval.testing import evaluate_tiny
from saeval.testing.architectures import tiny_folder, tiny_tokenizer
from saeval.testing.claims import every, none, some
from saeval_judges.local_model import LocalModel

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

    def run(verb="run", more="", judge=None, metrics="[clear, spread]"):
        file = tmp_path / "suite.yaml"
        judge = JUDGE.format(url=server.base_url, more=more) if judge is None else judge
        file.write_text(SUITE.format(judge=judge, metrics=metrics), encoding="utf-8")
        capsys.readouterr()
        out = [] if verb == "fetch" else ["--out", str(tmp_path / "out")]
        code = main([verb, str(file), *out, "--plugin", PLUGIN])
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
    assert len(set(server.asked)) == 8
    results = stored(tmp_path)
    assert [r.values["share"]["value"] for r in results if "share" in r.values] == [0.75, 0.75]
    for result in some(results):
        record = result.cell["judge"]
        assert record == {"use": "openai", "model": "m", "base_url": server.base_url, "temperature": 0.0}

    assert cli("run", ", concurrency: 2, timeout: 9")[0] == 0  # these do not decide the answers
    assert len(server.requests) == 8
    assert "judge: openai: up to 0 requests" in cli("check")[1]
    assert "judge: openai: up to 8 requests" in cli("check", ", temperature: 0.5")[1]
    assert cli("run", ", temperature: 0.5")[0] == 0
    assert len(server.requests) == 16


def test_prompts_of_another_metric_or_number_are_asked_once(cli, server, tmp_path):
    assert cli(metrics="[clear]")[0] == 0
    assert cli(metrics="[spread, clear: {questions: 5}]")[0] == 0
    assert len(server.requests) == len(set(server.asked)) == 10
    kept = sorted((tmp_path / "out" / "asked" / "judge").glob("*/*.json"))
    assert sorted(json.loads(file.read_text())["prompt"]["messages"][0][1] for file in kept) == sorted(server.asked)


UNREADABLE = [Answer("yes, no"), Answer("yes", reason="length"), Answer("")]
"""Of the wrong number of verdicts, cut short, empty."""


@pytest.mark.parametrize("answer", UNREADABLE)
def test_an_answer_that_cannot_be_read_is_asked_for_once_more_and_counted(cli, server, tmp_path, answer):
    server.reply = lambda request: answer if "feature 0" in request["messages"][0]["content"] else Answer("no")
    assert cli(metrics="[clear]")[0] == 0
    again = [text for text in server.asked if text.endswith("Answer in exactly this form, and with nothing else.")]
    assert len(again) == 2
    assert every(text.split("\n\n")[0] in server.asked for text in again)
    assert len(server.asked) == len(set(server.asked)) == 8 + 2
    for result in some(stored(tmp_path)):
        assert result.values["unread"]["value"] == 1
        assert result.values["share"]["value"] == 0


def test_a_second_answer_that_can_be_read_counts(cli, server, tmp_path):
    server.answers = [Answer("maybe")]
    assert cli(metrics="[clear]")[0] == 0
    assert len(server.requests) == 9
    assert every(r.values["unread"]["value"] == 0 for r in some(stored(tmp_path)))


def test_a_budget_is_checked_before_the_run(cli, server):
    for more, excess in {
        "max_requests: 7": "8 requests of 'max_requests: 7'",
        "max_tokens: 87": r"88 tokens of 'max_tokens: 87'",
    }.items():
        for verb in ("check", "run"):
            code, _, errors = cli(verb, f", {more}")
            assert code == 2
            assert re.fullmatch(rf"\S+suite.yaml:5:\d+: the run asks its judge up to {excess}; raise it, .*\n", errors)
    assert server.requests == []


def test_a_budget_also_ends_second_attempts_and_what_was_paid_for_is_kept(cli, server, tmp_path):
    server.reply = lambda request: Answer("maybe")
    code, printed, _ = cli(metrics="[clear]", more=", max_requests: 8")
    assert code == 1
    assert "the judge's budget does not suffice: 12 requests of 'max_requests: 8'; raise it, or choose" in printed
    assert len(server.requests) == 8
    assert cli(metrics="[clear]", more=", max_requests: 16")[0] == 0
    assert len(server.requests) == 16


def test_a_killed_run_continues_without_asking_twice(server, key, cli, tmp_path):
    server.answers = [Answer()] * 5 + [Answer(hangs=True)]
    file, kept = tmp_path / "suite.yaml", tmp_path / "out" / "asked" / "judge"
    judge = JUDGE.format(url=server.base_url, more=", concurrency: 1")
    file.write_text(SUITE.format(judge=judge, metrics="[clear]"), encoding="utf-8")
    words = ["run", str(file), "--out", str(tmp_path / "out"), "--plugin", PLUGIN]
    child = subprocess.Popen(
        [sys.executable, "-c", "import sys; from saeval.cli import main; sys.exit(main(sys.argv[1:]))", *words],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        end = time.monotonic() + 120
        while len(server.requests) < 6 or len(list(kept.glob("*/*.json"))) < 5:
            assert child.poll() is None
            assert time.monotonic() < end
            time.sleep(0.02)
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
    open_at_the_kill = server.asked[5]
    assert cli(metrics="[clear]")[0] == 0
    assert sorted(server.asked) == sorted([*{*server.asked}, open_at_the_kill])  # that one alone twice
    assert len(server.asked) == 9


def test_a_failed_endpoint_costs_the_cells_that_ask_and_a_later_run_asks_the_rest(cli, server, key, tmp_path):
    server.answers = [Answer(), Answer(), error(401, f"wrong key {key}")]
    code, printed, _ = cli(metrics="[clear, l0]", more=", concurrency: 1")
    assert code == 1
    assert (
        f"judge 'openai': m at {server.base_url} answered with status 401: wrong key (the key); check the key"
        in printed
    )
    statuses = [(result.cell["metric"], result.status) for result in stored(tmp_path)]
    assert sorted(statuses) == [("clear", "failed"), ("clear", "ok"), ("l0", "ok"), ("l0", "ok")]
    before = len(server.requests)
    assert cli(metrics="[clear, l0]")[0] == 0
    assert len(server.requests) - before == 8 - (before - 1)


def test_the_key_is_in_no_file_message_or_log(cli, server, key, tmp_path, caplog):
    server.answers = [error(401, f"wrong key {key}"), Answer(f"the key is {key}")]
    server.reply = lambda request: Answer(key)
    caplog.set_level("DEBUG")
    printed, codes = [], []
    for verb in ("check", "run", "run"):
        code, out, errors = cli(verb, ", concurrency: 1", metrics="[clear]")
        codes.append(code)
        printed += [out, errors]
    assert codes == [0, 1, 0]
    assert main(["report", str(tmp_path / "out" / "asked")]) == 0
    files = [
        file.read_bytes()
        for folder in (tmp_path, Path(os.environ["SAEVAL_CACHE"]))
        for file in folder.rglob("*")
        if file.is_file()
    ]
    assert len(server.requests) > 8
    assert none(key.encode() in content for content in some(files))
    assert none(key in text for text in printed)
    assert none(key in str(vars(record)) for record in some(caplog.records))


def test_a_run_is_replayed_from_what_it_kept(cli, server, tmp_path):
    server.reply = lambda request: Answer("no" if "feature 0" in request["messages"][0]["content"] else "yes")
    assert cli(metrics="[clear]")[0] == 0
    values = [result.values for result in stored(tmp_path)]
    folder = (tmp_path / "out" / "asked" / "judge").rename(tmp_path / "paper")
    server.reply = lambda request: error(400)
    assert cli(metrics="[clear]", judge=f"{{use: recorded, path: '{folder}'}}")[0] == 0
    assert len(server.requests) == 8
    again = stored(tmp_path)
    assert [result.values for result in again] == values
    assert [set(result.cell["judge"]) for result in some(again)] == [{"use", "records"}] * 2
    code, printed, _ = cli(metrics="[clear: {questions: 6}]", judge=f"{{use: recorded, path: '{folder}'}}")
    assert code == 1
    assert "paper has no answer to 2 of 2 prompts (the first is 'is feature 4 of " in printed


def test_a_local_model_answers_and_is_released_after_the_run(cli, tmp_path, monkeypatch):
    folder, closed = tiny_folder(tmp_path / "judge-model"), []
    monkeypatch.setattr(LocalModel, "close", lambda self: closed.append("_model" in vars(self)))
    judge = f"{{use: huggingface, path: '{folder}'}}"
    words = len(tiny_tokenizer()("is feature 0 of 1.000000 clear").input_ids)
    _, printed, _ = cli("check", judge=judge, metrics="[clear]")
    assert f"judge: huggingface: up to 8 requests, about {8 * (words + 3)} tokens" in printed
    assert cli(judge=judge, metrics="[clear]")[0] == 0
    assert closed == [True]
    assert [r.values["unread"]["value"] for r in stored(tmp_path)] == [4, 4]
    assert cli(judge=judge, metrics="[clear: {as: again}]")[0] == 0
    assert closed == [True]  # nothing was left to ask


def test_live_objects_are_judged_from_python(server, key):
    judge = {"use": "openai", "model": "m", "base_url": server.base_url}
    results = evaluate_tiny(["clear"], Clear, quantities=[opinions], judge=judge)
    assert not results.failed
    assert results.value("clear.share", "tinysae")["value"] == 1
    assert [result.cell["judge"]["model"] for result in results] == ["m"]
    assert len(server.requests) == 4
    with pytest.raises(SaevalError, match="evaluate: judge is the name or entry of a judge, such as"):
        evaluate_tiny(["clear"], Clear, quantities=[opinions], judge=3)


def test_fetch_downloads_what_the_judge_needs(cli, tmp_path, monkeypatch):
    folder, fetched = tiny_folder(tmp_path / "judge-model"), []
    monkeypatch.setattr(LocalModel, "fetch", lambda self: fetched.append(self))
    assert cli("fetch", judge=f"{{use: huggingface, path: '{folder}'}}")[0] == 0
    assert len(fetched) == 1


REFUSED = {
    "no use": ("{model: m}", "5:8: 'judge' needs 'use', one of: huggingface, openai, recorded"),
    "list": ("[openai]", "5:8: 'judge'.*, got \\['openai'\\]"),
    "unknown": ("{use: opnai}", "5:14: unknown judge 'opnai'; did you mean 'openai'\\?"),
    "no model": ("{use: openai}", "5:8: judge 'openai' needs the parameter 'model'"),
    "parameter": (
        "{use: openai, model: m, modl: n}",
        "5:32: unknown parameter 'modl' of judge 'openai'; did you mean 'm",
    ),
    "value": ("{use: openai, model: m, concurrency: 0}", "5:45: 'concurrency' of judge 'openai': .* got 0"),
    "key": (
        "{use: openai, model: m, api_key: sk-4711}",
        "5:32: 'api_key' of judge 'openai': a suite is shared and recorded, so it holds no secret; put it into the env",
    ),
    "key as name": ("{use: openai, model: m, api_key_variable: sk-4711}", "5:50: 'api_key_variable' of .* the name of"),
    "credentials": ("{use: openai, model: m, base_url: 'http://a:sk-4711@h/v1'}", "5:42: 'base_url' .* no user, passw"),
    "budget": ("{use: openai, model: m, max_requests: -1}", "5:46: 'max_requests' of judge: .* got -1"),
    "no file": ("{use: recorded, path: nowhere.jsonl}", "5:8: nowhere.jsonl does not exist in \\S+; expected the rec"),
    "no folder": ("{use: huggingface, path: nowhere}", "5:8: nowhere is not a folder in \\S+; 'path' must be"),
    "no model at all": ("{use: huggingface}", "5:8: the model 'huggingface' needs either 'path'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_wrong_judge_is_refused_in_one_sentence(cli, case):
    judge, sentence = REFUSED[case]
    code, printed, errors = cli("check", judge=judge)
    assert code == 2
    assert re.fullmatch(rf"\S+suite\.yaml:{sentence}.*\n", errors), errors
    assert "4711" not in printed + errors


def test_a_missing_key_is_named_before_the_run(cli, server, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY")
    code, _, errors = cli("run")
    assert code == 2
    assert re.search(
        r"suite\.yaml:5:8: judge 'openai' reads its key from the environment variable OPENAI_API_KEY", errors
    )
    assert server.requests == []


def test_who_asks_nothing_needs_neither_key_nor_budget(cli, server, monkeypatch):
    assert cli()[0] == 0
    monkeypatch.delenv("OPENAI_API_KEY")
    for verb in ("check", "run"):  # what asks is stored, and `l0` does not ask
        assert cli(verb, ", max_requests: 0", metrics="[clear, l0]")[0] == 0
    assert len(server.requests) == 8


def test_a_metric_that_asks_needs_a_judge(cli, tmp_path):
    code, _, errors = cli("check", judge="null")
    assert code == 2
    assert "'interview' needs a judge, and this suite has none; add 'judge:'" in errors
