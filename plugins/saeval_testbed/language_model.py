"""Trains the testbed's language model: a small GPT-2 on the Python standard library's source."""

from __future__ import annotations

import json
import math
import time
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from saeval.plugin import FREE_SPACE, write_whole
from saeval_data.stdlib import stdlib_modules

VOCABULARY = 4096
CONTEXT = 256
BATCH = 16
PEAK_LEARNING_RATE = 3e-3
STEPS = 6500
SEED = 0


def train_tokenizer(documents: list[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE of `VOCABULARY` tokens; `<|endoftext|>` is both BOS and EOS."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|endoftext|>",
        eos_token="<|endoftext|>",
        model_max_length=CONTEXT,
    )


def encode(tokenizer: Any, documents: list[str]) -> list[Tensor]:
    """Token ids of each document, without special tokens."""
    encodings = tokenizer.backend_tokenizer.encode_batch(documents, add_special_tokens=False)
    return [torch.tensor(e.ids, dtype=torch.int64) for e in encodings]


def rows(documents: list[Tensor], bos: int, size: int = CONTEXT) -> Tensor:
    """Rows `[n, size + 1]` within single documents, BOS first; tails are dropped."""
    starts = [(ids, start) for ids in documents for start in range(0, len(ids) - size + 1, size)]
    return torch.stack([torch.cat([torch.tensor([bos]), ids[start : start + size]]) for ids, start in starts])


def train_language_model(out: Path, steps: int = STEPS) -> None:
    """Train the model and write it as a Hugging Face folder (float16), with its tokenizer and `report.json`."""
    torch.manual_seed(SEED)
    train_texts = [text for _, text in stdlib_modules("train")]
    held_texts = [text for _, text in stdlib_modules("held_out")]
    tokenizer = train_tokenizer(train_texts)
    bos = tokenizer.bos_token_id
    train_documents, held_documents = encode(tokenizer, train_texts), encode(tokenizer, held_texts)
    data = rows(train_documents, bos)
    held = rows(held_documents, bos)
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=CONTEXT,
        n_embd=128,
        n_layer=4,
        n_head=4,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=bos,
        eos_token_id=bos,
    )
    model = GPT2LMHeadModel(config)
    decay = [p for p in model.parameters() if p.ndim >= 2]
    rest = [p for p in model.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": decay, "weight_decay": 0.05}, {"params": rest, "weight_decay": 0.0}],
        lr=PEAK_LEARNING_RATE,
        betas=(0.9, 0.95),
    )
    order = torch.Generator().manual_seed(SEED)
    started, queue = time.monotonic(), torch.empty(0, dtype=torch.int64)
    for step in range(steps):
        if len(queue) < BATCH:
            queue = torch.randperm(len(data), generator=order)
        batch, queue = data[queue[:BATCH]], queue[BATCH:]
        for group in optimizer.param_groups:  # linear warm-up over the first 2%, then linearly to zero
            group["lr"] = PEAK_LEARNING_RATE * min((step + 1) / (0.02 * steps), 1.0) * (1 - step / steps)
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(batch[:, :-1]).logits
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if (step + 1) % 100 == 0:
            print(f"step {step + 1}/{steps}  loss {loss.item():.3f}", flush=True)

    minutes = (time.monotonic() - started) / 60
    model.half().save_pretrained(out)
    tokenizer.save_pretrained(out)
    model.float().eval()
    report = _report(model, tokenizer, train_documents, held_documents, held_texts, held)
    report |= {"steps": steps, "training_tokens": steps * BATCH * CONTEXT, "minutes": minutes, "seed": SEED}
    text = json.dumps(report, indent=2)
    write_whole(out / "report.json", f"{text}\n".encode(), f"{FREE_SPACE} --out")
    print(text, flush=True)


@torch.no_grad()
def _report(
    model: GPT2LMHeadModel,
    tokenizer: PreTrainedTokenizerFast,
    train: list[Tensor],
    held: list[Tensor],
    held_texts: list[str],
    held_rows: Tensor,
) -> dict[str, float | int]:
    """Held-out CE in nats and in bits per byte, and the CE of a unigram and a bigram on the same targets."""
    total = 0.0
    for batch in held_rows.split(BATCH):
        logits = model(batch[:, :-1]).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten(), reduction="sum")
        total += loss.item()
    targets = held_rows[:, 1:].numel()
    bytes_per_token = sum(len(t.encode()) for t in held_texts) / sum(len(ids) for ids in held)
    unigram, bigram = _count_models(train, held_rows, len(tokenizer), tokenizer.bos_token_id)
    return {
        "held_out_ce": total / targets,
        "held_out_bits_per_byte": total / targets / math.log(2) / bytes_per_token,
        "unigram_ce": unigram,
        "bigram_ce": bigram,
        "held_out_tokens": targets,
        "bytes_per_token": bytes_per_token,
        "corpus_tokens": sum(len(ids) for ids in train),
        "parameters": sum(p.numel() for p in model.parameters()),
    }


def _count_models(train: list[Tensor], held: Tensor, vocabulary: int, bos: int) -> tuple[float, float]:
    """CE of an add-one unigram, and of a bigram interpolated with it by absolute discounting (0.75)."""
    unigrams: Counter[int] = Counter()
    bigrams: Counter[tuple[int, int]] = Counter()
    for document in train:
        ids = [bos, *document.tolist()]
        unigrams.update(ids[1:])
        bigrams.update(pairwise(ids))
    total = sum(unigrams.values())
    followed: Counter[int] = Counter()
    followers: Counter[int] = Counter()
    for (first, _), count in bigrams.items():
        followed[first] += count
        followers[first] += 1
    unigram_loss = bigram_loss = 0.0
    for row in held.tolist():
        for first, second in pairwise(row):
            unigram = (unigrams[second] + 1) / (total + vocabulary)
            unigram_loss -= math.log(unigram)
            if followed[first]:
                discounted = max(bigrams[first, second] - 0.75, 0.0) / followed[first]
                bigram_loss -= math.log(discounted + 0.75 * followers[first] / followed[first] * unigram)
            else:
                bigram_loss -= math.log(unigram)
    return unigram_loss / held[:, 1:].numel(), bigram_loss / held[:, 1:].numel()
