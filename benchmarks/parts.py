"""Standard errors beside the spread over disjoint texts: `python benchmarks/parts.py --help`.

Runs the metrics of the shipped suites that need no network on eight disjoint parts of the evaluated modules of the
standard library, at a small size, with the same fit split. If a standard error is right, the standard deviation of the
eight values is about as large as the mean standard error. The ratio of the two has seven degrees of freedom: for one
SAE it lies between 0.49 and 1.51 in 95 of 100 cases even if all errors are right.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np

import saeval
from saeval.plugin import Document, Source, hookimpl
from saeval.stats.randomness import hashed
from saeval_data.stdlib import PythonStdlib
from saeval_testbed.pairs import TestbedPreferences

PARTS = 8


def in_part(module: str, part: int, seed: int) -> bool:
    """Return True if a module belongs to a part, by a hash of its name."""
    return int(hashed(seed, module)) % PARTS == part


class StdlibPart(PythonStdlib):
    """One of eight disjoint parts of the evaluated modules; the fit split is the whole one."""

    name = "stdlib-part"

    def __init__(self, part: int, seed: int = 0) -> None:
        self.part, self.seed = part, seed

    def fingerprint(self) -> str:
        return f"{super().fingerprint()}/{self.part}/{self.seed}"

    def documents(self, split: Literal["evaluation", "fit"]) -> Iterator[Document]:
        for document in super().documents(split):
            if split == "fit" or in_part(document.name, self.part, self.seed):
                yield document


class PairsPart(TestbedPreferences):
    """The pairs from one of eight disjoint parts of the evaluated modules."""

    name = "pairs-part"

    def __init__(self, part: int, parts_seed: int = 0, pairs: int | None = None, fit_share: float = 0.0) -> None:
        super().__init__(pairs=pairs, fit_share=fit_share, made=250)
        self.part, self.parts_seed = part, parts_seed

    def fingerprint(self) -> str:
        return f"{super().fingerprint()}/{self.part}/{self.parts_seed}"

    def records(self) -> Iterator[Any]:
        return (pair for pair in super().records() if in_part(pair.cluster, self.part, self.parts_seed))


@hookimpl
def saeval_data() -> list[type[Source]]:
    return [StdlibPart, PairsPart]


TEXT = {"use": "stdlib-part", "context": 128, "exclude": ["bos"]}
RUNS: dict[str, dict[str, Any]] = {
    "quickstart, testbed, controls, adaptive": {
        "model": "testbed", "data": TEXT,
        "saes": ["testbed/topk-16", "testbed/relu-3", "testbed/e2e", "testbed/mlp_out-1"],
        "controls": ["mean", "zero"],
        "metrics": ["l0", "density", "reconstruction", "ce", {"ce": {"ablation": "zero", "as": "ce_zero"}}, "kl",
                    "downstream_reconstruction"],
    },
    "compat": {
        "model": "testbed", "data": {**TEXT, "exclude": []},
        "saes": ["testbed/topk-16", "testbed/relu-3", "testbed/e2e"],
        "metrics": ["saelens_downstream", "saelens_variance", "saebench_downstream", "saebench_features",
                    "saebench_variance", "dictionary_learning_evaluate"],
    },
    "perturbation": {
        "model": "testbed", "data": TEXT, "saes": ["testbed/mlp_out-1", "testbed/topk-16", "testbed/attn_out-2"],
        "metrics": [{"perturbation": {"draws": 4, "positions": 4}},
                    {"perturbation_curve": {"draws": 4, "positions": 4}}],
    },
    "stability": {
        "model": "testbed", "data": TEXT, "saes": ["testbed/relu-5", "testbed/relu-5-seed1", "testbed/relu-5-seed2"],
        "groups": {"seeds": ["testbed/relu-5*"]},
        "metrics": [{"seed_stability": {"over": "seeds", "draws": 5}},
                    {"functional_stability": {"over": "seeds", "draws": 5}}],
    },
    "reward": {
        "model": "testbed-reward", "data": {"use": "pairs-part", "fit_share": 0.4}, "saes": ["testbed-reward/topk"],
        "metrics": ["reward_margin", "margin_recovered", "reward_attribution", "reward_groups", "counterfactual_audit",
                    "planted_recovery"],
    },
}  # fmt: skip
Values = dict[tuple[str, str], dict[str, list[tuple[float, float | None]]]]


def measured(run: str, sequences: int, pairs: int | None, seed: int) -> Values:
    """Return the values of a run's metrics with their errors, for each subject and part."""
    values: Values = defaultdict(lambda: defaultdict(list))
    for part in range(PARTS):
        suite = RUNS[run]
        data = {**suite["data"], "part": part}
        data |= {"pairs": pairs, "parts_seed": seed} if run == "reward" else {"sequences": sequences, "seed": seed}
        results = saeval.evaluate(**{**suite, "data": data}, plugins=saeval.Plugins([__file__]), preflight="off")
        for result in results:
            for name, record in result.values.items():
                if "kind" not in record and record["value"] is not None:
                    subject = result.cell.get("over") or result.subject
                    values[result.metric, name][subject].append((record["value"], record["stderr"]))
    return values


def ratio(subjects: dict[str, list[tuple[float, float | None]]]) -> tuple[float, float, int] | None:
    """Return the pooled and the largest ratio of spread to error over the subjects, and their number."""
    squares = []
    for of_parts in subjects.values():
        numbers = np.array([value for value, _ in of_parts])
        errors = np.array([np.nan if error is None else error for _, error in of_parts])
        if len(of_parts) == PARTS and np.isfinite(errors).all() and errors.max() > 0:
            squares.append(numbers.var(ddof=1) / np.square(errors.mean()))
    return (float(np.sqrt(np.mean(squares))), float(np.sqrt(max(squares))), len(squares)) if squares else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sequences", type=int, default=16, help="sequences of each part (default 16)")
    parser.add_argument("--pairs", type=int, help="preference pairs of each part (default: all)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--run", choices=list(RUNS), action="append", help="only these runs")
    parser.add_argument("--values", type=Path, help="also write all values and errors to this file, as JSON")
    arguments = parser.parse_args()
    everything = {}
    for run in arguments.run or RUNS:
        start = time.process_time()
        values = measured(run, arguments.sequences, arguments.pairs, arguments.seed)
        print(f"\n{run} ({time.process_time() - start:.0f} s of CPU time)\n")
        print("| value | spread / error | largest of any subject | subjects |\n|---|---|---|---|")
        for (metric, name), subjects in values.items():
            everything[f"{metric}.{name}"] = subjects
            if numbers := ratio(subjects):
                pooled, largest, count = numbers
                print(f"| `{metric}.{name}` | {pooled:.2f} | {largest:.2f} | {count} |", flush=True)
    if arguments.values:
        arguments.values.write_text(json.dumps(everything))


if __name__ == "__main__":
    main()
