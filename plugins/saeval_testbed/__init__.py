"""The testbed: two small trained models and trained SAEs, so that everything runs with no download."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from saeval.plugin import Metric, RegisteredModel, RegisteredSAE, Source, hookimpl

WEIGHTS = Path(__file__).parent / "weights"
_KINDS = {
    "relu": "ReLU",
    "topk": "TopK",
    "gated": "gated",
    "jumprelu": "JumpReLU",
    "batchtopk": "BatchTopK, stored as JumpReLU,",
    "resid_pre": "TopK",
    "local": "local (MSE) ReLU",
    "e2e": "end-to-end ReLU",
    "e2e_ds": "end-to-end+downstream ReLU",
}


@hookimpl
def saeval_models() -> list[RegisteredModel]:
    language = "GPT-2 architecture, 4 layers, d_model 128, trained on the Python standard library's source"
    reward = "The testbed's model fine-tuned on preference pairs with a planted preference: raise statements"
    return [
        RegisteredModel("testbed", "huggingface", {"path": str(WEIGHTS / "model")}, language, ("saeval-testbed",)),
        RegisteredModel(
            "testbed-reward", "huggingface", {"path": str(WEIGHTS / "reward")}, reward, ("saeval-testbed-reward",)
        ),
    ]


@hookimpl
def saeval_data() -> list[type[Source]]:
    from saeval_testbed.pairs import TestbedPreferences  # late: an entry point imports nothing it may not need

    return [TestbedPreferences]


@hookimpl
def saeval_metrics() -> list[type[Metric]]:
    from saeval_testbed.recovery import PlantedRecovery  # late: as above

    return [PlantedRecovery]


@hookimpl
def saeval_quantities() -> list[Callable[..., Any]]:
    from saeval_testbed.recovery import planted_responses  # late: as above

    return [planted_responses]


@hookimpl
def saeval_saes() -> list[RegisteredSAE]:
    """Everything below `weights`, by the names of its folders."""
    return [*_saelens(), *_dictionary_learning(), *_sparsify(), *_apollo(), *_reward()]


def _described(kind: str, hook_name: str) -> str:
    return f"{kind} SAE of 1024 features at {hook_name}"


def _saelens() -> list[RegisteredSAE]:
    found = []
    for file in sorted((WEIGHTS / "saes").glob("*/cfg.json")):
        name = file.parent.name
        kind, _, layer = name.partition("-")
        hook_name = f"blocks.{layer if kind == 'resid_pre' else 2}.hook_resid_pre"
        description = _described(_KINDS[kind], hook_name)
        found.append(RegisteredSAE(f"testbed/{name}", "saelens", {"path": str(file.parent)}, description))
    return found


def _dictionary_learning() -> list[RegisteredSAE]:
    found = []
    for file in sorted((WEIGHTS / "dictionary_learning" / "attn_out").glob("*/ae.pt")):
        layer = file.parent.name.removeprefix("trainer_")
        hook_name = f"blocks.{layer}.hook_attn_out"
        reference = {"path": str(file.parent), "hook_name": hook_name}
        description = _described("TopK", hook_name)
        found.append(RegisteredSAE(f"testbed/attn_out-{layer}", "dictionary_learning", reference, description))
    return found


def _sparsify() -> list[RegisteredSAE]:
    found = []
    for file in sorted((WEIGHTS / "sparsify" / "mlp_out").glob("h.*.mlp/cfg.json")):
        layer = file.parent.name.split(".")[1]
        hook_name = f"blocks.{layer}.hook_mlp_out"
        reference = {"path": str(file.parent), "hook_name": hook_name}
        found.append(RegisteredSAE(f"testbed/mlp_out-{layer}", "sparsify", reference, _described("TopK", hook_name)))
    return found


def _apollo() -> list[RegisteredSAE]:
    found = []
    for file in sorted((WEIGHTS / "apollo").glob("*/samples_*.pt")):
        name, hook_name = file.parent.name, "blocks.2.hook_resid_pre"
        reference = {"path": str(file), "hook_name": hook_name}
        description = _described(_KINDS[name.partition("-")[0]], hook_name)
        found.append(RegisteredSAE(f"testbed/{name}", "apollo", reference, description))
    return found


def _reward() -> list[RegisteredSAE]:
    description = _described("TopK", "blocks.2.hook_resid_pre") + " of the reward model"
    return [
        RegisteredSAE(f"testbed-reward/{file.parent.name}", "saelens", {"path": str(file.parent)}, description)
        for file in sorted((WEIGHTS / "reward_saes").glob("*/cfg.json"))
    ]
