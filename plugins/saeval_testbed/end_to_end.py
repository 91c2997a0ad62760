"""Trains local, end-to-end and end-to-end+downstream SAEs to the same increase in CE, and writes them as Apollo does.

The losses are those of e2e_sae: its KL of the model's output, its MSE of later residual streams, its local MSE, and
coeff · mean‖c‖₁ / d_in. Unlike there, the coefficient is steered.
"""

from __future__ import annotations

import json
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoModelForCausalLM, GPT2LMHeadModel

from saeval.plugin import FREE_SPACE, write_whole
from saeval_testbed.activations import CONTEXT, activations, text_rows
from saeval_testbed.recipes import D_SAE

LAYER = 2
HOOK_NAME = f"blocks.{LAYER}.hook_resid_pre"
KEY = HOOK_NAME.replace(".", "-")
CE_INCREASE = 0.5
"""Target of the steering: CE with the SAE minus the clean CE, in nats per token, on training text."""
BATCH = 8
LEARNING_RATE = 1e-3
SEEN_EVERY = {"local": 8, "e2e": 1, "e2e_ds": 1}
"""Steps between measurements of the increase in CE, which the local loss needs only for steering."""
HELD = 0.9
"""Share of the training after which the coefficient is constant."""


@dataclass(frozen=True)
class MatchedRecipe:
    """An SAE of the matched set."""

    name: str
    kind: Literal["local", "e2e", "e2e_ds"]
    start: float
    """Sparsity coefficient before steering."""
    steered_from: float = 0.4
    """Share of the training before steering, while everything still improves."""
    seed: int = 0
    samples: int = 8_000
    """Sequences of `CONTEXT` tokens."""


MATCHED = (
    MatchedRecipe("e2e", "e2e", 1.3),
    MatchedRecipe("e2e_ds", "e2e_ds", 1.0),
    MatchedRecipe("local", "local", 0.3, 0.65, samples=20_000),  # needs more samples, and each costs less
    MatchedRecipe("e2e-seed1", "e2e", 1.3, seed=1),
    MatchedRecipe("e2e_ds-seed1", "e2e_ds", 1.0, seed=1),
)
WEIGHTS = {
    "local": {"out_to_in": 1.0, "logits_kl": 0.0, "in_to_orig": 0.0},
    "e2e": {"out_to_in": 0.0, "logits_kl": 1.0, "in_to_orig": 0.0},
    "e2e_ds": {"out_to_in": 0.0, "logits_kl": 0.5, "in_to_orig": 0.25},
}


class EndToEndSAE(nn.Module):
    """relu(x W_enc + b_enc), with no bias before the encoder; decoder columns are normalised in use."""

    def __init__(self, d_in: int, d_sae: int, mean: Tensor) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(d_in, d_sae), nn.ReLU())
        self.decoder = nn.Linear(d_sae, d_in)
        with torch.no_grad():  # tied and centred, so that few steps suffice
            self.decoder.weight.copy_(functional.normalize(torch.randn(d_in, d_sae), dim=0))
            self.decoder.bias.copy_(mean)
            self.encoder[0].weight.copy_(self.decoder.weight.T)
            self.encoder[0].bias.copy_(-self.decoder.weight.T @ mean)

    def decode(self, acts: Tensor) -> Tensor:
        """`[..., d_in]`"""
        return functional.linear(acts, functional.normalize(self.decoder.weight, dim=0), self.decoder.bias)


@dataclass
class Passed:
    """Outputs of a partial forward pass, from the hook on."""

    residuals: list[Tensor]
    """`[batch, seq, d_model]` after each block from the hook on."""
    log_probabilities: Tensor
    """`[batch, seq, vocab]`"""

    def ce(self, ids: Tensor) -> Tensor:
        """Mean loss of every token after the first, in nats per token."""
        return functional.nll_loss(self.log_probabilities[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


def resume(model: GPT2LMHeadModel, hidden: Tensor) -> Passed:
    """Run from the residual stream `[batch, seq, d_model]` at the input of block `LAYER` to the output."""
    residuals = []
    for block in model.transformer.h[LAYER:]:
        hidden = block(hidden)
        residuals.append(hidden)
    logits = model.lm_head(model.transformer.ln_f(hidden))
    return Passed(residuals, logits.float().log_softmax(-1))


@torch.no_grad()
def entering(model: GPT2LMHeadModel, ids: Tensor) -> Tensor:
    """The residual stream `[batch, seq, d_model]` at the hook."""
    return activations(model, ids, [HOOK_NAME])[HOOK_NAME]


class Steering:
    """Adjusts the sparsity coefficient until the increase in CE is `CE_INCREASE`."""

    def __init__(self, coefficient: float, steered_from: float, steps: int) -> None:
        self.log = math.log(coefficient)
        self.steered_from = steered_from
        self.held: list[float] = []
        self.steps = steps
        self.increase: float | None = None

    def coefficient(self, step: int) -> float:
        return math.exp(self.log) * min((step + 1) / (0.05 * self.steps), 1.0)

    def record(self, increase: float, step: int, every: int) -> None:
        """Record the increase in CE on one batch, measured `every` so many steps; its moving average steers."""
        decay = 0.95**every
        self.increase = increase if self.increase is None else decay * self.increase + (1 - decay) * increase
        if self.steered_from * self.steps < step < HELD * self.steps:
            ratio = math.log(CE_INCREASE / max(self.increase, 0.01))
            self.log += 20 / self.steps * every * max(-1.0, min(ratio, 1.0))
        elif step >= HELD * self.steps:
            self.held.append(increase)


def train_matched(recipe: MatchedRecipe, out: Path) -> None:
    """Train one SAE on `out/model` and write it below `out/apollo`, with float16 tensors."""
    torch.manual_seed(recipe.seed)
    model = AutoModelForCausalLM.from_pretrained(out / "model", dtype=torch.float32).eval().requires_grad_(False)
    rows = text_rows(out / "model")
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(recipe.seed))[: recipe.samples]
    batches = [batch for batch in rows[order].split(BATCH) if len(batch) == BATCH]
    mean = torch.cat([entering(model, batch)[:, 1:].flatten(0, 1) for batch in batches[:32]]).mean(0)
    sae = EndToEndSAE(model.config.n_embd, D_SAE, mean)
    optimizer = torch.optim.Adam(sae.parameters(), lr=LEARNING_RATE)
    steering, started = Steering(recipe.start, recipe.steered_from, len(batches)), time.monotonic()
    l0 = 0.0
    for step, ids in enumerate(batches):
        done = step / len(batches)
        rate = 0.1 + 0.45 * (1 + math.cos(math.pi * done))
        for group in optimizer.param_groups:  # linear warm-up over the first 5%, then a cosine to a tenth
            group["lr"] = LEARNING_RATE * rate * min((step + 1) / (0.05 * len(batches)), 1.0)
        loss, increase, acts = _loss(recipe.kind, model, sae, ids, steering.coefficient(step), step)
        if increase is not None:
            steering.record(increase, step, SEEN_EVERY[recipe.kind])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(sae.parameters(), 10.0)
        optimizer.step()
        l0 = 0.98 * l0 + 0.02 * (acts > 0).sum(-1).float().mean().item()
        if (step + 1) % 50 == 0:
            print(
                f"{recipe.name} {step + 1}/{len(batches)}: loss {loss.item():.4f}, CE +{steering.increase:.3f}, "
                f"L0 {l0:.1f}, coefficient {steering.coefficient(step):.3f}, {time.monotonic() - started:.0f} s",
                flush=True,
            )
    report = {
        "kind": recipe.kind,
        "ce_increase_target": CE_INCREASE,
        "ce_increase_in_training": sum(steering.held) / len(steering.held),
        "l0_in_training": l0,
        "seconds": time.monotonic() - started,
    }
    _write(recipe, sae, steering.coefficient(len(batches)), report, out / "apollo" / recipe.name)


def _loss(
    kind: str, model: GPT2LMHeadModel, sae: EndToEndSAE, ids: Tensor, coefficient: float, step: int
) -> tuple[Tensor, float | None, Tensor]:
    """Return the loss of a batch `[BATCH, CONTEXT]`, the increase in CE if measured, and the feature activations.

    The BOS position keeps its own activation, since no SAE here is trained on it.
    """
    weights = WEIGHTS[kind]
    x = entering(model, ids)
    acts = sae.encoder(x[:, 1:])
    x_hat = sae.decode(acts)
    loss = coefficient * acts.sum(-1).mean() / x.shape[-1]
    loss = loss + weights["out_to_in"] * functional.mse_loss(x_hat, x[:, 1:])
    if step % SEEN_EVERY[kind]:
        return loss, None, acts
    with torch.set_grad_enabled(kind != "local"):
        replaced = resume(model, torch.cat([x[:, :1], x_hat], dim=1))
    with torch.no_grad():
        clean = resume(model, x)
        increase = (replaced.ce(ids) - clean.ce(ids)).item()
    if kind == "local":
        return loss, increase, acts
    kl = functional.kl_div(
        replaced.log_probabilities.flatten(0, 1),
        clean.log_probabilities.flatten(0, 1),
        log_target=True,
        reduction="batchmean",
    )
    loss = loss + weights["logits_kl"] * kl
    if weights["in_to_orig"]:
        pairs = zip(replaced.residuals, clean.residuals, strict=True)
        later = [functional.mse_loss(ours, theirs) for ours, theirs in pairs]
        loss = loss + weights["in_to_orig"] * torch.stack(later).mean()
    return loss, increase, acts


def _write(recipe: MatchedRecipe, sae: EndToEndSAE, coefficient: float, report: dict[str, Any], folder: Path) -> None:
    state = {f"{KEY}.{name}": tensor.half() for name, tensor in sae.state_dict().items()}
    write_whole(folder / f"samples_{recipe.samples}.pt", lambda file: torch.save(state, file), f"{FREE_SPACE} --out")
    weights = WEIGHTS[recipe.kind]
    later = [f"blocks.{LAYER + 1}.hook_resid_pre", f"blocks.{LAYER + 1}.hook_resid_post"]
    downstream = {"hook_positions": later, "total_coeff": weights["in_to_orig"]} if weights["in_to_orig"] else None
    config = {
        "tlens_model_name": None,
        "tlens_model_path": "saeval-testbed",
        "seed": recipe.seed,
        "n_samples": recipe.samples,
        "batch_size": BATCH,
        "lr": LEARNING_RATE,
        "lr_schedule": "cosine",
        "min_lr_factor": 0.1,
        "max_grad_norm": 10.0,
        "loss": {
            "sparsity": {"p_norm": 1.0, "coeff": round(coefficient, 5)},
            "in_to_orig": downstream,
            "out_to_orig": None,
            "out_to_in": {"coeff": weights["out_to_in"]},
            "logits_kl": {"coeff": weights["logits_kl"]} if weights["logits_kl"] else None,
        },
        "train_data": {"dataset_name": "python-stdlib", "is_tokenized": False, "n_ctx": CONTEXT},
        "saes": {"sae_positions": [HOOK_NAME], "dict_size_to_input_ratio": D_SAE / sae.encoder[0].in_features},
    }
    write_whole(folder / "final_config.yaml", yaml.safe_dump(config, sort_keys=False).encode(), f"{FREE_SPACE} --out")
    write_whole(folder / "report.json", f"{json.dumps(report, indent=1)}\n".encode(), f"{FREE_SPACE} --out")
    print(f"{recipe.name}: {json.dumps(report)}", flush=True)
