"""What the preflight does about an SAE that it does not believe: stop, leave it out, warn, or nothing."""

from __future__ import annotations

import json
import logging
import shutil

import pytest
from safetensors.torch import load_file, save_file

import saeval_testbed
from saeval import SaevalError, cli, run
from saeval.testing import TinyModel, TinySAE, evaluate_tiny
from saeval.testing.claims import some


class Off(TinySAE):
    """Far from everything it is shown."""

    def decode(self, feature_acts):
        return super().decode(feature_acts) + 100


GROUPS = {"groups": {"good": ["good*"], "all": ["*"]}}
METRICS = [
    "l0",
    "ce",
    {"functional_stability": {"over": "good", "as": "good"}},
    {"functional_stability": {"over": "all"}},
]
OPTIONS = {"controls": [{"use": "random", "seeds": 1}, "zero"], "allow": ["good*"], "batch_size": 24}


def saes(**more):
    return {"good-1": TinySAE(seed=1), **more, "good-2": TinySAE(seed=2)}


def test_a_bad_sae_stops_the_run_before_a_pass_and_the_message_names_the_arguments(tmp_path):
    model = TinyModel()
    with pytest.raises(SaevalError) as caught:
        evaluate_tiny(METRICS, model=model, saes=saes(bad=Off()), out=tmp_path, **GROUPS, **OPTIONS)
    said = str(caught.value)
    assert said.startswith("preflight: bad: ")
    assert len(said.splitlines()) == 1
    assert "allow=['bad']" in said
    assert "skip_failing=True" in said
    assert "--" not in said
    assert model.passes["cut"] == 0  # neither the fit split nor the mean
    assert sum(model.passes.values()) == 3


def test_a_bad_sae_can_be_left_out_with_all_that_is_made_of_it(tmp_path):
    model = TinyModel()
    results = evaluate_tiny(
        METRICS, model=model, saes=saes(bad=Off()), skip_failing=True, out=tmp_path, **GROUPS, **OPTIONS
    )
    good = evaluate_tiny(METRICS, saes=saes(), **GROUPS, **OPTIONS)
    failed = {(r.metric, r.subject) for r in results.failed}
    assert failed == {
        ("l0", "bad"), ("ce", "bad"), ("l0", "random(bad)"), ("ce", "random(bad)"), ("functional_stability", "good-1, bad, good-2"),
        ("functional_stability", "random(good-1)#twin, random(bad)#twin, random(good-2)#twin"),
    }  # fmt: skip
    for result in some(results.failed):
        assert result.reason.startswith("preflight: bad: explains ")
        assert "(run" not in result.reason
        assert result.traceback is None
        stored = json.loads((tmp_path / "evaluate" / f"{result.key}.json").read_text())
        assert (stored["status"], stored["reason"]) == ("failed", result.reason)
    assert next(r for r in results.failed if r.subject == "bad").provenance["preflight"]["bad"][0]["fatal"]
    kept = {(r.metric, r.subject): r.values for r in results if r.status != "failed"}
    alone = {(r.metric, r.subject): r.values for r in good if r.metric != "functional_stability"}
    of_groups = [r for r in good if r.metric == "good"]
    alone |= {(r.metric, r.subject): r.values for r in of_groups}
    assert len(of_groups) == 2
    assert len(kept) == 2 * 5 + 2
    assert kept == alone


def test_a_failed_sae_is_examined_again(tmp_path):
    options = {"skip_failing": True, "out": tmp_path, "key": "these", **OPTIONS}
    first = evaluate_tiny(["l0"], saes=saes(bad=Off()), **options)
    model = TinyModel()
    again = evaluate_tiny(["l0"], saes=saes(bad=Off()), model=model, **options)
    assert sorted(r.subject for r in first.failed) == sorted(r.subject for r in again.failed) == ["bad", "random(bad)"]
    assert sum(model.passes.values()) == 1


def test_all_saes_may_be_left_out():
    results = evaluate_tiny(["l0", "ce"], saes=[Off()], controls=["identity"], allow=(), skip_failing=True)
    assert {(r.subject, r.status) for r in results if r.metric == "ce"} == {("off", "failed"), ("identity", "ok")}


def test_inside_a_training_loop_the_preflight_may_only_warn(caplog):
    with caplog.at_level(logging.WARNING, "saeval"):
        warned = evaluate_tiny(["l0", "ce"], saes=saes(bad=Off()), preflight="warn", **OPTIONS)
    assert not warned.failed
    (message,) = [r.getMessage() for r in caplog.records if "preflight" in r.getMessage()]
    assert message.startswith("preflight: bad: explains ")
    found = next(r for r in warned if r.subject == "bad").provenance["preflight"]["bad"]
    assert [f["check"] for f in found if f["fatal"]] == ["model"]


def test_without_the_preflight_nothing_is_examined(caplog):
    seen = []

    class Watched(Off):
        def encode(self, x):
            seen.append(tuple(x.shape[:2]))
            return super().encode(x)

    with caplog.at_level(logging.WARNING, "saeval"):
        results = evaluate_tiny(["l0"], saes=[Watched()], allow=(), preflight="off", batch_size=24)
    assert [r.status for r in results] == ["ok"]
    assert "preflight" not in results[0].provenance
    assert not caplog.text
    assert seen == [(1, 12), (24, 12)]  # the made-up row that shows its width, and the batch


def test_from_the_command_line_the_message_names_the_flags(tmp_path, capsys):
    folder = tmp_path / "bad"
    shutil.copytree(saeval_testbed.WEIGHTS / "saes" / "relu-3", folder)
    weights = {k: v.float() for k, v in load_file(folder / "sae_weights.safetensors").items()}
    save_file({**weights, "b_dec": weights["b_dec"] + 20}, folder / "sae_weights.safetensors")
    suite = tmp_path / "s.yaml"
    suite.write_text(
        "suite: s\nmodel: testbed\ndata: {use: python-stdlib, context: 32, sequences: 8}\nmetrics: [l0]\n"
        f"saes: [testbed/topk-8, {{use: saelens, path: {folder}, name: bad}}]\n"
    )
    run = ["run", str(suite), "--out", str(tmp_path / "out")]
    assert cli.main(run) == 2
    said = capsys.readouterr().err
    (problem,) = [line for line in said.splitlines() if "preflight" in line]
    assert problem.startswith(f"{suite}:5:24: preflight: bad: ")
    assert "--allow bad uses the SAE anyway, --skip-failing leaves it out" in problem
    assert cli.main([*run, "--skip-failing"]) == 1
    said = capsys.readouterr()
    assert "1 of 2 cells failed" in said.err
    assert "preflight: bad: " in said.out  # the reason stands below the table
    assert cli.main([*run, "--preflight", "warn"]) == 0
    assert cli.main([*run, "--preflight", "off", "--fresh"]) == 0


@pytest.mark.parametrize("preflight", ["warn", "off"])
def test_what_is_left_out_is_not_let_pass(preflight):
    with pytest.raises(SaevalError, match=f"skip_failing=True with preflight='{preflight}': .*; set only one of them"):
        evaluate_tiny(["l0"], skip_failing=True, preflight=preflight)


def test_a_name_that_is_allowed_in_vain_is_a_warning(capsys):
    assert cli.main(["check", "quickstart", "--limit", "2", "--allow", "testbed/relu-99"]) == 0
    assert (
        "warning: --allow testbed/relu-99: no SAE of the suite has this name; did you mean" in capsys.readouterr().out
    )
    assert cli.main(["check", "quickstart", "--limit", "2", "--allow", "testbed/relu-*"]) == 0
    assert "--allow" not in capsys.readouterr().out


class Advances:
    """A display of progress that keeps what it is told of each batch."""

    def __init__(self):
        self.batches = []

    def started(self, title, sequences, done): ...
    def finished(self): ...
    def advanced(self, sequences, tokens):
        self.batches.append((sequences, tokens))


def test_tokens_that_the_preflight_has_run_count_for_no_pass(tmp_path):
    """Else the speed of the first pass would be that of a pass without its model."""
    suite = {
        "suite": "s", "model": "testbed", "saes": ["testbed/relu-3"], "metrics": ["l0"], "batch": 4,
        "data": {"use": "python-stdlib", "context": 16, "sequences": 8},
    }  # fmt: skip
    shown, plain = Advances(), Advances()
    run(suite, out=tmp_path / "a", progress=shown)
    run(suite, out=tmp_path / "b", progress=plain, preflight="off")
    (_, first), (_, second) = plain.batches
    assert first > 0
    assert shown.batches == [(4, 0), (4, second)]
