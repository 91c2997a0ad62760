"""`StopWhenPrecise`: streams passes over the same rows until the values that `precision:` names are precise."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from saeval.base.errors import Problem, SuiteError, suggestion
from saeval.engine.cell_result import concluded, has_error
from saeval.engine.evaluator import Evaluator
from saeval.engine.running_pass import RunningPass
from saeval.interfaces.model import Model
from saeval.plan.plan import Plan
from saeval.plan.precision import Stopping, StoppingPoint, largest, precise, stopping_points
from saeval.stats.evidence import EvidenceTree
from saeval.stats.values import Scalar, Value


@dataclass(eq=False)
class StopWhenPrecise:
    """The common stop of all subjects: of one pass, or of several if their SAEs do not fit in memory together."""

    plan: Plan
    stopping: Stopping
    running_passes: Sequence[RunningPass]
    model: Model | None
    folds: Mapping[int, EvidenceTree | Exception]

    def reach(self, advance: Callable[[RunningPass, int], None], known: Mapping[str, Any] | None) -> dict[str, Any]:
        """Stream to the stop, or to that of the `known` sample of finished cells; return the sample for the results.

        `SuiteError` if `precision:` names a value that does not exist, or on which no stop can depend.
        """
        rows = self.running_passes[0].dataset
        between, end = stopping_points(rows.clusters), StoppingPoint(len(rows), rows.n_clusters)
        prefix = between[1] if len(between) > 1 else end  # no run stops earlier
        history: list[dict[str, Any]] = []
        for point in [*between, end]:
            for running in self.running_passes:
                if running.place.row == 0:
                    advance(running, min(running.place.batch_size, point.sequences))
                    self._check(running)
                advance(running, point.sequences)
                if len(self.running_passes) > 1:
                    running.evaluator.release_weights()
            for running in self.running_passes:
                if point == prefix:
                    running.keep_prefix(point.documents)
                if point != end and known is None and running.place.row == point.sequences:
                    running.keep_errors(self._errors(running))
                if len(self.running_passes) > 1:
                    running.save()  # all passes save here before one continues, so that they can resume together
            if known is not None and point.sequences == known["sequences"]:
                break
            if point != end and known is None:
                largest_errors = {name: self._largest(point, name) for name in self.stopping.targets}
                errors, subjects = ({name: pair[i] for name, pair in largest_errors.items()} for i in (0, 1))
                history.append({**point._asdict(), "errors": errors, "largest_of": subjects})
                if precise([look["errors"] for look in history], self.stopping.targets):
                    break
        if known is not None:
            return {name: fact for name, fact in known.items() if name not in ("of_prefix", "prefix_components")}
        return {
            "stopped_adaptively": point != end,
            "precision": dict(self.stopping.targets),
            **point._asdict(),
            "tokens": self.running_passes[0].place.tokens,
            "of": end._asdict(),
            "prefix": self.running_passes[0].place.prefix,
            "looks": history,
        }

    def evaluator(self, of_prefix: bool = False) -> Evaluator:
        """Return an evaluator for conclusions, whose folds are sums over the rows streamed so far, or of the prefix."""
        folds: dict[int, EvidenceTree | Exception] = {}
        for running in self.running_passes:
            for summation, total in (running.prefix if of_prefix else running.totals).items():
                if summation.node is not None:
                    folds[summation.node.serial] = running.fold(summation, total)
        return Evaluator(self.model, [], {**self.folds, **folds}, 0, self.running_passes[0].dataset)

    def _values(self, running: RunningPass) -> list[tuple[str, str, dict[str, Value]]]:
        """Return a name of `precision:`, the subject and its values, for each subject that has values now."""
        evaluator, named_values = self.evaluator(), []
        by_key = {summation.key: summation for summation in running.planned.summations}
        for cell in running.planned.cells:
            for name in self.stopping.asked.get(cell.key, []):
                if running.error(by_key[cell.key]) is not None:  # dropped out: it will never have a standard error
                    continue
                try:
                    values = concluded(cell, running.totals[by_key[cell.key]], evaluator)
                except Exception:  # raised again in the cell's conclusion, which reports it
                    continue
                if name.partition(".")[2] not in values and cell.subjects and cell.subjects[0].kind == "hook":
                    continue  # a value of an SAE
                subject = ", ".join(f"{s.name}@{s.hook_name}" for s in cell.subjects)
                named_values.append((name, subject, values))
        return named_values

    def _errors(self, running: RunningPass) -> dict[str, dict[str, float | None]]:
        errors: dict[str, dict[str, float | None]] = {name: {} for name in self.stopping.targets}
        for name, subject, values in self._values(running):
            errors[name][subject] = _error(values.get(name.partition(".")[2]))
        return errors

    def _largest(self, point: StoppingPoint, name: str) -> tuple[float | None, str | None]:
        by_pass = [running.place.errors.get(str(point.sequences), {}).get(name, {}) for running in self.running_passes]
        return largest({subject: error for errors in by_pass for subject, error in errors.items()})

    def _check(self, running: RunningPass) -> None:
        """Check the names of `precision:` against the first values; `SuiteError` if a name is wrong."""
        problems: list[Problem] = []
        for name, _, values in self._values(running):
            metric, _, value_name = name.partition(".")
            usable = [n for n, value in values.items() if has_error(value) and isinstance(value, Scalar)]
            if value_name not in values:
                message = f"precision: metric '{metric}' has no value '{value_name}'{suggestion(value_name, usable)}"
            elif value_name not in usable:
                value = values[value_name]
                if isinstance(value, Scalar) and value.value is None:  # it may have a standard error later
                    continue
                stepwise = isinstance(value, Scalar) and value.stderr is not None
                fault = "moves in steps, so no stop can depend on it" if stepwise else "has no standard error"
                remedy = f"; usable values of '{metric}': {', '.join(usable)}" if usable else ""
                message = f"precision: '{name}' {fault}{remedy}"
            else:
                continue
            problem = self.plan.suite.problem(message, "precision", name, key=True)
            problems += [problem] if problem not in problems else []
        if problems:
            raise SuiteError(problems)


def _error(value: Value | None) -> float | None:
    if not isinstance(value, Scalar) or value.value is None or value.estimate is None:
        return None
    error = value.estimate.stderr
    return error if error is not None and math.isfinite(error) else None
