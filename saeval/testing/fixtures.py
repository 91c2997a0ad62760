"""Fixtures for tests of plugins: data in memory by name, a test's classes as a plugin, runs on the tiny model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from saeval.api import evaluate
from saeval.collection import Results
from saeval.interfaces.data import Dataset, Source
from saeval.interfaces.judge import Judge
from saeval.interfaces.metric import Metric
from saeval.registry.discovery import Plugins
from saeval.registry.hookspecs import hookimpl
from saeval.testing.tiny import TinyModel, TinySAE, tiny_tokens


class InMemory(Source):
    """Data source `in-memory`: rows by the name under which a test registered them with `register_rows`."""

    name, kind = "in-memory", "activations"
    rows: dict[str, Dataset] = {}  # noqa: RUF012  # filled by register_rows

    def __init__(self, rows: str) -> None:
        self.key = rows

    def fingerprint(self) -> str:
        return self.rows[self.key].fingerprint

    def dataset(self, split: Literal["evaluation", "fit"], tokenizer: Callable[[], Any] | None = None) -> Dataset:
        return self.rows[self.key if split == "evaluation" else f"{self.key}/fit"]


def register_rows(name: str, rows: Dataset, fit: Dataset | None = None) -> dict[str, Any]:
    """Make rows available to suites of this process; return the suite's `data:` entry.

    `fit` holds the rows of the fit split; without it they are the same rows.
    """
    InMemory.rows[name] = rows
    InMemory.rows[f"{name}/fit"] = fit if fit is not None else rows
    return {"use": "in-memory", "rows": name}


@dataclass(eq=False)
class TinyPlugin:
    """A plugin with the data source `in-memory` and a test's own metrics, quantities, controls and judges."""

    metrics: Sequence[type[Metric]] = ()
    quantities: Sequence[Any] = ()
    controls: Sequence[Any] = ()
    judges: Sequence[type[Judge]] = ()

    @hookimpl
    def saeval_data(self) -> list[type[Source]]:
        return [InMemory]

    @hookimpl
    def saeval_metrics(self) -> list[type[Metric]]:
        return list(self.metrics)

    @hookimpl
    def saeval_quantities(self) -> list[Any]:
        return list(self.quantities)

    @hookimpl
    def saeval_controls(self) -> list[Any]:
        return list(self.controls)

    @hookimpl
    def saeval_judges(self) -> list[type[Judge]]:
        return list(self.judges)


def tiny_plugins(
    *metrics: type[Metric], quantities: Sequence[Any] = (), controls: Sequence[Any] = (),
    judges: Sequence[type[Judge]] = (),
) -> Plugins:  # fmt: skip
    """Return all installed plugins, with a test's own metrics, quantities, controls and judges added."""
    plugins = Plugins()
    plugins.add(TinyPlugin(metrics, quantities, controls, judges), "tests")
    return plugins


def evaluate_tiny(
    metrics: Sequence[Any], *classes: type[Metric], rows: Dataset | None = None, fit: Dataset | None = None,
    saes: Any = None, model: Any = None, quantities: Sequence[Any] = (), control_classes: Sequence[Any] = (),
    judge_classes: Sequence[type[Judge]] = (), **options: Any,
) -> Results:  # fmt: skip
    """Run metrics on the tiny model, data and SAE, or on those given, and return the results.

    `classes` are metric classes that `metrics` may name. Without `fit` the rows are the fit split as well. The
    preflight allows all SAEs, since random ones would not pass. `options` are those of `saeval.evaluate`.
    """
    options.setdefault("allow", ("*",))
    data = register_rows(f"rows-{len(InMemory.rows)}", rows if rows is not None else tiny_tokens(), fit)
    return evaluate(
        model=model if model is not None else TinyModel(),
        saes=saes if saes is not None else [TinySAE()],
        data=data,
        metrics=metrics,
        plugins=tiny_plugins(*classes, quantities=quantities, controls=control_classes, judges=judge_classes),
        **options,
    )
