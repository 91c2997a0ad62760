"""`Tracker`: where the numbers of a run are logged as they are computed."""

from __future__ import annotations

import math
import os
import re
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

from saeval.plugin import escapes

if TYPE_CHECKING:
    from saeval.plugin import Plan, Result


class Tracker(ABC):
    """One run in an experiment tracker."""

    @abstractmethod
    def __init__(self, plan: Plan) -> None:
        """Begin a run named after the plan's suite."""

    @abstractmethod
    def log(self, result: Result) -> None:
        """Log the numbers of a cell, each with its standard error, and the status of a cell without numbers."""

    @abstractmethod
    def end(self) -> None:
        """End the run."""


def facts(plan: Plan) -> dict[str, Any]:
    """Return the facts that a tracker shows of a run: suite, model, data, and names of SAEs and metrics."""
    data = plan.streams.description
    return {
        "suite": plan.name,
        "model": plan.spec.name if plan.spec is not None else None,
        "data": {name: value for name, value in data.items() if isinstance(value, str | int | float | bool)},
        "saes": [escapes.line(subject.name) for subject in plan.subjects],
        "metrics": list(dict.fromkeys(cell.entry.alias for cell in plan.cells)),
        "limited": plan.streams.cut is not None,
    }


def numbers(result: Result) -> dict[str, float]:
    """Return the finite scalars of a cell by `SUBJECT/METRIC.VALUE`, and their errors with `.stderr` after it."""
    subject = escapes.line(result.subject or "model")
    flat = {}
    for name, record in result.values.items():
        for ending, field in (("", "value"), (".stderr", "stderr")):
            number = record.get(field) if "kind" not in record else None
            if isinstance(number, int | float) and math.isfinite(number):
                flat[f"{subject}/{result.metric}.{name}{ending}"] = float(number)
    return flat


class WandB(Tracker):
    """A run in Weights & Biases; its project is that of `WANDB_PROJECT`, or `saeval`."""

    def __init__(self, plan: Plan) -> None:
        import wandb  # late: an optional extra, imported only if it is asked for

        project = os.environ.get("WANDB_PROJECT", "saeval")
        self._run = wandb.init(project=project, name=plan.name, config=facts(plan), reinit="finish_previous")

    def log(self, result: Result) -> None:
        place = f"{escapes.line(result.subject or 'model')}/{result.metric}"
        self._run.log(dict(numbers(result)))
        self._run.summary.update({f"{place}.status": result.status, f"{place}.key": result.key})

    def end(self) -> None:
        self._run.finish()


class MLflow(Tracker):
    """A run in MLflow; its experiment is that of `MLFLOW_EXPERIMENT_NAME`, or `saeval`."""

    def __init__(self, plan: Plan) -> None:
        import mlflow  # late: an optional extra, imported only if it is asked for

        self._client = mlflow.MlflowClient()
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "saeval")
        known = self._client.get_experiment_by_name(name)
        experiment = known.experiment_id if known is not None else self._client.create_experiment(name)
        self._run = self._client.create_run(experiment, run_name=plan.name).info.run_id
        self._client.log_dict(self._run, facts(plan), "run.json")
        self._client.set_tag(self._run, "suite", plan.name)

    def log(self, result: Result) -> None:
        for name, number in numbers(result).items():
            self._client.log_metric(self._run, re.sub(r"[^\w\-. /:]", "_", name, flags=re.ASCII)[:250], number)
        place = re.sub(r"[^\w\-. /:]", "_", f"{result.subject or 'model'}/{result.metric}", flags=re.ASCII)[:240]
        self._client.set_tag(self._run, f"{place}.status", result.status)

    def end(self) -> None:
        self._client.set_terminated(self._run)


KINDS: dict[str, type[Tracker]] = {"wandb": WandB, "mlflow": MLflow}
