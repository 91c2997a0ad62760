"""Recipes of the testbed's SAEs: how each is trained, and where it is written."""

from __future__ import annotations

from dataclasses import dataclass

D_SAE = 1024
LAYERS = 4
LADDER = (0.12, 0.25, 0.5, 0.9, 1.5, 2.5)


@dataclass(frozen=True)
class Recipe:
    """An SAE trained with sae-lens' own trainer."""

    name: str
    architecture: str
    sparsity: float
    """L1 coefficient (standard, gated), k (TopK, BatchTopK) or L0 coefficient (JumpReLU)."""
    seed: int = 0
    hook_name: str = "blocks.2.hook_resid_pre"
    model: str = "model"
    """Folder of the model, beside that of the SAEs."""
    tokens: int = 4_000_000
    distinct: int = 2_000_000
    """Tokens of text whose activations are kept (preference pairs for the reward model's SAE); training repeats them
    until it has seen `tokens`."""
    batch: int = 2048
    folder: str = ""
    """Folder to write, `saes/<name>` by default."""
    layout: str = "saelens"
    learning_rate: float = 1e-3
    """Peak value; the final one is a tenth of it."""
    d_sae: int = D_SAE
    centred: bool = False
    """True to start b_dec at the mean; removing a mean that is large against the variance would kill most features."""


def _site(name: str, layer: int, tokens: int, folder: str = "", layout: str = "saelens", k: int = 16) -> Recipe:
    """A TopK SAE at `blocks.<layer>.hook_<name>`; smaller batches make up for fewer tokens."""
    hook_name, centred = f"blocks.{layer}.hook_{name}", name != "resid_pre"
    name = f"{name}-{layer}" if k == 16 else f"k{k}-{name}-{layer}"
    return Recipe(name, "topk", k, 0, hook_name, "model", tokens, 1_000_000, 1024, folder, layout, centred=centred)


def _short(name: str, architecture: str, sparsity: float, learning_rate: float = 1e-3) -> Recipe:
    return Recipe(
        name, architecture, sparsity, learning_rate=learning_rate, tokens=1_500_000, distinct=1_000_000, batch=1024
    )


ATTN, MLP, REWARD = "dictionary_learning/attn_out/trainer_{}", "sparsify/mlp_out/h.{}.mlp", "reward_saes/topk"


def _known(k: int, seed: int = 0, d_sae: int = 256, suffix: str = "") -> Recipe:
    """A TopK SAE on the world `synthetic`, preset `small`."""
    return Recipe(
        f"synthetic-topk-{k}{suffix}", "topk", k, seed, "activations", "synthetic", 3_000_000, 500_000, 1024,
        f"synthetic/topk-{k}{suffix}", d_sae=d_sae, learning_rate=2e-3,
    )  # fmt: skip


SYNTHETIC = (
    *(_known(k) for k in (2, 4, 8, 16)),
    _known(4, seed=1, suffix="-seed1"),
    _known(6, d_sae=512, suffix="-wide"),
)
"""SAEs trained on activations whose true features are known: 6.3 of 512 fire on a token."""
RECIPES = (
    *(Recipe(f"relu-{i}", "standard", l1) for i, l1 in enumerate(LADDER, 1)),
    *(Recipe(f"relu-5-seed{seed}", "standard", LADDER[4], seed) for seed in (1, 2)),
    *(Recipe(f"topk-{k}", "topk", k) for k in (8, 16, 32)),
    *(_site("resid_pre", i, 2_000_000) for i in (0, 1, 3)),
    *(_site("resid_pre", 3, 2_000_000, k=k) for k in (8, 32)),
    *(_site("attn_out", i, 1_000_000, ATTN.format(i), "dictionary_learning") for i in range(LAYERS)),
    *(_site("mlp_out", i, 1_000_000, MLP.format(i), "sparsify") for i in range(LAYERS)),
    _short("batchtopk", "batchtopk", 16),
    _short("jumprelu", "jumprelu", 0.3, 4e-3),  # thresholds move by about the learning rate a step
    _short("gated", "gated", 1.0),
    Recipe("reward-topk", "topk", 16, 0, "blocks.2.hook_resid_pre", "reward", 1_500_000, 6_000, 1024, REWARD),
)
