"""A results folder of a few SAEs and draws of a control, written by the store."""

from __future__ import annotations

import numpy as np

from saeval.results.result import Result
from saeval.results.store import MANIFEST_FORM, Store
from saeval.stats.estimate import Estimate
from saeval.stats.values import Notes, Scalar

DOCUMENTS = 12
LAYOUT = {"rank_by": "ce.loss", "columns": ["ce.loss", "l0.l0"], "against": ["random"]}


def subject(name, **facts):
    return {"name": name, "hook_name": "h", "key": name, "kind": "sae", **facts}


SUBJECTS = [
    *(subject(f"sae-{i}") for i in range(6)),
    *(subject(f"random#{i}", kind="control", control="random", copy=i) for i in range(3)),
]


def fill(folder, *, limit=None, fingerprint="d", only=SUBJECTS, draw=0):
    """Results of two metrics of each subject, one of them without a number, and their manifest."""
    store, cells = Store(folder), []
    for place, one in enumerate(only):
        for metric in ("ce", "l0") if one is not only[-1] else ("l0", "ce"):
            data = {"fingerprint": fingerprint, "use": "x", "limit": limit}
            cell = {"suite": "s", "model": None, "data": data, "metric": metric, "alias": metric, "subjects": [one]}
            store.write(scored(f"{metric}{place}", cell, draw))
            cells.append({"key": f"{metric}{place}", "cell": cell})
    cells.append({"key": "none", "cell": {**cell, "subjects": [subject("never run")]}})
    facts = {"schema": MANIFEST_FORM, "suite": "s", "limit": limit, "leaderboard": LAYOUT, "cells": cells}
    store.write_manifest(facts)
    return folder


def scored(key, cell, draw):
    rng = np.random.default_rng([*key.encode(), draw])
    level = float(key[2:]) + 1
    estimate = Estimate(level, level + rng.normal(size=DOCUMENTS) / 30, np.arange(1.0, DOCUMENTS + 1), 78)
    if cell["metric"] == "l0":
        return Result(key, "undefined", cell, reason="nothing fires") if key == "l01" else Result(
            key, "ok", cell, values={"l0": Scalar(level).record(), "said": Notes(["mind this"]).record()}
        )  # fmt: skip
    values = {"loss": Scalar(estimate, unit="nats", better="lower").record(), "whole": Scalar(level).record()}
    arrays = {"without/loss": estimate.without, "sizes/loss": estimate.sizes}
    return Result(key, "ok", cell, values=values, arrays=arrays, headline=["loss"])
