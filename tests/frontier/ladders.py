"""Results with planted values, for tests of fronts, gaps and trajectories."""

from __future__ import annotations

import numpy as np

from saeval.plugin import Estimate, Result

DOCUMENTS = 40


def estimate(value, noise=0.0, seed=0):
    """An estimate whose documents deviate by normal noise of this standard error."""
    deviations = np.random.default_rng(seed).standard_normal(DOCUMENTS) * noise / DOCUMENTS**0.5
    return Estimate(value, value - deviations + deviations.mean(), np.ones(DOCUMENTS), DOCUMENTS)


def result(name, metric, values, hook="blocks.1.hook_resid_pre", alias=None, better=None, **facts):
    """A result of one SAE with these estimates."""
    better = better or {"delta_ce": "lower", "recovered": "higher"}
    records, arrays = {}, {}
    for value, e in values.items():
        records[value] = {
            "value": e.value, "stderr": e.stderr, "ci95": e.ci95 and list(e.ci95), "n": e.n, "unit": "",
            "better": better.get(value.split("_most")[0].split("_least")[0]),
        }  # fmt: skip
        arrays |= {f"without/{value}": e.without, f"sizes/{value}": e.sizes}
    subject = {"name": name, "hook_name": hook, "kind": "sae", "key": name, **facts}
    cell = {"metric": metric, "alias": alias or metric, "subjects": [subject], "model": None, "data": {}}
    return Result(name, "ok", cell, values=records, arrays=arrays)
