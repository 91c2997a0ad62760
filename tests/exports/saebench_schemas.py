"""The JSON schema of SAEBench's result files, from its wheel on the package index."""

from __future__ import annotations

import json

from wheel_files import saebench


def core_schema() -> dict:
    """Return the schema of the core evaluation."""
    file = saebench() / "sae_bench/evals/core/eval_output_schema_core.json"
    schema: dict = json.loads(file.read_text(encoding="utf-8"))
    return schema
