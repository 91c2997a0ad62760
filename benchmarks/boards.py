"""Time a leaderboard and a comparison of many results, with and without an index, for growing numbers of SAEs.

Run: python benchmarks/boards.py [--saes 16000] [--folder FOLDER]

The results are random with a fixed seed and written by saeval's own store: for SAEs and a few controls at one hook, six
metrics of eight values, each with its leave-one-out values for 100 documents. Every measurement is a fresh process, on
all cores. The folder is kept, so that a second call measures the same files.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from saeval.results.result import Result
from saeval.results.store import MANIFEST_FORM, Store
from saeval.stats.estimate import Estimate
from saeval.stats.values import Scalar

METRICS, VALUES, DOCUMENTS, SEED = 6, 8, 100, 0
CONTROLS = {"random": 8, "zero": 1}
"""Number of draws of each control."""
DATA = {
    "use": "text", "fingerprint": "6e74583b9f118745fa82c25ef8eca897bcc450457cbb175d6e589e222e56c2e9", "context": 128,
    "sequences": 400, "seed": 0, "bos": True, "exclude": ["bos"], "packing": "documents", "documents": DOCUMENTS,
    "tokens": 50_000, "source": "text", "split": "evaluation",
}  # fmt: skip
MODEL = {
    "adapter": "huggingface", "weights": "5753b3a8156946c16169185f22370278abea122a924f9d13b3ad740c9abcc65a",
    "dtype": "float32", "attn_implementation": "default", "task": "causal", "processing": "none", "name": "gpt2",
}  # fmt: skip
PROVENANCE = {
    "saeval": "0.1.0", "commit": "08a849655aa03f4b1513bb3766c90ddbb2692403", "python": "3.11.7", "platform": "Linux",
    "libraries": dict.fromkeys(("torch", "transformers", "transformer-lens", "safetensors", "numpy"), "1.2.3"),
    "plugins": {f"saeval:{name}": "0.1.0" for name in ("core", "data", "fidelity", "formats", "models", "reports")},
    "device": "cpu", "resumes": {"blocks.6.hook_resid_pre": {"max_relative_error": 0.0, "dtype": "float32"}},
    "dtypes": {"model": "float32", "saes": "float32", "sums": "float64"}, "seconds": 0.742, "batch_size": 16,
}  # fmt: skip
LAYOUT = {"rank_by": "m0.v0", "columns": [f"m{m}.v0" for m in range(METRICS)], "against": ["random"]}


def subjects(saes: int) -> list[dict[str, Any]]:
    """Return the records of the SAEs and of the controls."""
    names = [(f"release/width-{i % 7}/sae-{i:05d}", {"kind": "sae"}) for i in range(saes)]
    for control, draws in CONTROLS.items():
        for draw in range(draws):
            facts = {"kind": "control", "control": control, **({"copy": draw} if draws > 1 else {})}
            names.append((f"{control}#{draw}" if draws > 1 else control, facts))
    return [
        {
            "name": name, "hook_name": "blocks.6.hook_resid_pre", "key": f"{place:064x}", "format": "saelens",
            "architecture": "standard", "model_name": "gpt2", "context_size": 128, "prepend_bos": True,
            "normalize_activations": "none", "dtype": "float32",
            **({"sha256": f"{place:064x}"} if facts["kind"] == "sae" else {}), **facts,
        }
        for place, (name, facts) in enumerate(names)
    ]  # fmt: skip


def make(folder: Path, saes: int) -> None:
    """Write the results unless they exist, without fsync, which would take hours."""
    store = Store(folder)
    if (folder / "manifest.json").exists():
        return
    os.fsync = lambda handle: None
    rng = np.random.default_rng(SEED)
    sizes = rng.integers(50, 950, DOCUMENTS).astype(np.float64)
    shared = rng.normal(size=(METRICS, VALUES, DOCUMENTS))
    cells = []
    for place, subject in enumerate(subjects(saes)):
        quality = 2.0 if subject["kind"] == "control" else rng.gamma(4.0, 0.1)
        for metric in range(METRICS):
            cell = {
                "suite": "many", "subjects": [subject], "model": MODEL, "data": DATA, "metric": f"m{metric}",
                "alias": f"m{metric}", "metric_version": 1, "params": {}, "over": None, "supplied_by": "benchmark",
            }  # fmt: skip
            result = Result(f"{place * METRICS + metric:024x}", "ok", cell, provenance=PROVENANCE, headline=["v0"])
            for value in range(VALUES):
                level = quality * (1 + value)
                moved = level * (0.3 * shared[metric, value] + 0.1 * rng.normal(size=DOCUMENTS)) / DOCUMENTS
                estimate = Estimate(level, level + moved, sizes, int(sizes.sum()))
                result.values[f"v{value}"] = Scalar(estimate, unit="nats", better="lower").record()
                result.arrays |= {f"without/v{value}": estimate.without, f"sizes/v{value}": sizes}
            result.components = {"sums": {"numerator": quality, "denominator": 1.0, "n": int(sizes.sum())}}
            store.write(result)
            cells.append({"key": result.key, "cell": cell})
    facts = {"schema": MANIFEST_FORM, "suite": "many", "source": "benchmark", "file": None, "limit": None}
    store.write_manifest({**facts, "leaderboard": LAYOUT, "cells": cells})


MEASURED = """
import json, resource, sys, time
began, cpu = time.perf_counter(), time.process_time()
from saeval import cli
started = time.perf_counter()
code = cli.main(sys.argv[1:])
sys.stdout.flush()
usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
spent = [usage.ru_utime + usage.ru_stime for usage in usages]
wall, inside = time.perf_counter() - began, time.perf_counter() - started
print(json.dumps([code, wall, inside, *spent, *(usage.ru_maxrss for usage in usages)]), file=sys.stderr)
"""


def measured(*words: str) -> str:
    """Run a command and describe its time and memory."""
    # Modules are compiled once, as those of an installed package, and not again by every process.
    env = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    done = subprocess.run([sys.executable, "-c", MEASURED, *words], capture_output=True, text=True, check=True, env=env)
    code, wall, inside, cpu, children_cpu, memory, children_memory = json.loads(done.stderr.splitlines()[-1])
    assert code == 0, done.stderr
    assert "damaged" not in done.stdout
    return (
        f"{wall:6.2f} s ({inside:.2f} without Python's start), CPU {cpu:.2f} + {children_cpu:.2f} s, "
        f"peak {memory / 1024:,.0f} + {children_memory / 1024:,.0f} MiB"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--saes", type=int, nargs="+", default=[160, 1600, 16_000], help="numbers of SAEs, of six results each"
    )
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "saeval-boards")
    arguments = parser.parse_args()
    measured("ls", "reports")  # compiles the modules
    for saes in arguments.saes:
        folder = arguments.folder / f"{saes}"
        began = time.perf_counter()
        make(folder, saes)
        if (seconds := time.perf_counter() - began) > 3:
            time.sleep(3)  # the index does not trust a file written just now
        for file in (folder / "index").glob("*"):
            file.unlink()
        count = (saes + sum(CONTROLS.values())) * METRICS
        print(f"{count:,} results of {saes:,} SAEs (written in {seconds:.0f} s)")
        for name, words in {
            "leaderboard, first": ["leaderboard"], "leaderboard, again": ["leaderboard"],
            "leaderboard, csv": ["leaderboard", "--format", "csv"],
            "compare": ["compare", "release/width-3/sae-00003", "release/width-5/sae-00005"],
        }.items():  # fmt: skip
            print(f"  {name:20}{measured(words[0], str(folder), *words[1:])}", flush=True)


if __name__ == "__main__":
    main()
