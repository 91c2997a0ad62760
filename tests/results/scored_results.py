"""Results of one SAE in two metrics, without a run."""

from __future__ import annotations

import numpy as np

from saeval.results.result import Result

NOISE = np.array([0.1, -0.1, 0.05, -0.05])


def scored(name, loss, l0=None, influence=NOISE, hook="h", error=0.01):
    """Results of `ce.delta_ce` and, where given, of `l0.l0`."""
    found = []
    for metric, value, number_, better in (("ce", "delta_ce", loss, "lower"), ("l0", "l0", l0, None)):
        if number_ is None:
            continue
        record = {"value": number_, "stderr": error, "ci95": None, "n": 9, "unit": "nats", "better": better}
        cell = {
            "model": None, "data": {"fingerprint": "d", "use": "x"}, "metric": metric, "alias": metric,
            "subjects": [{"name": name, "hook_name": hook, "kind": "sae"}],
        }  # fmt: skip
        count = len(influence)
        without = number_ - influence * count / (count - 1)
        arrays = {f"without/{value}": without, f"sizes/{value}": np.ones(count)}
        found.append(Result(f"{name}-{metric}", "ok", cell, values={value: record}, arrays=arrays))
    return found
