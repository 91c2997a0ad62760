"""Trains the testbed's SAEs on its models' activations, with sae-lens' own trainer."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from saeval.plugin import FREE_SPACE, write_whole
from saeval_testbed.activations import CONTEXT, batches, pair_activations, text_activations, world_activations
from saeval_testbed.exports import write_dictionary_learning, write_sparsify
from saeval_testbed.recipes import Recipe


def train_sae(recipe: Recipe, data: Tensor, out: Path) -> None:
    """Train one SAE on activations `[n, d_in]` and write it in its layout, with float16 tensors."""
    from sae_lens.config import SAETrainerConfig  # late: an optional extra
    from sae_lens.training.sae_trainer import SAETrainer

    torch.manual_seed(recipe.seed)
    steps = recipe.tokens // recipe.batch
    sae = _untrained(recipe, data.shape[1], steps)
    if recipe.centred:
        scale = data.shape[1] ** 0.5 / data[:50_000].norm(dim=-1).mean()  # the scale that the trainer gives its input
        sae.b_dec.data = scale * data[:50_000].mean(0)
    trainer = SAETrainer(
        SAETrainerConfig(
            total_training_samples=steps * recipe.batch,
            train_batch_size_samples=recipe.batch,
            lr=recipe.learning_rate,
            lr_end=recipe.learning_rate / 10,
            lr_warm_up_steps=steps // 20,
            lr_decay_steps=steps // 3,
            dead_feature_window=steps // 10,
            n_batches_for_norm_estimate=20,
        ),
        sae,
        batches(data, recipe.batch, recipe.seed),
    )
    started = time.monotonic()
    trainer.fit()
    sae.fold_W_dec_norm()
    if recipe.layout == "dictionary_learning":
        write_dictionary_learning(sae, out, data[:4096])
    elif recipe.layout == "sparsify":
        write_sparsify(sae, out, data[:4096])
    else:
        weights, config = sae.save_inference_model(out)
        halved = {name: tensor.half().contiguous() for name, tensor in load_file(weights).items()}
        write_whole(weights, save(halved), f"{FREE_SPACE} --out")
        write_whole(config, f"{json.dumps(json.loads(config.read_text()), indent=1)}\n".encode(), f"{FREE_SPACE} --out")
    metadata = sae.cfg.metadata
    print(
        f"{recipe.name}: {time.monotonic() - started:.0f} s, L0 in training {metadata.l0}, "
        f"{metadata.num_dead_features} dead",
        flush=True,
    )


def _untrained(recipe: Recipe, d_in: int, steps: int) -> Any:
    from sae_lens.registry import get_sae_training_class  # late: an optional extra
    from sae_lens.saes.sae import SAEMetadata

    on_text = {
        "model_name": "saeval-testbed" if recipe.model == "model" else f"saeval-testbed-{recipe.model}",
        "context_size": CONTEXT,
        "prepend_bos": True,
        "exclude_special_tokens": True,
    }
    metadata = SAEMetadata(
        **(on_text if recipe.model != "synthetic" else {}),
        hook_name=recipe.hook_name,
        seed=recipe.seed,
        training_tokens=recipe.tokens,
    )
    l1 = {"l1_coefficient": recipe.sparsity, "l1_warm_up_steps": steps // 10}
    l0 = {"l0_coefficient": recipe.sparsity, "l0_warm_up_steps": steps // 10, "jumprelu_bandwidth": 0.2}
    sparsity = {"standard": l1, "gated": l1, "jumprelu": l0}.get(recipe.architecture, {"k": int(recipe.sparsity)})
    sae, config = get_sae_training_class(recipe.architecture)
    normalization = "expected_average_only_in"
    return sae(
        config(d_in=d_in, d_sae=recipe.d_sae, normalize_activations=normalization, metadata=metadata, **sparsity)
    )


def train_dictionaries(folder: Path, recipes: Sequence[Recipe]) -> None:
    """Train SAEs on the models below `folder` and write them there; SAEs at one site share a forward pass."""
    by_site = groupby(recipes, key=lambda r: (r.model, r.distinct, r.hook_name.partition("hook_")[2]))
    for (model, distinct, _), group in by_site:
        together = list(group)
        hook_names = list(dict.fromkeys(recipe.hook_name for recipe in together))
        if model == "synthetic":
            data = world_activations(hook_names, distinct)
        else:
            activations = text_activations if model == "model" else pair_activations
            data = activations(folder / model, hook_names, distinct)
        print(f"{len(data[hook_names[0]])} tokens at {', '.join(hook_names)}", flush=True)
        for recipe in together:
            train_sae(recipe, data[recipe.hook_name], folder / (recipe.folder or f"saes/{recipe.name}"))
