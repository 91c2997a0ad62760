"""One checkpoint of every format and architecture that saeval reads, written as its own library writes it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

import checkpoints
import test_formats_apollo as apollo
import test_formats_dictionary_learning as dictionary_learning
import test_formats_openai as openai
import test_formats_saelens as saelens
from checkpoints import Formula

FORMULA = "its source's formula, written out"


@dataclass(frozen=True)
class Example:
    """A checkpoint with the answer that it should give."""

    format: str
    architecture: str
    against: str
    """What the expected numbers come from."""
    write: Callable[[Path], Mapping[str, Any]]
    """Writes the files into a folder; returns the reference."""
    formula: Callable[[], Formula]
    x: Tensor
    hook_name: str | None
    """The hook that the files themselves tell."""

    @property
    def label(self) -> str:
        return f"{self.format}-{self.architecture}"


def _saelens() -> Iterator[Example]:
    import sae_lens

    for kind in saelens.KINDS:
        for normalization in ("none", "layer_norm", "constant_norm_rescale"):
            config = {"normalize_activations": normalization}

            def write(folder: Path, kind: str = kind, config: Mapping[str, Any] = config) -> Mapping[str, Any]:
                return {"path": str(saelens.saved(saelens.random_sae(kind, **config), folder))}

            def formula(kind: str = kind, config: Mapping[str, Any] = config) -> Formula:
                theirs = saelens.random_sae(kind, **config)
                return Formula(theirs.encode, theirs.decode)

            name = kind if normalization == "none" else f"{kind}, {normalization}"
            version = f"sae-lens {sae_lens.__version__}"
            yield Example("saelens", name, version, write, formula, saelens.activations(), saelens.HOOK)


def _dictionary_learning() -> Iterator[Example]:
    for name in dictionary_learning.FLOATS:
        yield Example(
            "dictionary_learning", name, FORMULA,
            lambda folder, name=name: {"path": str(dictionary_learning.saved(folder, name))},
            lambda name=name: dictionary_learning.formula_of(name, dictionary_learning.state_of(name)),
            checkpoints.activations(), "blocks.1.hook_resid_post",
        )  # fmt: skip


def _openai() -> Iterator[Example]:
    for kind in ("TopK", "ReLU"):

        def write(folder: Path, kind: str = kind) -> Mapping[str, Any]:
            torch.save(openai.state_of(kind), folder / "6.pt")
            return {"path": str(folder / "6.pt")}

        yield Example(
            "openai", kind, FORMULA, write, lambda kind=kind: openai.formula_of(openai.state_of(kind)),
            checkpoints.activations(), None,
        )  # fmt: skip


def _apollo() -> Iterator[Example]:
    def native(folder: Path) -> Mapping[str, Any]:
        torch.save(apollo.state_of(apollo.HOOKS[0]), folder / "samples_400.pt")
        (folder / "final_config.yaml").write_text(yaml.safe_dump(apollo.CONFIG))
        return {"path": str(folder / "samples_400.pt")}

    def published(folder: Path) -> Mapping[str, Any]:
        torch.save(apollo.published(), folder / "local_layer_1.pt")
        return {"path": str(folder / "local_layer_1.pt")}

    x = checkpoints.activations()
    yield Example("apollo", "of a run", FORMULA, native, apollo.formula_of, x, apollo.HOOKS[0])
    yield Example("apollo", "published", FORMULA, published, apollo.formula_of, x, None)


EXAMPLES = [*_saelens(), *_dictionary_learning(), *_openai(), *_apollo()]
