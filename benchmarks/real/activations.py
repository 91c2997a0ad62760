"""Activations of a model at some hooks, computed once for all SAEs and kept on disk.

python activations.py FOLDER --model smollm2 --tokens 2000000
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast
from wheels import model_file, texts

RECIPE: dict[str, Any] = yaml.safe_load(Path(__file__).with_name("recipe.yaml").read_text())
_ROWS = 64


class _Finished(Exception):  # noqa: N818 (it stops a forward pass and is no error)
    """The last hook has its activations, so the rest of the forward pass is not needed."""


def product_dtype() -> torch.dtype:
    """Return bfloat16 if this processor multiplies it faster than float32, else float32."""
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        a, b = torch.ones(512, 512, dtype=dtype), torch.ones(512, 512, dtype=dtype)
        a @ b
        started = time.perf_counter()
        for _ in range(10):
            a @ b
        seconds[dtype] = time.perf_counter() - started
    return min(seconds, key=lambda dtype: seconds[dtype])


def load_model(folder: Path, name: str, dtype: torch.dtype) -> Any:
    """Return a model of the recipe, frozen."""
    file = model_file(folder, RECIPE["models"][name]["file"])
    where, gguf = str(file.parent), file.name
    config = AutoConfig.from_pretrained(where, gguf_file=gguf)
    return AutoModelForCausalLM.from_pretrained(where, gguf_file=gguf, config=config, dtype=dtype).eval()


def load_tokenizer(folder: Path, name: str) -> PreTrainedTokenizerFast:
    """Return the tokenizer in a model's GGUF file."""
    file = model_file(folder, RECIPE["models"][name]["file"])
    return PreTrainedTokenizerFast.from_pretrained(str(file.parent), gguf_file=file.name)


def token_rows(folder: Path, name: str) -> Iterator[list[int]]:
    """Yield rows of BOS and `context` - 1 tokens of the training texts, which are joined with EOS between."""
    tokenizer, length = load_tokenizer(folder, name), RECIPE["context"] - 1
    waiting: list[int] = []
    with texts(folder)[0].open(encoding="utf-8") as lines:
        for batch in _batched(lines, 500):
            for ids in tokenizer([json.loads(line)["text"] for line in batch], add_special_tokens=False).input_ids:
                waiting += [*ids, tokenizer.eos_token_id]
            for start in range(0, len(waiting) - length + 1, length):
                yield [tokenizer.bos_token_id, *waiting[start : start + length]]
            waiting = waiting[len(waiting) // length * length :]


def _batched(lines: Any, size: int) -> Iterator[list[str]]:
    while batch := list(itertools.islice(lines, size)):
        yield batch


def cache_activations(folder: Path, name: str, tokens: int) -> None:
    """Write the activations `[tokens, d_model]` of every hook of a model in bfloat16, BOS left out.

    Continues after the last whole batch if it was interrupted, or to more `tokens`.
    """
    hooks, length = RECIPE["models"][name]["hooks"], RECIPE["context"] - 1
    target = folder / "activations" / name
    target.mkdir(parents=True, exist_ok=True)
    finished = min((_rows_of(activation_file(folder, name, hook)) for hook in hooks), default=0)
    needed = -(-tokens // (length * _ROWS)) * _ROWS
    if finished >= needed:
        return
    model = load_model(folder, name, product_dtype())
    captured: dict[str, Tensor] = {}

    def capture(hook_name: str, last: bool) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            captured[hook_name] = output[0] if isinstance(output, tuple) else output
            if last:
                raise _Finished

        return hook

    # The residual stream after a block comes after what its MLP adds to it.
    order = sorted(hooks, key=lambda hook: (int(hook.split(".")[1]), hook.endswith("resid_post")))
    for hook in order:
        model.model.get_submodule(hooks[hook]).register_forward_hook(capture(hook, hook == order[-1]))
    rows = itertools.islice(token_rows(folder, name), finished, needed)
    started = time.perf_counter()
    for batch in range(finished, needed, _ROWS):
        ids = torch.tensor(list(itertools.islice(rows, _ROWS)))
        with torch.no_grad(), contextlib.suppress(_Finished):
            model(ids, use_cache=False)
        for hook in hooks:
            values = captured[hook][:, 1:].reshape(-1, captured[hook].shape[-1]).bfloat16()
            with activation_file(folder, name, hook).open("r+b" if batch else "wb") as stream:
                stream.seek(batch * length * values.shape[1] * 2)
                stream.write(values.contiguous().view(torch.int16).numpy().tobytes())
        done = batch + _ROWS - finished
        if batch // _ROWS % 20 == 0:
            speed = done * length / (time.perf_counter() - started)
            print(
                f"{name}: {(batch + _ROWS) * length:,} of {needed * length:,} tokens, {speed:.0f} a second", flush=True
            )


def activation_file(folder: Path, name: str, hook_name: str) -> Path:
    """Return the file with the activations of a hook."""
    return folder / "activations" / name / f"{hook_name}.bf16"


def _rows_of(file: Path) -> int:
    """Return the number of rows of whole batches in a file."""
    if not file.is_file():
        return 0
    bytes_of_row = (RECIPE["context"] - 1) * RECIPE["models"][file.parent.name]["d_model"] * 2
    return file.stat().st_size // (bytes_of_row * _ROWS) * _ROWS


class Activations:
    """The cached activations at a hook, in a random order."""

    def __init__(self, folder: Path, name: str, hook_name: str, tokens: int) -> None:
        width = RECIPE["models"][name]["d_model"]
        stored = np.memmap(activation_file(folder, name, hook_name), dtype=np.int16, mode="r")
        self._stored = stored.reshape(-1, width)[:tokens]
        if len(self._stored) < tokens:
            raise ValueError(f"{hook_name} of {name} has {len(self._stored)} cached activations, of {tokens} needed")
        self.tokens, self.width = tokens, width

    def take(self, indices: Tensor) -> Tensor:
        """Return the activations `[*indices.shape, d_model]` at `indices`, in float32."""
        rows = torch.from_numpy(self._stored[indices.reshape(-1).numpy()]).view(torch.bfloat16)
        return rows.float().reshape(*indices.shape, self.width)

    def batches(self, size: int, seed: int) -> Iterator[Tensor]:
        """Yield batches `[size, d_model]`, pass after pass, each in an order of its own."""
        generator = torch.Generator().manual_seed(seed)
        while True:
            order = torch.randperm(self.tokens, generator=generator)
            for indices in order.split(size):
                if len(indices) == size:
                    yield self.take(indices)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", choices=RECIPE["models"], required=True)
    parser.add_argument("--tokens", type=int, default=RECIPE["training_tokens"])
    arguments = parser.parse_args()
    cache_activations(arguments.folder, arguments.model, arguments.tokens)
