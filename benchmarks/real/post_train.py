"""A trained TopK SAE, trained further on the KL divergence of the model's predictions, with checkpoints.

    python post_train.py FOLDER --model smollm2 --hook blocks.14.hook_resid_post --sae sparsify-topk-k32-seed0

Karvonen ("Revisiting End-to-End Sparse Autoencoder Training: A Short Finetune Is All You Need", 2025) reports that this
closes most of the gap to SAEs that were trained on KL from the start.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
import time
from pathlib import Path

import torch
from activations import RECIPE, load_model, product_dtype, token_rows
from datasets import Dataset
from safetensors.torch import load_model as load_weights
from sparsify import SparseCoderConfig, TrainConfig, Trainer

ROWS = 4
"""Rows of `context` tokens in a batch."""


class _KeptCheckpoints(Trainer):
    """sparsify's trainer, which overwrites its checkpoints, with a folder for each."""

    def save(self) -> None:
        # The trainer counts a step after it has saved, except at the end.
        steps = min(self.global_step + 1, len(self.dataset) // self.cfg.batch_size)
        tokens = steps * self.cfg.batch_size * (RECIPE["context"] - 1)
        self.cfg.run_name = f"tokens_{tokens}"
        super().save()
        folder = Path(self.cfg.save_dir) / self.cfg.run_name
        for state in folder.glob("*.pt"):
            state.unlink()


def post_train(folder: Path, model: str, hook_name: str, name: str, tokens: int, checkpoints: int) -> None:
    """Train on `tokens` tokens that follow the training tokens; save after each 1 / `checkpoints` of them."""
    module = RECIPE["models"][model]["hooks"][hook_name]
    source = folder / "saes" / model / hook_name / name / module
    target = folder / "saes" / model / hook_name / f"kl-{name}"
    if (target / "training.json").is_file():
        return
    shutil.rmtree(target, ignore_errors=True)
    length, seen = RECIPE["context"] - 1, -(-RECIPE["training_tokens"] // (RECIPE["context"] - 1))
    steps = tokens // (ROWS * length)
    rows = list(itertools.islice(token_rows(folder, model), seen, seen + steps * ROWS))
    settings = json.loads((source / "cfg.json").read_text())
    config = TrainConfig(
        SparseCoderConfig(expansion_factor=settings["expansion_factor"], k=settings["k"]),
        batch_size=ROWS, loss_fn="kl", hookpoints=[module], optimizer="adam", lr=5e-5, lr_warmup_steps=steps // 20,
        finetune=str(source), log_to_wandb=False, save_dir=str(target), save_every=-(-steps // checkpoints),
        # BOS is in the first position of each row, and no SAE was trained on it.
        exclude_tokens=[rows[0][0]],
    )  # fmt: skip
    dataset = Dataset.from_dict({"input_ids": rows}).with_format("torch")
    trainer = _KeptCheckpoints(config, dataset, load_model(folder, model, torch.float32))
    for sae in trainer.saes.values():
        load_weights(sae, str(source / "sae.safetensors"))
    started = time.perf_counter()
    with torch.autocast("cpu", torch.bfloat16, enabled=product_dtype() == torch.bfloat16, cache_enabled=False):
        trainer.fit()
    record = {"seconds": round(time.perf_counter() - started, 1), "kl_tokens": steps * ROWS * length}
    (target / "training.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", choices=RECIPE["models"], required=True)
    parser.add_argument("--hook", required=True)
    parser.add_argument("--sae", required=True)
    parser.add_argument("--tokens", type=int, default=200_000)
    parser.add_argument("--checkpoints", type=int, default=4)
    arguments = parser.parse_args()
    post_train(
        arguments.folder, arguments.model, arguments.hook, arguments.sae, arguments.tokens, arguments.checkpoints
    )
