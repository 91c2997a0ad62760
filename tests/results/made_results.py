"""Results without a run."""

from __future__ import annotations

import numpy as np

from saeval.results.result import Result


def result(name, value, influence, better="lower", metric="m", kind="sae", status="ok", reason=None, data="d", **facts):
    """A result of one scalar `v` that each document moves by its `influence`, to first order."""
    influence = np.asarray(influence, dtype=float)
    error = float(np.sqrt((influence**2).sum() * len(influence) / max(len(influence) - 1, 1)))
    record = {"value": value, "stderr": error, "ci95": [value - 2 * error, value + 2 * error], "n": 9}
    cell = {
        "model": None,
        "data": {"fingerprint": data, "use": "x"},
        "metric": metric,
        "alias": metric,
        "subjects": [{"name": name, "hook_name": "h", "kind": kind, **facts}],
    }
    values = {"v": {**record, "unit": "nats", "better": better}} if status == "ok" else {}
    count = len(influence)
    arrays = {"without/v": value - influence * count / max(count - 1, 1), "sizes/v": np.ones(count)}
    return Result(f"{name}-{metric}", status, cell, reason, values, arrays=arrays)


NOISE = np.array([0.1, -0.1, 0.05, -0.05])
