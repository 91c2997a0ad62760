"""Time and peak memory of the fidelity metrics in sae-lens' `run_evals`, in saeval, and of the floor, in one process.

A GPT-2-small-shaped random model, random ReLU SAEs of 24,576 features at one hook, k of them at once. sae-lens
evaluates one SAE at a time, so its k runs are summed. The floor is the bare matrix products and attention of one clean
pass, one ablated resume and k spliced resumes, with dense encoders and decoders.

    python benchmarks/fidelity_vs_saelens.py --k 1 4 8 --rows 16 --repeats 3
"""

from __future__ import annotations

import argparse
import gc
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sae_lens import StandardSAE, StandardSAEConfig
from sae_lens.evals import get_eval_everything_config, run_evals
from sae_lens.saes.sae import SAEMetadata
from sae_lens.training.activation_scaler import ActivationScaler
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformer_lens import HookedTransformer, HookedTransformerConfig
from transformer_lens.pretrained.weight_conversions import convert_gpt2_weights
from transformers import GPT2Config, GPT2LMHeadModel

import saeval
from saeval.testing import register_rows, tiny_plugins
from saeval.text.tokens import TokenDataset

METRICS = ["l0", "density", "reconstruction", {"ce": {"ablation": "zero"}}, {"kl": {"ablation": "zero"}}]


class Memory:
    """Peak resident memory above the level at the start, sampled."""

    def __enter__(self) -> Memory:
        gc.collect()
        self.start = self.peak = self._now()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(0.005):
            self.peak = max(self.peak, self._now())

    @staticmethod
    def _now() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    @property
    def mib(self) -> float:
        return (self.peak - self.start) / 2**20


class Store:
    """The activations store that `run_evals` needs: the same tokens in the same batches."""

    def __init__(self, tokens: Tensor, batch: int) -> None:
        self.tokens, self.store_batch_size_prompts, self.context_size = tokens, batch, tokens.shape[1]
        self._next = 0

    def get_batch_tokens(self, batch_size: int) -> Tensor:
        batch = self.tokens[self._next : self._next + batch_size]
        self._next = (self._next + batch_size) % len(self.tokens)
        return batch

    def reset_input_dataset(self) -> None:
        self._next = 0


def models(layers: int) -> tuple[GPT2LMHeadModel, HookedTransformer]:
    torch.manual_seed(0)
    theirs = GPT2LMHeadModel(GPT2Config(n_layer=layers)).eval()
    lens = HookedTransformer(
        HookedTransformerConfig(
            n_layers=layers, d_model=768, n_ctx=1024, d_head=64, n_heads=12, d_mlp=3072, d_vocab=50257,
            act_fn="gelu_new", normalization_type="LN", device="cpu",
        )
    )  # fmt: skip
    lens.load_and_process_state_dict(
        convert_gpt2_weights(theirs, lens.cfg), fold_ln=False, center_writing_weights=False, center_unembed=False
    )
    return theirs, lens.eval()


def random_sae(lens: HookedTransformer, hook: str, d_sae: int, l0: int, tokens: Tensor, seed: int) -> StandardSAE:
    """An SAE with unit decoder rows, tied weights, and biases such that about `l0` features fire."""
    torch.manual_seed(seed)
    d_in = lens.cfg.d_model
    sae = StandardSAE(
        StandardSAEConfig(d_in=d_in, d_sae=d_sae, apply_b_dec_to_input=True, metadata=SAEMetadata(hook_name=hook))
    )
    with torch.no_grad():
        x = lens.run_with_cache(tokens[:2], names_filter=[hook])[1][hook].flatten(0, 1)
        decoder = torch.nn.functional.normalize(torch.randn(d_sae, d_in), dim=1)
        sae.W_dec.copy_(decoder)
        sae.W_enc.copy_(decoder.T)
        sae.b_dec.copy_(x.mean(0))
        sae.b_enc.fill_(-float(((x - sae.b_dec) @ sae.W_enc).flatten()[: 2**22].quantile(1 - l0 / d_sae)))
    return sae


class Floor:
    """The matrix products and attention alone, on buffers of the right shapes."""

    def __init__(self, model: GPT2LMHeadModel, rows: int, context: int, d_sae: int) -> None:
        blocks = model.transformer.h
        self.blocks = [
            (b.attn.c_attn.weight, b.attn.c_proj.weight, b.mlp.c_fc.weight, b.mlp.c_proj.weight) for b in blocks
        ]
        self.unembedding = model.lm_head.weight.T
        self.x = torch.randn(rows * context, 768)
        self.shape = rows, context
        self.encoder, self.decoder = torch.randn(768, d_sae) / 28, torch.randn(d_sae, 768) / 160

    def blocks_from(self, start: int) -> None:
        rows, context = self.shape
        for qkv, out, up, down in self.blocks[start:]:
            heads = (self.x @ qkv).view(rows, context, 3, 12, 64).permute(2, 0, 3, 1, 4)
            mixed = scaled_dot_product_attention(heads[0], heads[1], heads[2], is_causal=True)
            _ = mixed.transpose(1, 2).reshape(-1, 768) @ out
            _ = (self.x @ up) @ down

    def head(self) -> None:
        for part in self.x.split(256):
            _ = part @ self.unembedding

    def run(self, layer: int, saes: int) -> None:
        self.blocks_from(0)
        self.head()
        self.blocks_from(layer)
        self.head()
        for _ in range(saes):
            _ = (self.x @ self.encoder) @ self.decoder
            self.blocks_from(layer)
            self.head()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--k", type=int, nargs="+", default=[1, 4, 8])
    parser.add_argument("--rows", type=int, default=16, help="sequences, in batches of `--batch`")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--context", type=int, default=128)
    parser.add_argument("--layer", type=int, default=6)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--d-sae", type=int, default=24576)
    parser.add_argument("--l0", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", choices=["ours", "theirs", "floor"])
    given = parser.parse_args()
    hook = f"blocks.{given.layer}.hook_resid_pre"
    hf, lens = models(given.layers)
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(0, 50257, (given.rows, given.context), generator=generator)
    saes = [random_sae(lens, hook, given.d_sae, given.l0, tokens, seed) for seed in range(max(given.k))]
    owner = np.repeat(np.arange(given.rows, dtype=np.int32)[:, None], given.context, axis=1)
    rows = TokenDataset.from_arrays(tokens.numpy().astype(np.int32), owner, np.arange(given.rows, dtype=np.int32))
    data = register_rows("benchmark", rows)
    with tempfile.TemporaryDirectory() as folder:
        for index, sae in enumerate(saes):
            sae.save_model(f"{folder}/sae-{index}")

        def ours(k: int) -> Any:
            entries = [{"use": "saelens", "path": f"{folder}/sae-{i}", "name": f"sae-{i}"} for i in range(k)]
            return saeval.evaluate(
                model=hf, saes=entries, data=data, metrics=METRICS, batch_size=given.batch, plugins=tiny_plugins(),
                allow=["*"],
            )  # fmt: skip

        def theirs(k: int) -> Any:
            batches = -(-given.rows // given.batch)
            config = get_eval_everything_config(given.batch, batches, batches)
            return [
                run_evals(
                    sae, Store(tokens, given.batch), lens, ActivationScaler(), config, exclude_special_tokens=False
                )
                for sae in saes[:k]
            ]

        def floor(k: int) -> None:
            with torch.no_grad():
                for _ in range(-(-given.rows // given.batch)):
                    bare.run(given.layer, k)

        bare = Floor(hf, given.batch, given.context, given.d_sae)
        report(given, {"floor": floor, "ours": ours, "theirs": theirs})


def report(given: argparse.Namespace, sides: dict[str, Callable[[int], Any]]) -> None:
    """Print one row per k and side: medians over repeats that alternate between the sides."""
    sides = {given.only: sides[given.only]} if given.only else sides
    for side in sides.values():  # warm up: lazy imports, thread pools, allocator
        side(1)
    print("| k | side | seconds | × floor | MiB |\n|---|---|---|---|---|")
    for k in given.k:
        seconds: dict[str, list[float]] = {name: [] for name in sides}
        memory: dict[str, float] = {}
        for _ in range(given.repeats):
            for name, side in sides.items():
                with Memory() as used:
                    started = time.process_time()
                    side(k)
                    seconds[name].append(time.process_time() - started)
                memory[name] = used.mib
        base = statistics.median(seconds[next(iter(sides))])
        for name, times in seconds.items():
            median = statistics.median(times)
            print(f"| {k} | {name} | {median:.2f} | {median / base:.2f} | {memory[name]:.0f} |", flush=True)


if __name__ == "__main__":
    main()
