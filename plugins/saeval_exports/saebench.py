"""Results as the files of SAEBench 0.6.0's core evaluation (sae_bench/evals/core/eval_output.py).

Its numbers are those of the metrics `saebench_*`, which reproduce SAEBench's formulas. A number that does not exist is
left out, where SAEBench writes −1.
"""

from __future__ import annotations

import math
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from saeval.plugin import Result

DOWNSTREAM, VARIANCE, FEATURES, WEIGHTS = METRICS = (
    "saebench_downstream", "saebench_variance", "saebench_features", "saebench_weights",
)  # fmt: skip
SHARES = ("freq_over_1_percent", "freq_over_10_percent")
CATEGORIES: dict[str, dict[str, str]] = {
    "model_behavior_preservation": dict.fromkeys(
        ("kl_div_score", "kl_div_with_ablation", "kl_div_with_sae"), DOWNSTREAM
    ),
    "model_performance_preservation": dict.fromkeys(
        ("ce_loss_score", "ce_loss_with_ablation", "ce_loss_with_sae", "ce_loss_without_sae"), DOWNSTREAM
    ),
    "reconstruction_quality": dict.fromkeys(
        ("explained_variance", "explained_variance_legacy", "mse", "cossim"), VARIANCE
    ),
    "shrinkage": dict.fromkeys(("l2_norm_in", "l2_norm_out", "l2_ratio", "relative_reconstruction_bias"), VARIANCE),
    "sparsity": dict.fromkeys(("l0", "l1"), VARIANCE),
    "token_stats": {},
    "misc_metrics": {
        **dict.fromkeys((*SHARES, *(f"normalized_{share}" for share in SHARES)), FEATURES),
        **dict.fromkeys(("average_max_encoder_cosine_sim", "average_max_decoder_cosine_sim"), WEIGHTS),
        "frac_alive": FEATURES,
    },
}
"""The categories and fields of `eval_result_metrics`, with the metric that has the number."""
TOKENS = ("total_tokens_eval_reconstruction", "total_tokens_eval_sparsity_variance")
DETAILS = {
    "feature_density": FEATURES, "consistent_activation_heuristic": FEATURES, "encoder_bias": WEIGHTS,
    "encoder_norm": WEIGHTS, "encoder_decoder_cosine_sim": WEIGHTS, "max_decoder_cosine_sim": WEIGHTS,
    "max_encoder_cosine_sim": WEIGHTS,
}  # fmt: skip
"""The fields of each feature in `eval_result_details`."""
_SPACE = uuid.UUID("2f6e0f7c-5b0c-4a53-9f0e-6d0b8f3f3a11")
"""Namespace of the ids of exported evaluations, which follow from the keys of their results."""


def core(results: Sequence[Result]) -> tuple[dict[str, Any], list[str]]:
    """Return the content of an SAE's file of the core evaluation, and sentences on what is missing."""
    own: dict[str, Result] = {}
    for result in results:
        own.setdefault(result.cell["metric"], result)  # the first configuration of each
    first = next(iter(own.values()))
    metrics: dict[str, dict[str, float | int]] = {category: {} for category in CATEGORIES}
    lacking: dict[str, list[str]] = {}
    for category, fields in CATEGORIES.items():
        for field, metric in fields.items():
            value = number(own.get(metric), field)
            if value is None:
                lacking.setdefault(metric, []).append(field)
            else:
                metrics[category][field] = value
    tokens = first.cell["data"].get("tokens")
    if isinstance(tokens, int):
        metrics["token_stats"] = dict.fromkeys(TOKENS, tokens)
    details, left_out = _details(own)
    missing = [f"{metric} has no {', '.join(fields)}: not in the file" for metric, fields in lacking.items()]
    missing += [left_out] if left_out else []
    return output("core", list(own.values()), _config(own), metrics, details), missing


def output(
    kind: str,
    results: Sequence[Result],
    config: Mapping[str, Any],
    metrics: Mapping[str, Mapping[str, float | int]],
    details: Sequence[Mapping[str, Any]],
    unstructured: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the content of a file, of an SAE's results that an evaluation of SAEBench is made of."""
    subject = results[0].cell["subjects"][0]
    origin = {"results": {result.metric: result.key for result in results}}
    return {
        "eval_type_id": kind,
        "eval_config": config,
        "eval_id": str(uuid.uuid5(_SPACE, " ".join(sorted(result.key for result in results)))),
        "datetime_epoch_millis": 0,  # results have no time, and equal results give equal files
        "eval_result_metrics": metrics,
        "eval_result_details": details,
        "sae_bench_commit_hash": f"none; computed by saeval {results[0].provenance.get('saeval', '')}".rstrip(),
        "sae_lens_id": subject["name"],
        "sae_lens_release_id": None,
        "sae_lens_version": subject.get("sae_lens_version"),
        "sae_cfg_dict": {key: value for key, value in subject.items() if key not in ("key", "kind")},
        "eval_result_unstructured": {**(unstructured or {}), "saeval": origin},
    }


def number(result: Result | None, field: str) -> float | None:
    record = result.values.get(field) if result is not None else None
    value = record.get("value") if record is not None else None
    return float(value) if value is not None and math.isfinite(value) else None


def _config(own: Mapping[str, Result]) -> dict[str, Any]:
    """Return the fields of `CoreEvalConfig`, of a run over the same rows in batches of the metrics' size."""
    first = next(iter(own.values()))
    data, model = first.cell["data"], first.cell["model"] or {}
    size = int((own[VARIANCE].cell.get("params") or {}).get("batch_size", 16)) if VARIANCE in own else 16
    sequences = data.get("sequences")
    batches = math.ceil(sequences / size) if isinstance(sequences, int) else 0
    splices = (own[DOWNSTREAM].cell.get("params") or {}) if DOWNSTREAM in own else {}
    name = "exclude_special_tokens_from_reconstruction"
    return {
        "model_name": str(model.get("name") or ""),
        "llm_dtype": str(model.get("dtype") or "float32"),
        "batch_size_prompts": size,
        "n_eval_reconstruction_batches": batches,
        "n_eval_sparsity_variance_batches": batches,
        "dataset": str(data.get("name") or data.get("path") or data.get("use") or ""),
        "context_size": int(data.get("context") or 0),
        "compute_kl": DOWNSTREAM in own,
        "compute_ce_loss": DOWNSTREAM in own,
        "compute_l2_norms": VARIANCE in own,
        "compute_sparsity_metrics": VARIANCE in own,
        "compute_variance_metrics": VARIANCE in own,
        "compute_featurewise_density_statistics": FEATURES in own,
        "compute_featurewise_weight_based_metrics": WEIGHTS in own,
        name: bool(splices.get(name, False)),
        "verbose": False,
    }


def _details(own: Mapping[str, Result]) -> tuple[list[dict[str, Any]], str]:
    """Return a record per feature with all of `DETAILS`, and a sentence on the features that lack one."""
    arrays = {}
    for field, metric in DETAILS.items():
        if metric in own and f"value/{field}" in own[metric].arrays:
            arrays[field] = own[metric].array(field)
    if len(arrays) < len(DETAILS):
        lacking = [field for field in DETAILS if field not in arrays]
        return [], f"no details of features, since there is no {', '.join(lacking)}"
    rows = [
        {"index": index, **{field: float(number) for field, number in zip(arrays, numbers, strict=True)}}
        for index, numbers in enumerate(zip(*arrays.values(), strict=True))
    ]
    whole = [row for row in rows if all(math.isfinite(number) for number in row.values())]
    left_out = len(rows) - len(whole)
    words = f"{left_out} of {len(rows)} features lack a number, such as those that never fire: not in the details"
    return whole, words if left_out else ""
