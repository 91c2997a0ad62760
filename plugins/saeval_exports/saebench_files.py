"""Results as files of SAEBench 0.6.0: one for each SAE and evaluation."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

from saeval.plugin import Result, escapes
from saeval_exports import saebench, saebench_concepts

Made = tuple[dict[str, Any] | None, list[str]]
ENDING = "_eval_results.json"


class Evaluation(NamedTuple):
    """One of SAEBench's evaluations."""

    folder: str
    """Where its files are: those of the core evaluation are in no folder."""
    metrics: Sequence[str]
    """The metrics that have its numbers."""
    content: Callable[[Sequence[Result]], Made]


EVALUATIONS = (
    Evaluation("", saebench.METRICS, saebench.core),
    Evaluation("sparse_probing/", [saebench_concepts.PROBING], saebench_concepts.probing),
    Evaluation("tpp/", [saebench_concepts.TPP], saebench_concepts.tpp),
    Evaluation("scr/", [saebench_concepts.SCR], saebench_concepts.scr),
    Evaluation("absorption/", [saebench_concepts.ABSORPTION], saebench_concepts.absorption),
    Evaluation("autointerp/", [saebench_concepts.AUTOINTERP], saebench_concepts.autointerp),
)
METRICS = tuple(metric for evaluation in EVALUATIONS for metric in evaluation.metrics)


def files(results: Sequence[Result]) -> tuple[dict[str, bytes], list[str]]:
    """Return the content of the files by name, and sentences on what is missing."""
    written: dict[str, bytes] = {}
    notes: list[str] = []
    for evaluation in EVALUATIONS:
        by_sae: dict[tuple[str, str], list[Result]] = {}
        for result in results:
            subjects = result.cell["subjects"]
            wanted = result.cell["metric"] in evaluation.metrics
            if wanted and len(subjects) == 1 and subjects[0].get("kind", "sae") == "sae":
                by_sae.setdefault((subjects[0]["name"], subjects[0]["hook_name"]), []).append(result)
        names = [name for name, _ in by_sae]
        for (name, hook_name), own in by_sae.items():
            some = [result for result in own if result.values]
            if not some:
                metrics = dict.fromkeys(result.cell["metric"] for result in own)
                notes.append(f"{name}: no file, since its metrics {', '.join(metrics)} have no values")
                continue
            content, missing = evaluation.content(some)
            notes += [f"{name}: {sentence}" for sentence in missing]
            if content is not None:
                stem = f"{name}_{hook_name}" if names.count(name) > 1 else name
                file = f"{evaluation.folder}{free(stem, evaluation.folder, written)}{ENDING}"
                written[file] = json.dumps(content, indent=2, allow_nan=False).encode()
    return written, notes


def free(name: str, folder: str, taken: Collection[str]) -> str:
    """Return the stem of a file that is not taken: names may differ only in characters that files cannot have."""
    stems = {file.removesuffix(ENDING).casefold() for file in taken}
    stem = own = escapes.file_name(name)
    number = 1
    while f"{folder}{own}".casefold() in stems:
        number += 1
        own = f"{stem}-{number}"
    return own
