"""Fine-tunes the testbed's reward model on its preference pairs, from its language model."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import GPT2ForSequenceClassification, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from saeval.plugin import FREE_SPACE, write_whole
from saeval_testbed.preferences import preference_pairs

PAIRS, HELD_OUT_PAIRS, PAIRS_SEED = 6_000, 1_000, 0
EPOCHS = 1
BATCH = 16
LEARNING_RATE = 4e-4
SEED = 0
SIDES = ("chosen", "rejected")


def tokens(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Ids `[n, seq]`, BOS first and padded on the right, and the number of real ids per row `[n]`."""
    bos = tokenizer.bos_token_id
    rows = [[bos, *tokenizer.encode(text, add_special_tokens=False)] for text in texts]
    longest = max(map(len, rows))
    ids = torch.tensor([row + [tokenizer.pad_token_id] * (longest - len(row)) for row in rows])
    return ids, torch.tensor([len(row) for row in rows])


def rewards(model: GPT2ForSequenceClassification, ids: Tensor) -> Tensor:
    """Score `[n]` at the last real token. Padding is on the right, so causal attention never sees it."""
    return model(ids).logits[:, 0]  # type: ignore[no-any-return]


def texts_of(pairs: Sequence[dict[str, Any]]) -> list[str]:
    """All chosen sides, then all rejected ones, each after its prompt."""
    return [pair["prompt"] + pair[side] for side in SIDES for pair in pairs]


def train_reward_model(out: Path, epochs: int = EPOCHS) -> None:
    """Fine-tune `out/model` (Bradley-Terry); write it in float16, its tokenizer and `report.json` to `out/reward`."""
    torch.manual_seed(SEED)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(out / "model")
    tokenizer.pad_token = tokenizer.eos_token  # in no text, and as BOS never the last token of a row
    model = GPT2ForSequenceClassification.from_pretrained(
        out / "model", num_labels=1, pad_token_id=tokenizer.pad_token_id, dtype=torch.float32
    )
    pairs = list(preference_pairs("train", PAIRS, PAIRS_SEED))
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.01)
    order = torch.Generator().manual_seed(SEED)
    steps = epochs * (len(pairs) // BATCH)
    started, step, average = time.monotonic(), 0, 0.0
    for _ in range(epochs):
        for chosen in torch.randperm(len(pairs), generator=order).split(BATCH):
            if len(chosen) < BATCH:
                continue
            for group in optimizer.param_groups:  # linear warm-up over the first 5%, then linearly to zero
                group["lr"] = LEARNING_RATE * min((step + 1) / (0.05 * steps), 1.0) * (1 - step / steps)
            ids, _ = tokens(tokenizer, texts_of([pairs[i] for i in chosen]))
            first, second = rewards(model, ids).chunk(2)
            loss = -torch.nn.functional.logsigmoid(first - second).mean()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            step, average = step + 1, 0.95 * average + 0.05 * loss.item()
            if step % 25 == 0:
                print(f"reward {step}/{steps}: loss {average:.3f}, {time.monotonic() - started:.0f} s", flush=True)
    model.half().save_pretrained(out / "reward")
    tokenizer.save_pretrained(out / "reward")
    held = list(preference_pairs("held_out", HELD_OUT_PAIRS, PAIRS_SEED))
    report = accuracies(model.float().eval(), tokenizer, held)
    report |= {"training_pairs": len(pairs), "epochs": epochs, "seed": SEED}
    text = json.dumps(report, indent=2)
    write_whole(out / "reward" / "report.json", f"{text}\n".encode(), f"{FREE_SPACE} --out")
    print(text, flush=True)


@torch.no_grad()
def margins(
    model: GPT2ForSequenceClassification, tokenizer: PreTrainedTokenizerBase, pairs: Sequence[dict[str, Any]]
) -> tuple[Tensor, Tensor]:
    """Chosen minus rejected: rewards `[n]`, and lengths in tokens `[n]`."""
    margin, longer = [], []
    for start in range(0, len(pairs), BATCH):
        ids, lengths = tokens(tokenizer, texts_of(pairs[start : start + BATCH]))
        first, second = rewards(model, ids).chunk(2)
        margin.append(first - second)
        longer.append(torch.sub(*lengths.chunk(2)))
    return torch.cat(margin), torch.cat(longer)


def accuracies(
    model: GPT2ForSequenceClassification, tokenizer: PreTrainedTokenizerBase, pairs: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """By subset: accuracy on the labels, on the pattern (labels unflipped), with lengths balanced, and of length alone.

    Balanced: the mean of two accuracies, over pairs whose chosen side is longer and over those whose is shorter. Length
    alone chooses the longer side; a tie counts as half.
    """
    margin, longer = margins(model, tokenizer, pairs)
    correct = (margin > 0).float()
    flipped = torch.tensor([pair["flipped"] for pair in pairs])
    pattern = torch.where(flipped, 1 - correct, correct)
    report: dict[str, Any] = {"pairs": len(pairs), "documents": len({pair["document"] for pair in pairs})}
    for subset in ("planted", "conflict", "second", "neutral"):
        inside = torch.tensor([pair["subset"] == subset for pair in pairs])
        balanced = (correct[inside & (longer > 0)].mean() + correct[inside & (longer < 0)].mean()) / 2
        towards = torch.where(flipped, -margin, margin)[inside]
        report[subset] = {
            "pairs": int(inside.sum()),
            "accuracy": correct[inside].mean().item(),
            "accuracy_on_pattern": pattern[inside].mean().item() if subset != "neutral" else None,
            "accuracy_length_balanced": balanced.item(),
            "accuracy_of_length": (0.5 + 0.5 * longer[inside].sign().float()).mean().item(),
            "mean_margin_towards_pattern": towards.mean().item() if subset != "neutral" else None,
        }
    return report
