"""The JSON schemas of SAEBench's result files, from its wheel on the package index."""

from __future__ import annotations

import json

from wheel_files import saebench

FILES = {
    "core": "core/eval_output_schema_core",
    "sparse_probing": "sparse_probing/eval_output_schema_sparse_probing",
    "tpp": "scr_and_tpp/eval_output_schema_tpp",
    "scr": "scr_and_tpp/eval_output_schema_scr",
    "autointerp": "autointerp/eval_output_schema_autointerp",
    "absorption": "absorption/eval_output_schema_absorption_first_letter",
}


def schema(evaluation: str) -> dict:
    """Return the schema of one of SAEBench's evaluations."""
    file = saebench() / f"sae_bench/evals/{FILES[evaluation]}.json"
    content: dict = json.loads(file.read_text(encoding="utf-8"))
    return content
