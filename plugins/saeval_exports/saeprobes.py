"""Results as the files of sae-probes 0.4: a list with an entry for each k, for each SAE and task (run_sae_evals.py)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from saeval.plugin import Result, escapes

METRICS = ("saeprobes",)
NORMAL = 1024
"""Number of texts to fit of sae-probes' normal setting; any other is one of its setting of scarcity."""
SCORES = ("test_f1", "test_acc", "test_auc", "val_auc")


def files(results: Sequence[Result]) -> tuple[dict[str, bytes], list[str]]:
    """Return the content of the files by name, in a folder for each SAE, and sentences on what is missing."""
    written: dict[str, bytes] = {}
    folders: dict[str, str] = {}
    notes = []
    for result in results:
        subjects = result.cell["subjects"]
        if result.cell["metric"] not in METRICS or len(subjects) != 1 or subjects[0].get("kind", "sae") != "sae":
            continue
        name = subjects[0]["name"]
        if not result.values:
            notes.append(f"{name}: no files, since {result.metric} has no values")
            continue
        if (result.cell.get("params") or {}).get("corrupt_frac") is not None:
            notes.append(f"{name}: {result.metric} has wrong labels; sae-probes has no files of that for features")
            continue
        if name not in folders:
            folders[name] = _free(name, list(folders.values()))
        own = _of_sae(result)
        taken = [file for file in own if f"{folders[name]}/{file}" in written]
        if taken:
            notes.append(f"{name}: {result.metric} has the same files as another configuration: not written")
            continue
        written |= {f"{folders[name]}/{file}": content for file, content in own.items()}
    return written, notes


def _free(name: str, taken: Sequence[str]) -> str:
    folder = own = escapes.file_name(name)
    number = 1
    while own.casefold() in {other.casefold() for other in taken}:
        number += 1
        own = f"{folder}-{number}"
    return own


def _of_sae(result: Result) -> dict[str, bytes]:
    """Return the files of one configuration for one SAE."""
    params, hook_name = result.cell.get("params") or {}, result.cell["subjects"][0]["hook_name"]
    penalty, binarize, size, frac = (params.get(key) for key in ("penalty", "binarize", "train_size", "frac"))
    setting = "imbalance" if frac is not None else "scarcity" if size != NORMAL else "normal"
    model = escapes.file_name(str((result.cell["model"] or {}).get("name") or "model"))
    folder = f"sae_probes_{model}/{setting}_setting"
    record = result.values["tasks"]
    rows = [dict(zip(record["columns"], row, strict=True)) for row in record["rows"]]
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    by_task: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        entry = {score: row[score] for score in SCORES}
        entry |= {"k": row["k"], "dataset": row["task"], "hook_name": hook_name, "reg_type": penalty}
        entry |= {
            "binarize": binarize,
            "indices": result.array("indices")[tasks.index(row["task"])][: row["k"]].tolist(),
        }
        own = {"scarcity": {"num_train": row["fit texts"]}, "imbalance": {"frac": frac}, "normal": {}}[setting]
        by_task.setdefault(row["task"], []).append(entry | own)
    words = {"scarcity": f"{size}_", "imbalance": f"frac{frac}_", "normal": ""}[setting]
    ending = f"{words}{penalty}{'_binarized' if binarize else ''}.json"
    return {
        f"{folder}/{escapes.file_name(f'{task}_{hook_name}_{ending}')}": json.dumps(
            entries, indent=4, ensure_ascii=False, allow_nan=False
        ).encode()
        for task, entries in by_task.items()
    }
