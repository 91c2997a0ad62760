"""Runs in experiment trackers: Weights & Biases and MLflow, if the environment asks for them.

`SAEVAL_TRACKERS=wandb`, `mlflow` or `wandb,mlflow` turns them on; without it nothing is imported. The trackers' own
variables, such as `WANDB_MODE` and `MLFLOW_TRACKING_URI`, say where the numbers go.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING

from saeval.plugin import Problem, hookimpl, suggestion
from saeval_trackers.trackers import KINDS, Tracker

if TYPE_CHECKING:
    from saeval.plugin import Plan, Result

VARIABLE = "SAEVAL_TRACKERS"
_RUNNING: list[Tracker] = []


def _asked() -> list[str]:
    return [name.strip() for name in os.environ.get(VARIABLE, "").split(",") if name.strip()]


@hookimpl
def saeval_check(plan: Plan) -> Sequence[Problem]:
    problems = []
    for name in _asked():
        if name not in KINDS:
            problems.append(Problem(f"unknown tracker '{name}'{suggestion(name, KINDS)}", VARIABLE))
        elif find_spec(name) is None:
            problems.append(Problem(f"{name} is not installed; `pip install saeval[{name}]` installs it", VARIABLE))
    return problems


@hookimpl
def saeval_run_started(plan: Plan) -> None:
    _end()  # a run that was interrupted
    for name in _asked():
        _RUNNING.append(KINDS[name](plan))


@hookimpl
def saeval_cell_finished(result: Result) -> None:
    for tracker in _RUNNING:
        tracker.log(result)


@hookimpl
def saeval_run_finished(results: Sequence[Result]) -> None:
    _end()


def _end() -> None:
    while _RUNNING:
        _RUNNING.pop().end()
