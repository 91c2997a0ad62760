"""The testbed: two small trained models and SAEs trained on them, so that everything runs without a download."""

from __future__ import annotations

from collections.abc import Callable, Iterator
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
    "k8": "TopK",
    "k32": "TopK",
    "local": "local (MSE) ReLU",
    "e2e": "end-to-end ReLU",
    "e2e_ds": "end-to-end+downstream ReLU",
}


@hookimpl
def saeval_models() -> list[RegisteredModel]:
    language = "GPT-2 architecture, 4 layers, d_model 128, trained on the Python standard library's source"
    reward = "The testbed's model fine-tuned on pairs with a planted preference for raise statements"
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
    """Return the SAEs below `weights`, named after their folders."""
    return list(_saes())


def _saes() -> Iterator[RegisteredSAE]:
    for file in sorted(WEIGHTS.glob("saes/*/cfg.json")):
        kind, _, layer = file.parent.name.removesuffix("-resid_pre-3").partition("-")
        layer = "3" if file.parent.name.endswith("resid_pre-3") else layer if kind == "resid_pre" else "2"
        yield _sae(file.parent, file.parent.name, "saelens", _KINDS[kind], layer)
    for file in sorted(WEIGHTS.glob("dictionary_learning/attn_out/*/ae.pt")):
        layer = file.parent.name.removeprefix("trainer_")
        yield _sae(file.parent, f"attn_out-{layer}", "dictionary_learning", "TopK", layer, "attn_out")
    for file in sorted(WEIGHTS.glob("sparsify/mlp_out/h.*.mlp/cfg.json")):
        layer = file.parent.name.split(".")[1]
        yield _sae(file.parent, f"mlp_out-{layer}", "sparsify", "TopK", layer, "mlp_out")
    for file in sorted(WEIGHTS.glob("apollo/*/samples_*.pt")):
        yield _sae(file, file.parent.name, "apollo", _KINDS[file.parent.name.partition("-")[0]])
    for file in sorted(WEIGHTS.glob("reward_saes/*/cfg.json")):
        description = "TopK SAE of 1024 features at blocks.2.hook_resid_pre of the reward model"
        yield RegisteredSAE(f"testbed-reward/{file.parent.name}", "saelens", {"path": str(file.parent)}, description)


def _sae(path: Path, name: str, loader: str, kind: str, layer: str = "2", site: str = "resid_pre") -> RegisteredSAE:
    hook_name = f"blocks.{layer}.hook_{site}"
    reference = {"path": str(path)} | ({} if loader == "saelens" else {"hook_name": hook_name})
    return RegisteredSAE(f"testbed/{name}", loader, reference, f"{kind} SAE of 1024 features at {hook_name}")
