"""Numbers of a run in experiment trackers, offline, and only if they are asked for."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

import saeval_trackers
from saeval.base.errors import SuiteError
from saeval.testing import TinySAE, evaluate_tiny
from saeval.testing.claims import every, some
from saeval_trackers import trackers


class Recorder(trackers.Tracker):
    """A tracker that keeps what it gets."""

    made: list[Recorder] = []  # noqa: RUF012

    def __init__(self, plan):
        self.facts, self.numbers, self.statuses, self.ended = trackers.facts(plan), {}, [], False
        self.made.append(self)

    def log(self, result):
        self.numbers |= trackers.numbers(result)
        self.statuses.append(result.status)

    def end(self):
        self.ended = True


@pytest.fixture
def recorder(monkeypatch):
    monkeypatch.setattr(Recorder, "made", [])
    monkeypatch.setitem(trackers.KINDS, "json", Recorder)  # a module of this name is installed
    return Recorder.made


def test_nothing_is_logged_unless_the_environment_asks(recorder, monkeypatch):
    monkeypatch.delenv("SAEVAL_TRACKERS", raising=False)
    evaluate_tiny(["l0"])
    assert recorder == []


def test_every_number_and_its_error_is_logged_as_it_is_computed(recorder, monkeypatch):
    monkeypatch.setenv("SAEVAL_TRACKERS", "json")
    results = evaluate_tiny(["l0", "reconstruction"], saes={"a|=b": TinySAE(), "c": TinySAE(seed=2)}, controls=["mean"])
    (run,) = recorder
    assert run.ended
    assert len(run.statuses) == len(results)
    assert run.facts["saes"][:2] == ["a|=b", "c"]
    mine = next(r for r in results if (r.metric, r.subject) == ("l0", "c"))
    assert run.numbers["c/l0.l0"] == mine.values["l0"]["value"]
    assert run.numbers["c/l0.l0.stderr"] == mine.values["l0"]["stderr"]
    assert every(isinstance(number, float) for number in run.numbers.values())


def test_an_unknown_or_absent_tracker_stops_the_run_before_it_starts(recorder, monkeypatch):
    monkeypatch.setitem(trackers.KINDS, "no_such_library", Recorder)
    for asked, message in (("wandbb", "did you mean 'wandb'?"), ("no_such_library", "pip install saeval")):
        monkeypatch.setenv("SAEVAL_TRACKERS", asked)
        with pytest.raises(SuiteError, match=message):
            evaluate_tiny(["l0"])
    assert recorder == []


def test_a_run_that_was_interrupted_is_ended_by_the_next(recorder, monkeypatch):
    monkeypatch.setenv("SAEVAL_TRACKERS", "json")
    with monkeypatch.context() as patch:
        patch.setattr(saeval_trackers, "saeval_run_finished", lambda results: None)
        evaluate_tiny(["l0"])
    assert [run.ended for run in some(recorder)] == [False]
    evaluate_tiny(["l0"])
    assert [run.ended for run in some(recorder)] == [True, True]


CHILD = """
import json, sys
from saeval.testing import evaluate_tiny
results = evaluate_tiny(["l0"], name="tracked")
print(json.dumps(results[0].values["l0"]["value"]))
"""


def ran(tmp_path, name, **variables):
    """Run a child process, since trackers leave threads and settings behind; return the L0 that it computed."""
    pytest.importorskip(name)
    environment = {**os.environ, "SAEVAL_TRACKERS": name, **variables}
    child = subprocess.run(
        [sys.executable, "-c", CHILD],
        capture_output=True,
        text=True,
        env=environment,
        cwd=tmp_path,
        timeout=300,
        check=False,
    )
    assert child.returncode == 0, child.stderr
    assert "failed" not in child.stderr
    return json.loads(child.stdout.splitlines()[-1])


@pytest.mark.slow
def test_wandb_keeps_a_run_offline(tmp_path):
    value = ran(tmp_path, "wandb", WANDB_MODE="offline", WANDB_DIR=str(tmp_path), WANDB_SILENT="true")
    (folder,) = (tmp_path / "wandb").glob("offline-run-*")
    (file,) = folder.glob("*.wandb")
    content = file.read_bytes()
    assert b"l0.l0" in content
    assert str(value).encode()[:8] in content


@pytest.mark.slow
def test_mlflow_keeps_a_run_in_files(tmp_path):
    uri = (tmp_path / "runs").as_uri()
    value = ran(tmp_path, "mlflow", MLFLOW_TRACKING_URI=uri, MLFLOW_ALLOW_FILE_STORE="true")
    (file,) = (path for path in (tmp_path / "runs").rglob("l0.l0") if path.is_file())
    assert float(file.read_text().split()[1]) == value
