"""The time of `saeval.evaluate` in a training loop, with and without `KeptPasses`.

`python benchmarks/training_loop.py --help`. A random GPT-2 of the given size and a random TopK SAE before its middle
block; nothing is downloaded. Each call gets another SAE. The first call without also imports what is needed.
"""

from __future__ import annotations

import argparse
import time

import torch
from transformers import GPT2Config, GPT2LMHeadModel

import saeval
from saeval.testing import tiny_tokens
from saeval.testing.fixtures import InMemory, register_rows


class TopK(torch.nn.Module):
    """A random SAE of 32 active features."""

    def __init__(self, d_in: int, d_sae: int, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        decoder = torch.randn(d_sae, d_in, generator=generator)
        self.W_dec = torch.nn.Parameter(decoder / decoder.norm(dim=1, keepdim=True))
        self.d_sae = d_sae

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        values, indices = (x @ self.W_dec.T).topk(32, dim=-1)
        return torch.zeros(*x.shape[:-1], self.d_sae).scatter_(-1, indices, values.relu())

    def decode(self, acts: torch.Tensor) -> torch.Tensor:
        return acts @ self.W_dec


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--vocabulary", type=int, default=8192)
    parser.add_argument("--sequences", type=int, default=64)
    parser.add_argument("--context", type=int, default=128)
    parser.add_argument("--calls", type=int, default=3)
    sizes = parser.parse_args()
    config = GPT2Config(
        n_layer=sizes.layers, n_head=4, n_embd=sizes.width, vocab_size=sizes.vocabulary, n_positions=sizes.context
    )
    model = GPT2LMHeadModel(config).eval()
    rows = tiny_tokens(sizes.sequences, sizes.context, sizes.vocabulary, documents=sizes.sequences // 2)
    data = register_rows("training-loop", rows)
    plugins = saeval.Plugins()
    plugins.add(_Rows(), "rows")
    kept = saeval.KeptPasses()

    def call(seed: int, **options: saeval.KeptPasses) -> tuple[float, int]:
        sae, started = TopK(sizes.width, 8 * sizes.width, seed), time.process_time()
        results = saeval.evaluate(
            model=model, saes={"sae": (sae, f"blocks.{sizes.layers // 2}.hook_resid_pre")}, data=data,
            metrics=["l0", "reconstruction", "ce", "kl"], controls=["identity", "mean"], plugins=plugins,
            allow=["*"], **options,
        )  # fmt: skip
        return time.process_time() - started, results.forward_passes

    print(
        "| call | without, s of CPU time | passes | with KeptPasses, s | passes | ratio to the first |\n"
        "|---|---|---|---|---|---|"
    )
    first = None
    for seed in range(sizes.calls):
        (alone, passes), (shared, fewer) = call(seed), call(seed, kept=kept)
        first = first or shared
        print(f"| {seed + 1} | {alone:.2f} | {passes} | {shared:.2f} | {fewer} | {shared / first:.2f} |", flush=True)
    print(f"kept: {kept.size / 2**20:.0f} MiB")


class _Rows:
    @saeval.hookimpl
    def saeval_data(self) -> list[type]:
        return [InMemory]


if __name__ == "__main__":
    main()
