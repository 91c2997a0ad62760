"""Training data of the SAEs: a model's activations at several hooks, from one forward pass."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, GPT2PreTrainedModel

from saeval.plugin import hashed
from saeval_data.stdlib import stdlib_modules
from saeval_models.pretrained import family_of, module_sites
from saeval_testbed.language_model import encode, rows
from saeval_testbed.preferences import preference_pairs
from saeval_testbed.reward_model import texts_of, tokens

CONTEXT = 128


def text_rows(model_folder: Path, split: str = "train") -> Tensor:
    """`[n, CONTEXT]` token ids within single modules, BOS first in each row, in a fixed random order."""
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    documents = encode(tokenizer, [text for _, text in stdlib_modules(split)])
    texts = rows(documents, tokenizer.bos_token_id, CONTEXT - 1)
    return texts[torch.randperm(len(texts), generator=torch.Generator().manual_seed(0))]


@torch.no_grad()
def text_activations(model_folder: Path, hook_names: Sequence[str], tokens: int) -> dict[str, Tensor]:
    """`[n, d_in]` float32 at each hook, of about `tokens` tokens of training text; BOS positions are left out."""
    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32).eval()
    texts = text_rows(model_folder)[: tokens // (CONTEXT - 1)]
    parts = [activations(model, part, hook_names) for part in texts.split(64)]
    return {name: torch.cat([part[name][:, 1:].flatten(0, 1) for part in parts]) for name in hook_names}


def world_activations(hook_names: Sequence[str], samples: int) -> dict[str, Tensor]:
    """`[n, d]` float32 samples of the world `synthetic`, preset `small`, none of which is in its two splits."""
    from saeval_synthetic.source import Synthetic  # late: only these SAEs are trained on it

    world, parts = Synthetic(preset="small").world(), []
    for first in range(0, samples, 2**14):
        keys = hashed("training", np.arange(first, min(first + 2**14, samples)))
        parts.append(world.activations(world.features(keys), keys))
    return dict.fromkeys(hook_names, torch.cat(parts))


def activations(owner: GPT2PreTrainedModel, ids: Tensor, hook_names: Sequence[str]) -> dict[str, Tensor]:
    """`[batch, seq, d_in]` at each hook; blocks after the last one are not run."""
    captured: dict[str, Tensor] = {}
    model: Any = owner.base_model
    blocks, norm = model.h, model.ln_f
    sites = module_sites(blocks, family_of(owner))
    with ExitStack() as stack:
        for name in hook_names:
            stack.callback(sites[name].watch(partial(captured.__setitem__, name)).remove)
        depth = max(sites[name].block for name in hook_names) + 1
        model.h, model.ln_f = blocks[:depth], torch.nn.Identity()
        try:
            model(ids, use_cache=False)
        finally:
            model.h, model.ln_f = blocks, norm
    return captured


def batches(data: Tensor, size: int, seed: int) -> Iterator[Tensor]:
    """Yield batches `[size, d_in]` forever: each row once per epoch, except the incomplete last batch."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        for chosen in torch.randperm(len(data), generator=generator).split(size):
            if len(chosen) == size:
                yield data[chosen]


@torch.no_grad()
def pair_activations(model_folder: Path, hook_names: Sequence[str], pairs: int) -> dict[str, Tensor]:
    """`[n, d_in]` float32 of a reward model on both sides of training pairs; BOS and padding are left out."""
    model = AutoModelForSequenceClassification.from_pretrained(model_folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    parts: dict[str, list[Tensor]] = {name: [] for name in hook_names}
    texts = texts_of(list(preference_pairs("train", pairs)))
    for start in range(0, len(texts), 64):
        ids, lengths = tokens(tokenizer, texts[start : start + 64])
        real = torch.arange(ids.shape[1])[None] < lengths[:, None]
        real[:, 0] = False
        for name, value in activations(model, ids, hook_names).items():
            parts[name].append(value[real])
    return {name: torch.cat(values) for name, values in parts.items()}
