"""Results folders for pages: SAEs with hostile names, declared facts, a control in draws, and cells without numbers."""

from __future__ import annotations

import numpy as np

from saeval.results.result import Result
from saeval.results.store import MANIFEST_FORM, Store
from saeval.stats.estimate import Estimate
from saeval.stats.values import Array, Curve, Notes, Scalar, Table

SCRIPT = "<script>alert(1)</script>"
MARKUP = "a|b`c`\n\x1b[31mred"
FORMULA = "=cmd()"
CLOSING = "</script><!--<b>"
NAMES = ("plain", SCRIPT, MARKUP, FORMULA, CLOSING, "broken", "empty")
HOOK = "blocks.1.hook_resid_pre"
DOCUMENTS = 24
LAYOUT = {"rank_by": "ce.loss", "columns": ["ce.loss", "l0.l0", "shape.size"], "against": ["random"]}
ARGV = ["/somewhere/bin/saeval", "run", "my suite.yaml", "--out", "results"]


def subjects(names=NAMES):
    """The SAEs, of two architectures and widths, and three draws of a control built from the first."""
    saes = [
        {"name": name, "hook_name": HOOK, "key": f"key{i}", "kind": "sae", "architecture": ("topk", "relu")[i % 2],
         "d_sae": 512 * (1 + i % 3), "format": "saelens", "training": {"steps": 100 + i}}
        for i, name in enumerate(names)
    ]  # fmt: skip
    control = {"hook_name": HOOK, "kind": "control", "control": "random", "of": names[0], "of_key": "key0"}
    draws = [
        {"name": f"random({names[0]})" + f"#{i}" * (i > 0), "key": f"draw{i}", "copy": i, **control} for i in range(3)
    ]
    return [*saes, *draws]


def fill(
    folder, given=None, *, fingerprint="d", model="tiny", suite="made", metrics=("ce", "l0", "shape"), also=(),
):  # fmt: skip
    """Write the results of metrics on each subject, and their manifest; return the folder.

    `also` names shown columns of `ce` that have the numbers of its loss.
    """
    store, cells = Store(folder), []
    for place, subject in enumerate(subjects() if given is None else given):
        for metric in metrics:
            cell = {
                "suite": suite, "model": {"name": model}, "metric": metric, "alias": metric, "subjects": [subject],
                "data": {"fingerprint": fingerprint, "use": "text", "documents": DOCUMENTS, "tokens": 9216}, "params": {"ablation": "mean"},
            }  # fmt: skip
            result = made(f"{metric}-{place}", cell, place)
            for name in (name.removeprefix("ce.") for name in also if metric == "ce" and result.values):
                result.values[name] = result.values["loss"]
                result.arrays |= {f"{part}/{name}": result.arrays[f"{part}/loss"] for part in ("without", "sizes")}
            if subject["name"] != "empty" or metric != "l0":
                store.write(result)
            cells.append({"key": result.key, "cell": cell})
    layout = LAYOUT | {"columns": [*LAYOUT["columns"], *also]}
    facts = {"schema": MANIFEST_FORM, "suite": suite, "limit": None, "leaderboard": layout, "cells": cells}
    store.write_manifest(facts)
    return folder


def made(key, cell, place):
    name = cell["subjects"][0]["name"]
    if name == "broken" and cell["metric"] == "ce":
        return Result(key, "failed", cell, reason=f"RuntimeError: {SCRIPT}", traceback=f"Traceback\n{SCRIPT}\x1b[0m")
    if name == "broken" and cell["metric"] == "l0":
        return Result(key, "undefined", cell, reason="nothing fires")
    rng = np.random.default_rng([*key.encode()])
    shared = np.random.default_rng(1).normal(size=DOCUMENTS)
    level = 1.0 + 0.5 * place if cell["subjects"][0]["kind"] == "sae" else 9.0 + 0.1 * place
    estimate = Estimate(level, level + (shared + 0.2 * rng.normal(size=DOCUMENTS)) / 30, np.full(DOCUMENTS, 4.0), 96)
    provenance = {"argv": ARGV, "saeval": "1.2.3", "libraries": {"torch": "2.x"}, "seconds": 1.5 + place}
    arrays = {}
    if cell["metric"] == "ce":
        values = {"loss": Scalar(estimate, unit="nats", better="lower").record(), "extra": Scalar(level).record()}
        arrays = {"without/loss": estimate.without, "sizes/loss": estimate.sizes}
    elif cell["metric"] == "l0":
        curve = Curve([1.0, 2.0, 4.0], [level, level + 1, level], x_unit="position", unit="features")
        values = {"l0": Scalar(10 * level, unit="features").record(), "by_position": curve.record()}
    else:
        table = Table(["density_from", "density_to", "features"], [[-2.0, -1.0, 30], [-1.0, 0.0, 12]])
        array = Array(rng.normal(size=100), unit="norm")
        size = Scalar(level, better="higher").record() | {"depends": "the number of tokens: few show less"}
        values = {"size": size, "histogram": table.record(), "norms": array.record()}
        values["notes"] = Notes([f"mind {SCRIPT}"]).record()
        arrays = {"value/norms": array.data}
    components = {"sum": {"numerator": 96 * level, "denominator": 96.0}, "counts": list(range(1000))}
    return Result(key, "ok", cell, values=values, components=components, provenance=provenance, arrays=arrays)
