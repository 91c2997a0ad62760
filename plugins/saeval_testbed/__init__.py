"""The testbed: a small trained language model and trained SAEs, so that everything runs with no download."""

from __future__ import annotations

from pathlib import Path

from saeval.hookspecs import hookimpl
from saeval.model import RegisteredModel
from saeval.sae import RegisteredSAE

WEIGHTS = Path(__file__).parent / "weights"


@hookimpl
def saeval_models() -> list[RegisteredModel]:
    description = "GPT-2 architecture, 4 layers, d_model 128, trained on the Python standard library's source"
    return [RegisteredModel("testbed", "huggingface", {"path": str(WEIGHTS / "model")}, description)]


@hookimpl
def saeval_saes() -> list[RegisteredSAE]:
    """Every folder below `weights/saes`, by its name."""
    found = []
    for folder in sorted((WEIGHTS / "saes").glob("*/cfg.json")):
        name = folder.parent.name
        description = f"{name.split('-')[0]} SAE of 1024 features at the input of block 2"
        found.append(RegisteredSAE(f"testbed/{name}", "saelens", {"path": str(folder.parent)}, description))
    return found
