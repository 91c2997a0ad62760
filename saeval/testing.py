"""For authors of metrics: a tiny model, data and SAE that need no download, and `check_metric`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

from saeval.api import evaluate
from saeval.data import Dataset, Source
from saeval.hookspecs import hookimpl
from saeval.metric import Metric, undeclared
from saeval.parameters import validated
from saeval.plugins import Plugins
from saeval.results import Results
from saeval.tiny import TinyModel, TinyPairs, TinySAE, tiny_tokens


class InMemory(Source):
    """Data source `in-memory`: rows that a test made, by a name given to `register_rows`."""

    name, kind = "in-memory", "activations"
    rows: dict[str, Dataset] = {}  # noqa: RUF012  # a test's own table, filled by register_rows

    def __init__(self, rows: str) -> None:
        self.key = rows

    def fingerprint(self) -> str:
        return self.rows[self.key].fingerprint

    def dataset(self, split: Literal["evaluation", "fit"], tokenizer: Callable[[], Any] | None = None) -> Dataset:
        return self.rows[self.key if split == "evaluation" else f"{self.key}/fit"]


def register_rows(name: str, rows: Dataset, fit: Dataset | None = None) -> dict[str, Any]:
    """Make rows available to suites of this process; returns the suite's `data:` entry."""
    InMemory.rows[name] = rows
    InMemory.rows[f"{name}/fit"] = fit if fit is not None else rows
    return {"use": "in-memory", "rows": name}


class TinyPlugin:
    """Registers `in-memory` data, and what a test brings."""

    def __init__(
        self, metrics: Sequence[type[Metric]] = (), quantities: Sequence[Any] = (), controls: Any = ()
    ) -> None:
        self._metrics, self._quantities, self._controls = metrics, quantities, controls

    @hookimpl
    def saeval_data(self) -> list[type[Source]]:
        return [InMemory]

    @hookimpl
    def saeval_metrics(self) -> list[type[Metric]]:
        return list(self._metrics)

    @hookimpl
    def saeval_quantities(self) -> list[Any]:
        return list(self._quantities)

    @hookimpl
    def saeval_controls(self) -> list[Any]:
        return list(self._controls)


def tiny_plugins(*metrics: type[Metric], quantities: Sequence[Any] = (), controls: Sequence[Any] = ()) -> Plugins:
    """All installed plugins, and a test's own metrics, quantities and controls."""
    plugins = Plugins()
    plugins.add(TinyPlugin(metrics, quantities, controls), "tests")
    return plugins


def evaluate_tiny(
    metrics: Sequence[Any], *classes: type[Metric], rows: Dataset | None = None, saes: Any = None, model: Any = None,
    quantities: Sequence[Any] = (), control_classes: Sequence[Any] = (), **options: Any,
) -> Results:  # fmt: skip
    """Run metrics on the tiny model, data and SAE, or on those given; random SAEs are allowed."""
    options.setdefault("allow", ("*",))
    data = register_rows(f"rows-{len(InMemory.rows)}", rows if rows is not None else tiny_tokens())
    return evaluate(
        model=model if model is not None else TinyModel(),
        saes=saes if saes is not None else [TinySAE()],
        data=data,
        metrics=metrics,
        plugins=tiny_plugins(*classes, quantities=quantities, controls=control_classes),
        **options,
    )


def check_metric(
    metric: type[Metric], params: Mapping[str, Any] | None = None, *, tolerance: float = 1e-6, **options: Any
) -> dict[str, Any]:
    """Prove that a metric's values do not depend on how the data were cut up.

    Runs it on the tiny model at batch sizes 1, 7 and 32, with rows shuffled and with extra
    padding, and compares every number, those of curves and tables too, to the first run's. Returns the
    first run's numbers. Raises `AssertionError` naming the one that moved, or a value that `value_names` and the
    results do not share. For `subject = "group"` two SAEs are given.
    """
    entry: dict[str, Any] = {metric.name: dict(params or {})}
    saes = [TinySAE(seed=0), TinySAE(seed=1)]
    if metric.subject == "group":
        entry[metric.name]["over"] = "pair"
        options.setdefault("groups", {"pair": ["tinysae*"]})
    pairs = metric.data == "pair"
    if pairs:
        options.setdefault("model", TinyModel(kind="reward"))
    runs: list[tuple[str, Dataset, int]] = [
        (f"batch size {size}", TinyPairs() if pairs else tiny_tokens(), size) for size in (32, 1, 7)
    ]
    if not pairs:
        runs.append(("rows in another order", tiny_tokens(order_seed=1), 7))
        runs.append(("extra padding", tiny_tokens(extra_padding=5), 7))
    first: dict[str, Any] = {}
    for label, rows, size in runs:
        results = evaluate_tiny([entry], metric, rows=rows, saes=saes, batch_size=size, **options)
        scalars = [[n for n, v in r.values.items() if "kind" not in v] for r in results if r.status == "ok"]
        fault = undeclared(metric(**validated(metric, params or {}, metric.name)), scalars)
        assert fault is None, fault
        for result in results:
            assert result.status != "failed", f"{metric.name} failed ({label}): {result.reason}"
            unknown = [name for name in result.headline if name not in result.values]
            assert result.status != "ok" or not unknown, f"{metric.name}.headline: it has no values {unknown}"
            for name, value in _numbers(result.values):
                key = f"{result.subject}: {name}"
                before = first.setdefault(key, value)
                if value is None or before is None:
                    assert value == before, f"{key} is {value} with {label}, {before} at first"
                    continue
                assert abs(value - before) <= tolerance * max(1.0, abs(before)), (
                    f"{key} is {value} with {label}, {before} at first"
                )
    return first


def _numbers(values: Mapping[str, Any]) -> Iterator[tuple[str, float | None]]:
    """Every number of a result by name: a scalar's, a curve's points by their x, a table's cells by their place."""
    for name, record in values.items():
        if record.get("kind") == "curve":
            yield from ((f"{name} at {x:g}", y) for x, y in zip(record["x"], record["y"], strict=True))
        elif record.get("kind") == "table":
            for row, cells in enumerate(record["rows"]):
                cells = zip(record["columns"], cells, strict=True)
                yield from ((f"{name}[{row}].{c}", x) for c, x in cells if isinstance(x, int | float | None))
        elif "kind" not in record:
            yield name, record["value"]


__all__ = [
    "InMemory", "TinyModel", "TinyPairs", "TinySAE", "check_metric", "evaluate", "evaluate_tiny", "register_rows",
    "tiny_plugins", "tiny_tokens",
]  # fmt: skip
