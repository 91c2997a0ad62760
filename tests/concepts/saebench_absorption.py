"""SAEBench's own absorption calculator, from its wheel on the package index."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType

import pytest
from wheel_files import saebench

_UNUSED = {"sae_lens": ["SAE"], "transformer_lens": ["HookedTransformer"], "tqdm.autonotebook": ["tqdm"]}
"""Modules that it imports for annotations and progress bars, with the names that it takes."""


def calculator_module(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Return SAEBench's module `feature_absorption_calculator`; its files are downloaded once.

    Skips the test if the index cannot be reached; any other failure fails it.
    """
    own = saebench()
    for name, words in _UNUSED.items():
        module = ModuleType(name)
        vars(module).update({word: _no_progress if word == "tqdm" else object for word in words})
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.syspath_prepend(str(own))
    for name in [name for name in sys.modules if name.partition(".")[0] == "sae_bench"]:
        monkeypatch.delitem(sys.modules, name)
    module = importlib.import_module("sae_bench.evals.absorption.feature_absorption_calculator")
    for name in [name for name in sys.modules if name.partition(".")[0] == "sae_bench"]:
        del sys.modules[name]  # they refer to the modules put in for those that are unused
    return module


def _no_progress(items, **options):
    return items
