"""Suites over several models, and several suites on the same workers: one leaderboard, the bits of separate runs."""

from __future__ import annotations

import itertools
import json
import re
import threading

import pytest

import every_metric
from every_metric import plugins as with_tiny
from fleet import fleet, run, values
from saeval import SaevalError, cli
from saeval.api import execute_all, prepare_parts
from saeval.base.run_options import RunOptions
from saeval.collection import boards_of
from saeval.plugin import WorkerSession
from saeval.registry.registry import Registry
from saeval.testing.claims import every, some

FIRST = {"use": "tiny", "kind": "causal", "name": "first"}
SECOND = {"use": "tiny", "kind": "causal", "seed": 1, "name": "second"}


def sae(name, seed, **more):
    return {"use": "tiny", "name": name, "seed": seed, **more}


SUITE = {
    "suite": "sweep",
    "model": [FIRST, SECOND],
    "data": {"use": "in-memory", "rows": "every-metric/tokens"},
    "saes": [sae("a", 0, model="first"), sae("b", 1, model="second"), sae("c", 2)],
    "controls": ["mean", {"use": "random", "of": "b"}],
    "groups": {"firsts": ["a", "c"], "seconds": ["b"]},
    "metrics": ["l0", "ce", {"reconstruction": {"of": ["b", "c"]}}, "weights"],
}
EVERY_METRIC = every_metric.__file__
OPTIONS = {"allow": ["*"], "block": 10, "batch_size": 7}


def alone(tmp_path, model, saes, controls=("mean",), metrics=SUITE["metrics"]):
    """The values of a suite of one of the models."""
    suite = {**SUITE, "suite": "alone", "model": model, "saes": saes, "controls": [*controls], "metrics": metrics}
    suite["groups"] = {}
    return values(run(suite, tmp_path, plugins=with_tiny(), **OPTIONS))


@pytest.fixture(scope="module")
def separate(tmp_path_factory):
    """What a suite of each model gives."""
    saes = [sae("a", 0), sae("c", 2)], [sae("b", 1), sae("c", 2)]
    controls = ["mean"], ["mean", {"use": "random", "of": "b"}]
    plain = ["l0", "ce", "weights"]
    return [
        alone(tmp_path_factory.mktemp("alone"), model, own, around, [*plain, {"reconstruction": {"of": of}}])
        for model, own, around, of in zip([FIRST, SECOND], saes, controls, (["c"], ["b", "c"]), strict=True)
    ]


def by_model(results):
    return [values([r for r in results if r.cell["model"]["name"] == name]) for name in ("first", "second")]


def test_a_suite_over_two_models_is_a_suite_for_each_in_one_folder(separate, tmp_path, capsys):
    results = run(SUITE, tmp_path, plugins=with_tiny(), **OPTIONS)
    assert by_model(results) == separate
    assert results.folder == tmp_path / "sweep"
    rows = [[row.name for row in board.rows] for board in results.boards()]
    assert [sorted(names) for names in rows] == [["a", "c", "mean"], ["b", "c", "mean", "random(b)"]]
    assert cli.main(["leaderboard", str(results.folder), "--format", "json"]) == 0
    assert list(dict.fromkeys(row["model"] for row in json.loads(capsys.readouterr().out))) == ["first", "second"]


def test_workers_do_all_suites_together_and_change_their_model_once(separate, tmp_path, monkeypatch):
    """Two suites of two models each: both workers stay with a model until nothing of it is left."""
    plugins, asked = fleet(files=[EVERY_METRIC])
    sessions = []
    monkeypatch.setattr(
        WorkerSession, "__init__", lambda self, init=WorkerSession.__init__: (sessions.append(self), init(self))[1]
    )
    registry = Registry(plugins)
    options = RunOptions(engine="inside:2", **OPTIONS)
    other = {**SUITE, "suite": "other", "metrics": ["kl"]}
    suites = [prepare_parts(suite, registry, options) for suite in (SUITE, other)]
    first, second = execute_all(suites, tmp_path)
    assert by_model(first) == separate
    assert every(r.status == "ok" for r in second)
    assert {r.cell["suite"] for r in second} == {"other"}
    assert list(tmp_path.glob("*/shards/*")) == []
    blocks = [(name, request["name"].partition(", ")[2]) for name, request in asked if request["do"] == "block"]
    for worker in ("w0", "w1"):
        models = [model for name, model in blocks if name == worker]
        changes = sum(one != next_ for one, next_ in itertools.pairwise(some(models)))
        assert changes <= 1, models
    assert {model for _, model in blocks} == {"first", "second"}
    for session in some(sessions):
        models = {engine.model.name for engine in session._engines.values() if engine.model is not None}
        assert len(models) == 1, "a worker holds one model at a time"


def test_equal_passes_of_two_suites_have_weights_of_their_own(tmp_path):
    """One worker turns from a pass to the same pass of another suite, whose nodes have other numbers."""
    plugins, asked = fleet(files=[EVERY_METRIC])
    one = {**SUITE, "model": FIRST, "saes": [sae("a", 0), sae("c", 2)], "controls": [], "groups": {}}
    suites = [
        {**one, "suite": "forward", "metrics": ["l0", "density"]},
        {**one, "suite": "backward", "saes": one["saes"][::-1], "metrics": ["weights", "density", "l0"]},
    ]
    registry = Registry(plugins)
    options = RunOptions(engine="inside:1", **{**OPTIONS, "block": 40})
    forward, backward = (
        values(results)
        for results in execute_all([prepare_parts(suite, registry, options) for suite in suites], tmp_path)
    )
    passes = [request["pass"]["cells"] for _, request in asked if request["do"] == "block" and request["pass"]["cells"]]
    assert len(passes) == 2
    assert sorted(passes[0]) == sorted(passes[1])
    assert every(held[0] == "ok" for held in forward.values())
    assert {cell: backward[cell] for cell in forward} == forward


def test_an_error_in_one_suite_ends_the_others(tmp_path):
    plugins, _ = fleet(lambda name, request: "gone" if "other" in request["name"] else None, files=[EVERY_METRIC])
    registry = Registry(plugins)
    suites = [
        prepare_parts({**SUITE, "suite": name}, registry, RunOptions(engine="inside:2", **OPTIONS))
        for name in ("sweep", "other")
    ]
    with pytest.raises(SaevalError, match=r"no worker of engine 'inside' is left; .*\nworker w.: gone"):
        list(execute_all(suites, tmp_path))
    assert [thread.name for thread in threading.enumerate() if "call" in thread.name] == []


def test_suites_of_one_model_and_data_are_one_table(tmp_path):
    plain = {**SUITE, "model": FIRST, "groups": {}, "controls": [], "metrics": ["l0"]}
    runs = [
        run({**plain, "suite": name, "saes": [sae(name, 0)]}, tmp_path, plugins=with_tiny(), **OPTIONS) for name in "ab"
    ]
    (board,) = boards_of(runs)
    assert board.title == "a + b"
    assert sorted(row.name for row in board.rows) == ["a", "b"]


def test_saes_name_their_models_without_a_model_of_the_suite(separate, tmp_path):
    named = [sae("a", 0, model=FIRST), sae("c", 2, model=FIRST), sae("b", 1, model=SECOND)]
    suite = {**SUITE, "saes": named, "metrics": ["l0"], "controls": [], "groups": {}}
    del suite["model"]
    results = run(suite, tmp_path, plugins=with_tiny(), **OPTIONS)
    assert [(r.cell["model"]["name"], r.subject) for r in results] == [("first", "a"), ("first", "c"), ("second", "b")]
    assert values(results)["l0", "b"] == separate[1]["l0", "b"]


def test_registered_saes_have_a_model_too(tmp_path):
    text = """\
suite: mine
model: [testbed, testbed-reward]
data: {use: python-stdlib, context: 16, sequences: 4}
saes:
  - {sae: testbed/relu-*, model: testbed}
  - {sae: testbed-reward/topk, model: testbed-reward}
metrics: [reconstruction]
"""
    (tmp_path / "s.yaml").write_text(text)
    first, second = prepare_parts(tmp_path / "s.yaml", Registry(with_tiny()), RunOptions())
    assert [subject.name for subject in second.subjects] == ["testbed-reward/topk"]
    assert [first.title, second.title] == ["mine, testbed", "mine, testbed-reward"]
    assert len(first.subjects) > 5


MISTAKES = {
    "saes: [{use: tiny, seed: 0, name: a, model: testbed-rewards}]": "4:45: the suite's 'model:' has no 'testbed-rewards'; did you mean 'testbed-reward'?",
    "saes: [{use: tiny, seed: 0, name: a, model: testbed-reward}]": "3:9: no SAE of the suite is of the model 'testbed'",
    "saes: [{use: tiny, seed: 0, name: a, model: [third]}]": "4:45: 'model' is one model of the suite, got ['third']",
    "saes: [{sae: testbed/relu-3, name: a}]": "4:14: 'sae' is the name or glob of registered SAEs, and stands beside",
    "saes: [testbed/relu-3]\ncontrols: [{use: random, of: testbed/relu-4}]": "5:12: control 'random': no SAE of this",
    "saes: [testbed/relu-3, testbed/relu-33]": "4:24: unknown SAE 'testbed/relu-33'",
    "hooks: [blocks.0.hook_resid_prae]": "4:9: model 'testbed' has no hook",
}


@pytest.mark.parametrize("lines", MISTAKES)
def test_a_mistake_is_told_with_its_place(lines, tmp_path, capsys):
    head = "suite: mine\ndata: {use: python-stdlib, context: 16, sequences: 4}\nmodel: [testbed, testbed-reward]\n"
    (tmp_path / "s.yaml").write_text(f"{head}{lines}\nmetrics: [l0]\n")
    assert cli.main(["check", str(tmp_path / "s.yaml"), "--out", str(tmp_path), "--plugin", EVERY_METRIC]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{tmp_path}/s.yaml:{MISTAKES[lines]}")


def test_verbs_of_one_model_refuse_a_suite_of_two(tmp_path, capsys):
    (tmp_path / "s.yaml").write_text(json.dumps(SUITE))
    assert cli.main(["certify", str(tmp_path / "s.yaml"), "--out", str(tmp_path), "--plugin", EVERY_METRIC]) == 2
    assert "take a suite over several models; this one has first, second" in capsys.readouterr().err


def test_check_prints_the_shards_of_each_model_and_of_all_together(tmp_path, capsys):
    (tmp_path / "s.yaml").write_text(json.dumps(SUITE))
    command = ["check", str(tmp_path / "s.yaml"), "--workers", "3", "--block", "10", "--allow", "*"]
    assert cli.main([*command, "--out", str(tmp_path), "--plugin", EVERY_METRIC]) == 0
    printed = capsys.readouterr().out
    assert [line for line in printed.splitlines() if line.startswith("suite ")] == [
        "suite sweep, first: no problems found", "suite sweep, second: no problems found"
    ]  # fmt: skip
    blocks = [line for line in printed.splitlines() if re.match(r"  shards: \d+ blocks of up to 1\d sequences: ", line)]
    assert len(blocks) == 5  # the moments and the cells, of both; what the control of the second is fitted on
    assert printed.count("each worker holds: model ") == 2
    assert re.search(
        r"all 2 together\n  3 workers: roughly \d+ s, and \d+ s for one; \d+% of their time in use", printed
    )
