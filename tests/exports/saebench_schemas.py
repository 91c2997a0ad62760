"""The JSON schema of SAEBench's result files, from its wheel on the package index."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

_WHEEL = "sae-bench==0.6.0"
_FILE, _INSIDE = "sae_bench-0.6.0-core.json", "sae_bench/evals/core/eval_output_schema_core.json"


def core_schema() -> dict:
    """Return the schema of the core evaluation; the wheel is downloaded once.

    Skips the test if the index cannot be reached; any other failure fails it.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "saeval-tests"
    file = cache / _FILE
    if not file.is_file():
        own = cache / f"schemas-{os.getpid()}"
        own.mkdir(parents=True, exist_ok=True)
        pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--disable-pip-version-check", "--dest", str(own)]
        try:
            outcome = subprocess.run([*pip, _WHEEL], capture_output=True, text=True, check=False)
            if outcome.returncode and "connection" in outcome.stderr.lower():
                pytest.skip(f"{_WHEEL} cannot be downloaded, since the package index cannot be reached")
            assert outcome.returncode == 0, outcome.stderr
            with zipfile.ZipFile(next(own.glob("*.whl"))) as wheel:
                Path(wheel.extract(_INSIDE, own)).replace(file)
        finally:
            shutil.rmtree(own)
    schema: dict = json.loads(file.read_text(encoding="utf-8"))
    return schema
