"""SAEs of a ladder of sparsity, trained by three libraries on the same cached activations.

    python train.py FOLDER --model smollm2 --only 'blocks.14*/sparsify*'

Finished SAEs are skipped; an interrupted one begins again.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
import sys
import time
import types
from collections.abc import Callable, Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import NamedTuple

import torch
from activations import RECIPE, Activations, product_dtype
from torch import Tensor, nn

BATCH = 512
CHECKPOINTS = (0.125, 0.25, 0.5)
"""Shares of the training after which a checkpoint is kept, beside the last."""


class Member(NamedTuple):
    """One SAE of the ladder."""

    library: str
    kind: str
    setting: str
    value: float
    seed: int

    @property
    def name(self) -> str:
        return f"{self.library}-{self.kind}-{self.setting}{self.value:g}-seed{self.seed}"


class Training(NamedTuple):
    """What a library's trainer is given."""

    member: Member
    model: str
    hook_name: str
    activations: Activations
    target: Path

    @property
    def steps(self) -> int:
        return self.activations.tokens // BATCH

    @property
    def layer(self) -> int:
        return int(self.hook_name.split(".")[1])

    @property
    def module(self) -> str:
        """The module of the base model whose output is at the hook, which is sparsify's name for it."""
        return str(RECIPE["models"][self.model]["hooks"][self.hook_name])

    @property
    def submodule(self) -> str:
        """dictionary_learning's name for the hook, such as resid_post_layer_14."""
        return f"{self.hook_name.partition('hook_')[2]}_layer_{self.layer}"

    @property
    def model_name(self) -> str:
        return str(RECIPE["models"][self.model]["file"]).removesuffix(".gguf")

    @property
    def d_sae(self) -> int:
        return int(RECIPE["width"]) * self.activations.width


def ladder(model: str, hook_name: str) -> Iterator[Member]:
    """Yield the SAEs at a hook of a model."""
    for entry in RECIPE["ladder"]:
        if entry.get("hooks") == "first" and hook_name != next(iter(RECIPE["models"][model]["hooks"])):
            continue
        setting = next(key for key in ("k", "l1") if key in entry)
        for value, seed in itertools.product(entry[setting], entry.get("seed", [0])):
            yield Member(entry["library"], entry["kind"], setting, value, seed)


def train_sparsify(training: Training) -> None:
    """Train a TopK SAE with sparsify's trainer, and Adam in place of its default.

    The default, signSGD without a decay, left a third of the features dead after a million tokens, and reconstructed
    tokens of large norm worse than zero does. The decoder of a `frozen` SAE keeps the random directions that it began
    with: a baseline for what the directions are worth.
    """
    from datasets import Dataset
    from sparsify import SparseCoderConfig, TrainConfig, Trainer

    rows, length = training.steps, BATCH
    order = torch.randperm(rows * length, generator=torch.Generator().manual_seed(training.member.seed))
    config = TrainConfig(
        SparseCoderConfig(expansion_factor=RECIPE["width"], k=int(training.member.value)),
        batch_size=1, hookpoints=["site"], init_seeds=[training.member.seed], log_to_wandb=False,
        optimizer="adam", lr=1e-3, lr_warmup_steps=rows // 20,
        save_dir=str(training.target), run_name="run", save_every=10**9,
        dead_feature_threshold=200_000, auxk_alpha=1 / 32,
    )  # fmt: skip
    indices = Dataset.from_dict({"input_ids": order.view(rows, length).numpy()}).with_format("torch")
    trainer = Trainer(config, indices, _Replay(training.activations))
    if training.member.kind == "frozen":
        # The trainer requires a gradient of the decoder.
        for sae in trainer.saes.values():
            sae.W_dec.register_hook(torch.zeros_like)
    trainer.fit()
    (training.target / "run" / "site").rename(training.target / training.module)
    shutil.rmtree(training.target / "run")


class _Replay(nn.Module):
    """A model whose module `site` returns cached activations: sparsify trains on the output of a module."""

    def __init__(self, activations: Activations) -> None:
        super().__init__()
        self.site = nn.Identity()
        self.base_model, self.device = self, torch.device("cpu")
        self._activations = activations
        self.dummy_inputs = {"input_ids": torch.zeros(1, 1, dtype=torch.long)}

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.site(self._activations.take(input_ids))


def train_dictionary_learning(training: Training) -> None:
    """Train a ReLU SAE with dictionary_learning's trainer without constrained decoder norms, as its users do."""
    # The package imports nnsight for its own buffer of activations, which nothing here uses.
    sys.modules.setdefault("nnsight", types.SimpleNamespace(LanguageModel=None))  # type: ignore[arg-type]
    from dictionary_learning.dictionary import AutoEncoder
    from dictionary_learning.trainers.standard import StandardTrainerAprilUpdate
    from dictionary_learning.training import trainSAE

    steps = training.steps
    trainer = {
        "trainer": StandardTrainerAprilUpdate, "dict_class": AutoEncoder, "activation_dim": training.activations.width,
        "dict_size": training.d_sae, "layer": training.layer, "lm_name": training.model_name, "steps": steps,
        "submodule_name": training.submodule, "l1_penalty": training.member.value, "seed": training.member.seed,
        "warmup_steps": steps // 20, "sparsity_warmup_steps": steps // 5, "decay_start": steps * 4 // 5, "lr": 1e-3,
        "device": "cpu",
    }  # fmt: skip
    # The library goes through the batches twice, first to find the norm. A map, since tqdm closes a generator that is
    # left early if it shows nothing, and the library would then train on no batch at all.
    batches = map(Tensor.contiguous, training.activations.batches(BATCH, training.member.seed))
    trainSAE(
        batches, [trainer], steps,
        save_steps=[int(steps * share) for share in CHECKPOINTS], save_dir=str(training.target),
        normalize_activations=True, device="cpu",
    )  # fmt: skip
    if len(list(training.target.glob("*/checkpoints/*"))) < len(CHECKPOINTS):
        raise RuntimeError(
            f"dictionary_learning ended its training of {training.member.name} before its last checkpoint"
        )


def train_saelens(training: Training) -> None:
    """Train a BatchTopK SAE with sae-lens' trainer; it is saved as a JumpReLU SAE with one threshold."""
    from sae_lens.config import LoggingConfig, SAETrainerConfig
    from sae_lens.saes.batchtopk_sae import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig
    from sae_lens.saes.sae import SAEMetadata
    from sae_lens.training.sae_trainer import SAETrainer

    torch.manual_seed(training.member.seed)
    steps = training.steps
    metadata = SAEMetadata(
        hook_name=training.hook_name, model_name=training.model_name, context_size=RECIPE["context"], prepend_bos=True
    )
    sae = BatchTopKTrainingSAE(
        BatchTopKTrainingSAEConfig(
            d_in=training.activations.width, d_sae=training.d_sae, k=training.member.value, device="cpu",
            normalize_activations="expected_average_only_in", metadata=metadata,
        )
    )  # fmt: skip
    config = SAETrainerConfig(
        total_training_samples=steps * BATCH, train_batch_size_samples=BATCH, lr=1e-3, lr_end=0.0,
        lr_warm_up_steps=steps // 20, lr_decay_steps=steps // 5, dead_feature_window=200, device="cpu",
        autocast=False, logger=LoggingConfig(log_to_wandb=False), n_batches_for_norm_estimate=200,
    )  # fmt: skip
    SAETrainer(config, sae, training.activations.batches(BATCH, training.member.seed)).fit()
    sae.save_inference_model(str(training.target / "final"))


TRAINERS: dict[str, Callable[[Training], None]] = {
    "sparsify": train_sparsify,
    "dictionary_learning": train_dictionary_learning,
    "saelens": train_saelens,
}


def train(folder: Path, model: str, hook_name: str, member: Member, tokens: int) -> None:
    """Train one SAE into `FOLDER/saes/MODEL/HOOK/NAME`, unless it is there."""
    target = folder / "saes" / model / hook_name / member.name
    if (target / "training.json").is_file():
        return
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    training = Training(member, model, hook_name, Activations(folder, model, hook_name, tokens), target)
    started, cpu = time.perf_counter(), time.process_time()
    # The libraries' own switches for bfloat16 products concern GPUs; weights and optimizer stay float32. Without
    # `cache_enabled`, since the context spans the whole training, in which the cached copies would grow stale.
    products = product_dtype()
    with torch.autocast("cpu", torch.bfloat16, enabled=products == torch.bfloat16, cache_enabled=False):
        TRAINERS[member.library](training)
    record = {
        "model": model, "hook_name": hook_name, **member._asdict(), "training_tokens": training.steps * BATCH,
        "d_sae": training.d_sae, "products": str(products).removeprefix("torch."),
        "seconds": round(time.perf_counter() - started, 1), "cpu_seconds": round(time.process_time() - cpu, 1),
    }  # fmt: skip
    (target / "training.json").write_text(json.dumps(record, indent=1) + "\n")
    print(f"{model} {hook_name} {member.name}: {record['seconds']:.0f} s", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", choices=RECIPE["models"], required=True)
    parser.add_argument("--tokens", type=int, default=RECIPE["training_tokens"])
    parser.add_argument("--only", default="*", help="a pattern of HOOK/NAME")
    arguments = parser.parse_args()
    for hook in RECIPE["models"][arguments.model]["hooks"]:
        for sae in ladder(arguments.model, hook):
            if fnmatch(f"{hook}/{sae.name}", arguments.only):
                train(arguments.folder, arguments.model, hook, sae, arguments.tokens)
