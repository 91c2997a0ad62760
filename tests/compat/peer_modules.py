"""Modules of SAEBench and sae-probes from their wheels, without what they import and the functions under test do not use."""

from __future__ import annotations

import importlib
import sys
import types
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from wheel_files import saebench, unpacked

UNUSED = (
    "sae_lens",
    "sae_lens.loading",
    "sae_lens.loading.pretrained_saes_directory",
    "sae_lens.saes",
    "sae_lens.saes.sae",
    "transformer_lens",
    "datasets",
    "pandas",
    "transformers",
    "xgboost",
)

_KEPT: dict[str, types.ModuleType] = {}
"""Their modules that were imported: beartype takes a class for that of another copy of its module."""


class Anything(types.ModuleType):
    """A module of which every attribute is a class that can be made."""

    __path__: ClassVar[list[str]] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


def saebench_modules(*names: str) -> list[Any]:
    """Return modules of SAEBench."""
    return _imported(saebench(), names, (*UNUSED, "sae_bench.sae_bench_utils.sae_selection_utils"))


def saeprobes_modules(*names: str) -> list[Any]:
    """Return modules of sae-probes; its data sets are not read."""
    folder = unpacked("sae-probes==0.4.2", (".py",))
    return _imported(folder, names, (*UNUSED, "sae_probes.utils_data", "sae_probes.run_baselines"))


def saeprobes_data() -> Any:
    """Return sae-probes' module of texts and labels; its data sets are not read."""
    saeprobes_modules("sae_probes.utils_training")  # the package itself, which reads its data sets when it is imported
    folder = unpacked("sae-probes==0.4.2", (".py",))
    parts = ("run_sae_evals", "run_baselines", "generate_sae_activations", "generate_model_activations")
    (module,) = _imported(folder, ("sae_probes.utils_data",), (*UNUSED, *(f"sae_probes.{part}" for part in parts)))
    return module


def _imported(folder: Path, names: Sequence[str], unused: Sequence[str]) -> list[Any]:
    package = names[0].partition(".")[0]
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of old spellings in them
        patch.syspath_prepend(str(folder))
        for name, module in _KEPT.items():
            patch.setitem(sys.modules, name, module)
        for name in unused:
            patch.setitem(sys.modules, name, Anything(name))
        modules = [importlib.import_module(name) for name in names]
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        _KEPT[name] = sys.modules.pop(name)
    return modules


class TorchDraws:
    """Draws from torch's own generator, as SAEBench's are."""

    def permutation(self, count):
        return torch.randperm(count).numpy()

    def layer(self, width):
        made = torch.nn.Linear(width, 1)
        return made.weight.detach().clone(), made.bias.detach().clone()
