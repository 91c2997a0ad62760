"""`check_metric`: tests that a metric's numbers do not depend on batches, order, padding or other SAEs."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import numpy as np
import torch

from saeval.api import evaluate
from saeval.base.parameters import validated
from saeval.collection import Results
from saeval.engine.isolation import watched
from saeval.interfaces.data import Dataset
from saeval.interfaces.documentation import description, documented_claims, documented_values
from saeval.interfaces.metric import Metric, undeclared
from saeval.results.result import Result
from saeval.stats.evidence import Evidence
from saeval.stats.values import Scalar
from saeval.testing.fixtures import register_rows, tiny_plugins
from saeval.testing.substitute_checks import seeded
from saeval.testing.tiny import TinyModel, TinyPairs, TinySAE, Variant, tiny_tokens

ROUNDING = 1e-8
"""Relative difference between batch sizes above which, with a model in float64, sums are not in float64."""
_MANY = 24
"""Sequences of the run that tests how sums round."""
_NOTHING = "no token in the mask"
_SIGNED = ("cosine", "correlation", "sign")
"""Words of units in which -1 is an ordinary value."""
_WITHOUT_A_REASON = {Scalar(number).reason for number in (math.nan, math.inf, -math.inf)}

_STATE = "keep nothing in globals, on classes or in default arguments"
_KEYED = "draw from saeval.plugin.normal(hashed(seed, token_keys), d), which depends on the token alone"
_AGAIN = (
    f"the two runs are identical, so it keeps state between them or draws unseeded random numbers; {_STATE}, "
    f"and {_KEYED}"
)
_SEED = f"it draws from a global random generator (torch.rand, dropout, numpy.random); {_KEYED}"
_BATCHES = (
    "it depends on how rows are split into batches: a mean or maximum within each batch, a row's place in its batch, "
    "the first or last batch kept, or an `__add__` that does not sum; return sums and counts as evidence (Mean.of, "
    "Ratio.of), and divide in conclude"
)
_ORDER = (
    "it depends on the order of rows: a row's number, earlier rows, or an `__add__` in which order matters; use "
    "sequence_ids to identify rows"
)
_PADDING = (
    "it reads positions outside the mask, or counts them; pass the mask to Mean.of or Ratio.of, or select with "
    "x[mask] first"
)
_SHIFT = (
    "it treats one position of the row, such as position 0, differently; the mask already excludes positions that are "
    "not scored, such as BOS. If a value depends on the position by design, or on the rows that a Sample holds, name "
    "it: check_metric(..., by_position=['that_value'])"
)
_CLUSTERS = (
    "it computes with document ids, which are only names; leave batch.clusters to the evidence. If a value is drawn at "
    "random by document, name it: check_metric(..., by_document=['that_value'])"
)
_ALONE = f"another SAE of the same run changes it; {_STATE}"


@dataclass(frozen=True)
class _Trial:
    """A run that must have the numbers of the first run, and the likely cause if it has not."""

    label: str
    cause: str
    size: int = 7
    order_seed: int | None = None
    extra_padding: int = 0
    variant: Variant | None = None
    fit: Variant | None = None
    """Rows of the fit split, if not the evaluated rows: fitting on changed rows would change the numbers."""
    seed: int = 0


_TRIALS = (
    _Trial("the same run again", _AGAIN, size=32),
    _Trial("another seed of the global random generators", _SEED, size=32, seed=1),
    _Trial("batch size 7", _BATCHES),
    _Trial("batch size 1", _BATCHES, size=1),
    _Trial("rows in another order", _ORDER, order_seed=1),
    _Trial("extra padding", _PADDING, extra_padding=5),
    _Trial("other token ids in the padding", _PADDING, variant=Variant(other_padding=True)),
    _Trial("other document ids", _CLUSTERS, variant=Variant(other_clusters=True), fit=Variant()),
    _Trial("every row one position further right", _SHIFT, variant=Variant(shift=1), fit=Variant(shift=0)),
)


def check_metric(
    metric: type[Metric], params: Mapping[str, Any] | None = None, *, tolerance: float = 1e-6,
    by_position: Sequence[str] = (), by_document: Sequence[str] = (), **options: Any,
) -> dict[str, Any]:  # fmt: skip
    """Test that a metric's values do not depend on how the data are split up, or on what else is run.

    Runs the metric on a tiny model about fifteen times: twice the same, with other global seeds, at batch sizes 1, 7
    and 32, with rows in another order, with extra and other padding, with other document ids, with rows shifted by one
    position, with each SAE alone, and with a model in float64. Compares every number, standard error, curve, table and
    array with those of the first run, up to `tolerance` (relative; absolute below 1). Every call is checked for writes
    into its arguments and for state. A value that is NaN without a reason, or -1 as a placeholder, is an error, and so
    is a metric without any value.

    `by_position` and `by_document` are globs for values that depend by design on the position of a token in its row,
    such as a curve by position, or on document ids, such as random draws by document.

    Returns the numbers of the first run by `SAE: value`. Raises `AssertionError` with the number that changed, the
    likely cause and the remedy. A metric with `subject = "group"` gets two SAEs. `options` are those of
    `saeval.evaluate`; `quantities` and `control_classes` add what else the metric needs. A `model` that is not a
    `TinyModel` is not run in float64.
    """
    return _Check(metric, dict(params or {}), tolerance, options).run({_SHIFT: by_position, _CLUSTERS: by_document})


class _Check:
    def __init__(self, metric: type[Metric], params: dict[str, Any], tolerance: float, options: dict[str, Any]) -> None:
        self.metric, self.tolerance, self.options = metric, tolerance, options
        self.pairs = metric.data == "pair"
        if metric.subject == "group":
            params = {**params, "over": "pair", "controls": []}
            options.setdefault("groups", {"pair": ["tinysae*"]})
        self.entry = {metric.name: params}
        self.model = options.pop("model", None) or TinyModel(kind="reward" if self.pairs else "causal")
        self.saes = {"tinysae": TinySAE(seed=0), "tinysae-1": TinySAE(seed=1)}
        quantities, controls = options.pop("quantities", ()), options.pop("control_classes", ())
        self.plugins = tiny_plugins(metric, quantities=quantities, controls=controls)
        self._narrow: dict[str, str] = {}
        """The dtype of each sum, by field, that `observe` returned in less than float64."""

    def run(self, exempt: Mapping[str, Sequence[str]]) -> dict[str, Any]:
        """Run all checks; return the first run's numbers. `exempt`: globs of the values that a cause may change."""
        self._check_documentation()
        with watched(self):
            first = self._results("first run", self._rows(), size=32)
        self._check_values(first)
        if self._narrow:
            field, dtype = next(iter(self._narrow.items()))
            raise AssertionError(
                f"{self.metric.name}: observe returns {field} in {dtype}, which loses digits as batches are added; "
                f"make it float64, as in x.double().sum()"
            )
        expected = _facts(first)
        streams = hasattr(self.metric, "observe")
        for trial in _TRIALS:
            if "*" not in (globs := exempt.get(trial.cause, ())):
                rows = self._rows(trial.variant, order_seed=trial.order_seed, extra_padding=trial.extra_padding)
                fit = self._rows(trial.fit) if trial.fit else None
                with watched(self) if trial.size == 7 and trial.cause is _BATCHES else nullcontext():
                    results = self._results(trial.label, rows, trial.size, fit=fit, seed=trial.seed)
                self._compare(_facts(results), expected, trial.label, trial.cause, self.tolerance, globs)
        if self.metric.subject != "group":
            for name, sae in self.saes.items():
                alone = _facts(self._results(f"{name} alone", self._rows(), 7, saes={name: sae}))
                self._compare(alone, {k: expected.get(k) for k in alone}, f"{name} alone", _ALONE, self.tolerance)
        if streams:
            self._check_errors(expected)
            self._check_rounding()
            self._check_empty()
        return {f"{r.subject}: {name}": value for r in first for name, value in _numbers(r.values)}

    def _rows(self, variant: Variant | None = None, many: int | None = None, **cut: Any) -> Dataset:
        if self.pairs:
            return TinyPairs(**({"pairs": many} if many else {}), **cut, variant=variant)
        return tiny_tokens(**({"rows": many} if many else {}), **cut, variant=variant)

    def _results(self, label: str, rows: Dataset, size: int, *, seed: int = 0, **changed: Any) -> Results:
        """Run the metric; `AssertionError` if a cell failed."""
        fit = changed.pop("fit", None)
        options = {"model": self.model, "saes": self.saes, "allow": ["*"], **self.options, **changed}
        data = register_rows(f"conformance-{self.metric.name}", rows, fit)
        with seeded(seed):
            results = evaluate(data=data, metrics=[self.entry], plugins=self.plugins, batch_size=size, **options)
        for result in results:
            message = f"{self.metric.name} failed ({label}): {result.reason}{_hint(result, label)}"
            assert result.status != "failed", f"{message}\n\n{result.traceback}"
        return results

    def watches(self, function: Callable[..., Any]) -> bool:
        """True for the metric's own methods: every call of them is checked for writes and for state."""
        return isinstance(getattr(function, "__self__", None), self.metric)

    def returned(self, function: Callable[..., Any], value: Any) -> None:
        """Note the fields that are summed in less than float64."""
        for evidence in value.values() if isinstance(value, dict) else [value]:
            if isinstance(evidence, Evidence) and is_dataclass(evidence) and type(evidence).__add__ is Evidence.__add__:
                for field in fields(evidence):
                    dtype = str(getattr(getattr(evidence, field.name), "dtype", "")).removeprefix("torch.")
                    if dtype in ("float32", "float16", "bfloat16"):
                        self._narrow[f"'{field.name}' of {type(evidence).__name__}"] = dtype

    def _check_documentation(self) -> None:
        """`ls` has a line to print, and `show` can read the sections `Values:` and `Claims:`."""
        assert description(self.metric), (
            f"{self.metric.name} has no docstring: say in its first line, which `saeval ls metrics` prints, what it "
            "measures, and below `Values:` the unit and range of each value"
        )
        try:
            documented_values(self.metric)
            documented_claims(self.metric)
        except ValueError as error:
            raise AssertionError(f"the docstring of {error}") from None

    def _check_values(self, results: Results) -> None:
        """Check that each value is a number or has a reason why not."""
        reasons = []
        scalars = [[n for n, v in r.values.items() if "kind" not in v] for r in results if r.status == "ok"]
        params = {k: v for k, v in self.entry[self.metric.name].items() if k not in ("over", "controls")}
        fault = undeclared(self.metric(**validated(self.metric, params, self.metric.name)), scalars)
        assert fault is None, fault
        for result in results:
            for which, names in (("headline", result.headline), ("main", result.main or [])):
                unknown = [name for name in names if name not in result.values]
                assert result.status != "ok" or not unknown, f"{self.metric.name}.{which}: unknown values {unknown}"
            reasons += [result.reason] if result.status == "undefined" else []
            for name, record in result.values.items():
                what = f"{result.subject}: {name}"
                message = f"{what} is not finite ({record.get('reason')}) and has no reason; "
                remedy = "give one: raise Undefined('no feature fires'), or Scalar.undefined('...') for one of several"
                assert record.get("reason") not in _WITHOUT_A_REASON, message + remedy
                array = result.arrays.get(f"value/{name}")
                all_nan = array is not None and array.size and array.dtype.kind == "f" and np.isnan(array).all()
                assert not all_nan, f"{what} is NaN throughout; {remedy}"
        placeholders = {name for r in results for name, x in r.values.items() if _is_minus_one(x)}
        for name in placeholders:
            records = [r.values[name] for r in results if name in r.values]
            assert not all(_is_minus_one(x) for x in records), (
                f"{name} is -1 for every SAE: if the value does not exist, raise Undefined('why') or return "
                f"Scalar.undefined('why'); if -1 is the value, make it an Estimate, or name its unit (cosine, "
                f"correlation, sign)"
            )
        has_values = any(x is not None for r in results for _, x in _numbers(r.values)) or any(
            r.arrays for r in results
        )
        assert has_values, (
            f"{self.metric.name} has no value on the tiny model and data, so nothing can be tested "
            f"({'; '.join(dict.fromkeys(map(str, reasons)))}); pass parameters, controls or a model with which it has"
        )

    def _check_errors(self, expected: Mapping[str, Any]) -> None:
        """Check that standard errors are over documents: the same tokens twice in a document are no more evidence."""
        doubled = _facts(self._results("every row twice", self._rows(Variant(twice=True)), 7, fit=self._rows()))
        for key, error in expected.items():
            value = key.removesuffix(" stderr")
            if value == key or error is None or error == 0 or doubled.get(key) is None:
                continue
            same = _close(doubled.get(value), expected.get(value), self.tolerance)
            ratio = doubled[key] / error
            assert not (same and abs(ratio - 0.5**0.5) < 0.06), (
                f"the {key} is {doubled[key]:.6g} with every row twice in its document, {error:.6g} in the first run: "
                f"it is over tokens or rows, but those of one document are not independent; conclude from an Estimate, "
                f"such as total.value, whose error is over documents"
            )

    def _check_empty(self) -> None:
        """Check that no value is -1 when no token is scored: a placeholder would be taken for a value."""
        rows = self._rows(Variant(nothing_scored=True))
        results = self._results(_NOTHING, rows, 7, fit=self._rows())
        for result in results:
            for name, record in result.values.items():
                assert record.get("value") != -1, (
                    f"{result.subject}: {name} is -1 when no token is in the mask, but there is no value: "
                    f"raise Undefined('no token is in the mask'), or return Scalar.undefined('...')"
                )
                assert record.get("reason") not in _WITHOUT_A_REASON, (
                    f"{result.subject}: {name} is not finite ({record.get('reason')}) where no token is in the mask; "
                    f"guard it: raise Undefined('no token is in the mask') if total.n.sum() is 0"
                )

    def _check_rounding(self) -> None:
        """Check the metric's sums for rounding; with model and SAE in float64 nothing else rounds."""
        if not isinstance(self.model, TinyModel):
            return
        saes = {name: TinySAE(seed=i, dtype=torch.float64) for i, name in enumerate(self.saes)}
        exact: dict[str, Any] = {"model": self.model.converted(torch.float64), "saes": saes}
        if "sae_dtype" not in self.options:
            exact["sae_dtype"] = "float64"
        rows = self._rows(many=_MANY)
        label = "a model in float64"
        whole, split = (_facts(self._results(label, rows, size, **exact)) for size in (_MANY, 1))
        cause = "it sums in less than float64; sum with x.double(), or return Mean.of and Ratio.of, which do"
        self._compare(split, whole, f"batch size 1 and {label}", cause, ROUNDING)

    def _compare(
        self, facts: Mapping[str, Any], expected: Mapping[str, Any], label: str, cause: str, tolerance: float,
        exempt: Sequence[str] = (),
    ) -> None:  # fmt: skip
        for key in [*expected, *facts]:
            name = key.partition(": ")[2]
            if any(fnmatch.fnmatchcase(name, f"{glob}{more}") for glob in exempt for more in ("", " *", "[[]*")):
                continue
            now, before = facts.get(key, "missing"), expected.get(key, "missing")
            assert _close(now, before, tolerance), (
                f"{key} is {_shown(now)} with {label}, {_shown(before)} in the first run: {cause}"
            )


def _close(now: Any, before: Any, tolerance: float) -> bool:
    if isinstance(now, np.ndarray) and isinstance(before, np.ndarray):
        if now.dtype.kind in "fc" and now.shape == before.shape:
            return bool(np.allclose(now, before, rtol=tolerance, atol=tolerance, equal_nan=True))
        return bool(np.array_equal(now, before))
    if isinstance(now, float) and isinstance(before, float) and math.isfinite(before):
        return abs(now - before) <= tolerance * max(1.0, abs(before))
    return bool(now == before)


def _shown(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"an array {list(value.shape)} that begins {value.reshape(-1)[:3].tolist()}"
    return str(value)


def _is_minus_one(record: Mapping[str, Any]) -> bool:
    """True if a value is exactly -1 without a standard error, in a unit in which -1 is not an ordinary value."""
    signed = any(word in str(record.get("unit")) for word in _SIGNED)
    return "kind" not in record and record["value"] == -1 and not record["stderr"] and not signed


def _facts(results: Results) -> dict[str, Any]:
    """Return everything that the trials compare, by `SAE: name`."""
    facts: dict[str, Any] = {}
    for result in results:
        by_name: dict[str, Any] = {"status": result.status, **dict(_numbers(result.values))}
        for name, record in result.values.items():
            if "kind" not in record:
                by_name |= {f"{name} stderr": record["stderr"], f"{name} n": record["n"]}
            elif record["kind"] == "curve":
                points = zip(record["x"], record["stderr"], strict=True)
                by_name |= {f"{name} at {x:g} stderr": error for x, error in points}
            elif record["kind"] == "array":
                by_name[name] = result.arrays[f"value/{name}"]
        facts |= {f"{result.subject}: {name}": _number(x) for name, x in by_name.items()}
    return facts


def _number(value: Any) -> Any:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


def _numbers(values: Mapping[str, Any]) -> Iterator[tuple[str, float | None]]:
    """Yield every number of a result by name: scalars, points of curves by x, cells of tables by row and column."""
    for name, record in values.items():
        if record.get("kind") == "curve":
            yield from ((f"{name} at {x:g}", y) for x, y in zip(record["x"], record["y"], strict=True))
        elif record.get("kind") == "table":
            for row, cells in enumerate(record["rows"]):
                cells = zip(record["columns"], cells, strict=True)
                yield from ((f"{name}[{row}].{c}", x) for c, x in cells if isinstance(x, int | float | None))
        elif "kind" not in record:
            yield name, record["value"]


def _hint(result: Result, label: str) -> str:
    """Return the usual cause of an error, found by its text: torch and numpy have no classes for these."""
    if "must match the size of tensor" in str(result.reason) or "could not be broadcast" in str(result.reason):
        return (
            "; activations, reconstructions and feature_acts are [batch, seq, d], the mask is [batch, seq]: write "
            "mask[..., None], or reduce to [batch, seq] first, as in x.square().sum(-1)"
        )
    if label == _NOTHING:
        return "; without a scored token there is no value: raise Undefined('no token is in the mask')"
    if "same dtype" in str(result.reason) or "expected scalar type" in str(result.reason):
        return "; models compute in float64, float32 or bfloat16: convert your own tensors, as in y.to(x.dtype)"
    return ""
