"""Trains the testbed's SAEs on its language model, with sae-lens' own trainer."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from saeval_data.stdlib import stdlib_modules
from saeval_testbed.language_model import encode

LAYER = 2
D_SAE = 1024
CONTEXT = 128
ACTIVATIONS = 2_000_000
TRAINING_TOKENS = 4_000_000
BATCH = 2048
LEARNING_RATE = 1e-3


@dataclass(frozen=True)
class Recipe:
    """One SAE of the testbed."""

    name: str
    architecture: str
    sparsity: float
    """The L1 coefficient of a standard SAE, the k of a TopK one."""
    seed: int = 0


LADDER = (0.12, 0.25, 0.5, 0.9, 1.5, 2.5)
RECIPES = (
    *(Recipe(f"relu-{i}", "standard", l1) for i, l1 in enumerate(LADDER, 1)),
    *(Recipe(f"relu-5-seed{seed}", "standard", LADDER[4], seed) for seed in (1, 2)),
    *(Recipe(f"topk-{k}", "topk", k) for k in (8, 16, 32)),
)


@torch.no_grad()
def activations(model_folder: Path) -> Tensor:
    """`[n, d_in]` float32 activations entering block `LAYER`, on training text, the BOS position left out."""
    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    documents = encode(tokenizer, [text for _, text in stdlib_modules("train")])
    bos = torch.tensor([tokenizer.bos_token_id])
    rows = torch.stack(
        [
            torch.cat([bos, ids[start : start + CONTEXT - 1]])
            for ids in documents
            for start in range(0, len(ids) - CONTEXT + 2, CONTEXT - 1)
        ]
    )
    chosen = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))]
    chosen = chosen[: ACTIVATIONS // (CONTEXT - 1)]
    model.transformer.h = model.transformer.h[:LAYER]  # nothing after the hook is needed
    model.transformer.ln_f = torch.nn.Identity()
    parts = [model.transformer(part).last_hidden_state[:, 1:].flatten(0, 1) for part in chosen.split(64)]
    return torch.cat(parts)


def train_sae(recipe: Recipe, data: Tensor, out: Path) -> None:
    """Train one SAE and write it in the SAELens format, its tensors as float16."""
    from sae_lens.config import SAETrainerConfig
    from sae_lens.saes.sae import SAEMetadata
    from sae_lens.saes.standard_sae import StandardTrainingSAE, StandardTrainingSAEConfig
    from sae_lens.saes.topk_sae import TopKTrainingSAE, TopKTrainingSAEConfig
    from sae_lens.training.sae_trainer import SAETrainer

    torch.manual_seed(recipe.seed)
    metadata = SAEMetadata(
        model_name="saeval-testbed",
        hook_name=f"blocks.{LAYER}.hook_resid_pre",
        context_size=CONTEXT,
        prepend_bos=True,
        exclude_special_tokens=True,
        seed=recipe.seed,
        training_tokens=TRAINING_TOKENS,
    )
    shared: dict[str, Any] = {
        "d_in": data.shape[1],
        "d_sae": D_SAE,
        "normalize_activations": "expected_average_only_in",
        "metadata": metadata,
    }
    steps = TRAINING_TOKENS // BATCH
    if recipe.architecture == "standard":
        warm_up = steps // 10
        sae: Any = StandardTrainingSAE(
            StandardTrainingSAEConfig(**shared, l1_coefficient=recipe.sparsity, l1_warm_up_steps=warm_up)
        )
    else:
        sae = TopKTrainingSAE(TopKTrainingSAEConfig(**shared, k=int(recipe.sparsity)))
    trainer = SAETrainer(
        SAETrainerConfig(
            total_training_samples=steps * BATCH,
            train_batch_size_samples=BATCH,
            lr=LEARNING_RATE,
            lr_end=LEARNING_RATE / 10,
            lr_warm_up_steps=steps // 20,
            lr_decay_steps=steps // 3,
            dead_feature_window=steps // 10,
            n_batches_for_norm_estimate=20,
        ),
        sae,
        _batches(data, recipe.seed),
    )
    started = time.monotonic()
    trainer.fit()
    sae.fold_W_dec_norm()
    weights, config = sae.save_inference_model(out)
    save_file({name: tensor.half().contiguous() for name, tensor in load_file(weights).items()}, weights)
    config.write_text(json.dumps(json.loads(config.read_text()), indent=1) + "\n")
    print(f"{recipe.name}: {time.monotonic() - started:.0f} s, L0 in training {metadata.l0}", flush=True)


def _batches(data: Tensor, seed: int) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    while True:
        for chosen in torch.randperm(len(data), generator=generator).split(BATCH):
            if len(chosen) == BATCH:
                yield data[chosen]


def train_dictionaries(folder: Path, names: list[str] | None = None) -> None:
    """Train the SAEs of `RECIPES` (or those named) on `folder/model`, into `folder/saes/<name>`."""
    data = activations(folder / "model")
    print(f"{len(data)} activations of {data.shape[1]} dimensions", flush=True)
    for recipe in RECIPES:
        if names is None or recipe.name in names:
            train_sae(recipe, data, folder / "saes" / recipe.name)
