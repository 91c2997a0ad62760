"""Results as files of SAEBench 0.6.0: sparse probing, TPP, SCR, absorption, autointerp (evals/*/eval_output.py).

Its schemas have fields for some numbers of features only; other numbers are left out, as are those that do not exist.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from saeval.plugin import Result
from saeval_exports.saebench import number, output

PROBING, TPP, SCR, ABSORPTION = "saebench_probing", "saebench_tpp", "saebench_scr", "absorption"
AUTOINTERP = "saebench_autointerp"
K = (1, 2, 5, 10, 20, 50, 100)
N = (2, 5, 10, 20, 50, 100, 500)
"""Numbers of features that the schemas have fields for."""
LEAST_LETTERS = 20
"""SAEBench has no result for fewer letters."""
Made = tuple[dict[str, Any] | None, list[str]]
"""The content of a file, None for none, and sentences on what is missing."""


def probing(results: Sequence[Result]) -> Made:
    """Return the content of an SAE's file of sparse probing: a data set for each column of labels."""
    own, missing = _same_but_for_tasks(results)
    params = _params(own[0])
    accuracies: dict[str, dict[str, dict[str, float]]] = {}
    for result in own:
        for row in _rows(result, "classes"):
            by_key = accuracies.setdefault(row["dataset"], {})
            for key in row.keys() - {"dataset", "class", "fit texts", "texts"}:
                by_key.setdefault(key, {})[row["class"]] = row[key]
    fields = ["test_accuracy", *(f"top_{k}_test_accuracy" for k in K)]
    details = [
        {"dataset_name": f"{name}_results", **{key: statistics.fmean(own.values()) for key, own in by_key.items()}}
        for name, by_key in accuracies.items()
    ]
    left_out = [k for k in params.get("k", ()) if k not in K]
    if left_out:
        missing.append(f"SAEBench has no fields for k = {', '.join(map(str, left_out))}: not in the file")
    known = {f"{kind}_{field}" for kind in ("llm", "sae") for field in fields}
    details = [{key: value for key, value in row.items() if key in {"dataset_name", *known}} for row in details]
    metrics = {kind: _means(details, [f"{kind}_{field}" for field in fields]) for kind in ("llm", "sae")}
    if "sae_test_accuracy" not in metrics["sae"]:
        missing.append("saebench_probing has no sae_test_accuracy: not in the file")
    config = {
        **_config(own[0]),
        "dataset_names": list(accuracies),
        "probe_train_set_size": params.get("train_size"),
        "probe_test_set_size": params.get("test_size"),
        "k_values": list(params.get("k", ())),
        "lower_vram_usage": params.get("lower_vram_usage"),
    }
    by_class = {f"{name}_results": by_key for name, by_key in accuracies.items()}
    return output("sparse_probing", own, config, metrics, details, by_class), missing


def tpp(results: Sequence[Result]) -> Made:
    """Return the content of an SAE's file of TPP: a data set for each choice of tasks."""
    parts = ("total_metric", "intended_diff_only", "unintended_diff_only")
    return _removals("tpp", results, [f"tpp_threshold_{n}_{part}" for n in N for part in parts])


def scr(results: Sequence[Result]) -> Made:
    """Return the content of an SAE's file of SCR: a data set for each pair of tasks."""
    return _removals("scr", results, [f"scr_{kind}_threshold_{n}" for n in N for kind in ("dir1", "metric", "dir2")])


def _removals(kind: str, results: Sequence[Result], fields: Sequence[str]) -> Made:
    own, missing = _same_but_for_tasks(results)
    params, details = _params(own[0]), []
    for result in own:
        values = {field: value for field in fields if (value := number(result, field)) is not None}
        lacking = [field for field in result.values if field in fields and field not in values]
        if lacking:
            missing.append(f"{result.metric} has no {', '.join(lacking)}: not in the file")
        details.append({"dataset_name": f"{_dataset(result)}_{kind}_{_tasks(result)}_results", **values})
    left_out = [n for n in params.get("n", ()) if n not in N]
    if left_out:
        missing.append(f"SAEBench has no fields for N = {', '.join(map(str, left_out))}: not in the file")
    config = {
        **_config(own[0]),
        "dataset_names": sorted({_dataset(result) for result in own}),
        "perform_scr": kind == "scr",
        "early_stopping_patience": params.get("epochs"),
        "train_set_size": params.get("train_size"),
        "test_set_size": params.get("test_size"),
        "probe_epochs": params.get("epochs"),
        "n_values": list(params.get("n", ())),
        "column1_vals_lookup": {},
    }
    config["context_length"] = params.get("context_length") or config["context_length"]
    return output(kind, own, config, {f"{kind}_metrics": _means(details, fields)}, details), missing


def absorption(results: Sequence[Result]) -> Made:
    """Return the content of an SAE's file of absorption, by the metric `absorption` on first letters."""
    first, *others = results
    missing = [f"{result.metric}: another configuration, not in the file" for result in others]
    details, f1 = [], _params(first).get("least_f1")
    for row in _rows(first, "parents"):
        letter = row["parent"].rpartition("=")[2].lower()
        if row["left out"]:
            continue
        if len(letter) != 1 or not letter.isalpha():
            return None, [f"{first.metric}: no file of absorption, since '{row['parent']}' is no first letter"]
        details.append({
            "first_letter": letter,
            "mean_absorption_fraction": row["saebench_fraction"],
            "full_absorption_rate": row["saebench_full"],
            "num_full_absorption": round(row["saebench_full"] * row["right"]),
            "num_probe_true_positives": row["right"],
            "num_split_features": len(row["mains"].split()),
        })  # fmt: skip
    if len(details) < 2:
        return None, [f"{first.metric}: no file of absorption, since fewer than two letters count"]
    if len(details) < LEAST_LETTERS:
        missing.append(f"{len(details)} letters count; SAEBench has no result for fewer than {LEAST_LETTERS}")
    metrics: dict[str, float | int] = {}
    for name, field in (
        ("absorption_fraction_score", "mean_absorption_fraction"), ("full_absorption_score", "full_absorption_rate"),
        ("num_split_features", "num_split_features"),
    ):  # fmt: skip
        numbers = [detail[field] for detail in details]
        metrics |= {f"mean_{name}": statistics.fmean(numbers), f"std_dev_{name}": statistics.stdev(numbers)}
    config = {key: value for key, value in _config(first).items() if key != "context_length"}
    config |= {"f1_jump_threshold": _params(first).get("jump"), "min_GT_probe_f1": f1}
    config["min_feats_for_eval"] = min(LEAST_LETTERS, len(details))
    return output("absorption_first_letter", [first], config, {"mean": metrics}, details), missing


def autointerp(results: Sequence[Result]) -> Made:
    """Return the content of an SAE's file of automatic interpretation."""
    first, *others = results
    missing = [f"{result.metric}: another configuration, not in the file" for result in others]
    names = ("autointerp_score", "autointerp_std_dev")
    metrics = {name: value for name in names if (value := number(first, name)) is not None}
    if len(metrics) < len(names):
        return None, [f"{first.metric}: no file, since {first.metric} has no {' and no '.join(names - metrics.keys())}"]
    config = {key: value for key, value in _config(first).items() if key != "context_length"}
    config |= {
        "llm_context_size": int(first.cell["data"].get("context") or 0),
        "n_latents": _params(first).get("latents"),
    }
    by_latent = {
        str(row["feature"]): {
            "latent": row["feature"], "explanation": row["words"], "score": row["score"],
            "predictions": _listed(row["chosen"]), "correct seqs": _listed(row["right"]),
        }
        for row in _rows(first, "features") if row["score"] is not None
    }  # fmt: skip
    judge = {"judge": dict(first.cell.get("judge") or {})}
    return output("autointerp", [first], config, {"autointerp": metrics}, [], by_latent | judge), missing


def _listed(numbers: str) -> list[int]:
    return [] if numbers == "None" else [int(part) for part in numbers.split(",")]


def _same_but_for_tasks(results: Sequence[Result]) -> tuple[list[Result], list[str]]:
    """Return the first configuration and those that have other tasks alone, and sentences on the others."""

    def others(result: Result) -> dict[str, Any]:
        return {name: value for name, value in _params(result).items() if name != "tasks"}

    same = [result for result in results if others(result) == others(results[0])]
    unlike = [f"{result.metric}: other parameters than {results[0].metric}, not in the file" for result in results
              if result not in same]  # fmt: skip
    return same, unlike


def _params(result: Result) -> Mapping[str, Any]:
    return result.cell.get("params") or {}


def _rows(result: Result, table: str) -> list[dict[str, Any]]:
    record = result.values[table]
    return [dict(zip(record["columns"], row, strict=True)) for row in record["rows"]]


def _means(details: Sequence[Mapping[str, Any]], fields: Sequence[str]) -> dict[str, float | int]:
    """Return the mean of each field over the data sets that have it."""
    found = {field: [row[field] for row in details if row.get(field) is not None] for field in fields}
    return {field: statistics.fmean(numbers) for field, numbers in found.items() if numbers}


def _dataset(result: Result) -> str:
    data = result.cell["data"]
    return str(data.get("name") or data.get("use") or "data")


def _tasks(result: Result) -> str:
    return "_".join(_params(result).get("tasks", ()))


def _config(result: Result) -> dict[str, Any]:
    """Return the fields that all configs of SAEBench have."""
    model, data = result.cell["model"] or {}, result.cell["data"]
    return {
        "model_name": str(model.get("name") or ""),
        "llm_dtype": str(model.get("dtype") or "float32"),
        "random_seed": int(_params(result).get("seed", 42)),
        "context_length": int(data.get("context") or 0),
    }
