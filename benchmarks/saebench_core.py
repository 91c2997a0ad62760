"""SAEBench's core evaluation at its paper settings, sae-lens' `run_evals` of the same size, and saeval: time per SAE.

SAEBench evaluates 200 batches of 16 sequences for the losses and 2,000 for variance and features. Here each part is
timed on few batches and on three times as many. The time per batch is multiplied; what an SAE costs once is not. The
model is SmolLM2-135M, or a random GPT-2 small; SAEBench gets the same weights in a HookedTransformer. The SAEs are
random ReLU SAEs in its middle. The values of the first SAE are compared with saeval's, on the same tokens. SAEBench and
sae-lens take one SAE at a time, so they are timed on one.

    pip install --no-deps sae-bench==0.6.0; pip install beartype openai seaborn scikit-learn
    python benchmarks/saebench_core.py --k 12
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from fidelity_vs_saelens import Store, models, random_sae
from sae_bench.evals.core import main as saebench
from sae_lens.evals import get_eval_everything_config, run_evals
from sae_lens.training.activation_scaler import ActivationScaler
from torch import Tensor
from transformer_lens import HookedTransformer, HookedTransformerConfig
from transformer_lens.pretrained.weight_conversions import convert_llama_weights
from transformers import AutoModelForCausalLM

import saeval
from saeval.testing import register_rows, tiny_plugins
from saeval.text.tokens import TokenDataset

sys.path.append(str(Path(__file__).parent / "real"))
from wheels import SMOLLM2, model_file

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "saeval-benchmarks"
SHAPES = {"smollm2": (14, 4608), "gpt2": (8, 16384)}
"""Of each model: the block before which the SAEs are, and their width."""
PAPER = {"losses": 200, "features": 2000}
"""Batches of each part in SAEBench's README."""
OURS = {
    "losses": ["saebench_downstream"],
    "features": [{"saebench_variance": {"batch_size": 16}}, "saebench_features", "saebench_weights"],
}


def smollm2() -> tuple[Any, HookedTransformer]:
    """Return SmolLM2-135M of transformers, and its weights in a HookedTransformer, whose logits are compared."""
    file = model_file(CACHE, SMOLLM2)
    theirs = AutoModelForCausalLM.from_pretrained(str(file.parent), gguf_file=file.name, dtype=torch.float32).eval()
    c = theirs.config
    lens = HookedTransformer(
        HookedTransformerConfig(
            n_layers=c.num_hidden_layers, d_model=c.hidden_size, n_ctx=1024, n_heads=c.num_attention_heads,
            n_key_value_heads=c.num_key_value_heads, d_head=c.hidden_size // c.num_attention_heads,
            d_mlp=c.intermediate_size, d_vocab=c.vocab_size, act_fn="silu", gated_mlp=True, normalization_type="RMS",
            eps=c.rms_norm_eps, positional_embedding_type="rotary", rotary_adjacent_pairs=False, final_rms=True,
            rotary_dim=c.hidden_size // c.num_attention_heads, rotary_base=int(c.rope_parameters["rope_theta"]),
            original_architecture="LlamaForCausalLM", device="cpu",
        )
    )  # fmt: skip
    lens.load_and_process_state_dict(
        convert_llama_weights(theirs, lens.cfg), fold_ln=False, center_writing_weights=False, center_unembed=False
    )
    tokens = torch.randint(0, c.vocab_size, (1, 16))
    torch.testing.assert_close(lens(tokens), theirs(tokens).logits, atol=1e-3, rtol=1e-3)
    return theirs, lens.eval()


class ForSAEBench(torch.nn.Module):
    """An SAE with the configuration of the sae-lens that SAEBench was written for."""

    def __init__(self, sae: Any, hook: str, layer: int) -> None:
        super().__init__()
        self.W_enc, self.W_dec, self.b_enc = sae.W_enc, sae.W_dec, sae.b_enc
        self.device, self.encode, self.decode = sae.device, sae.encode, sae.decode
        self.cfg = SimpleNamespace(
            hook_name=hook, hook_layer=layer, hook_head_index=None, d_sae=sae.cfg.d_sae, architecture_str="standard"
        )


def config(part: str, batch: int, batches: int) -> Any:
    """Return SAEBench's configuration with the values of one part."""
    losses, features = part == "losses", part == "features"
    return saebench.CoreEvalConfig(
        batch_size_prompts=batch, n_eval_reconstruction_batches=batches, n_eval_sparsity_variance_batches=batches,
        compute_kl=losses, compute_ce_loss=losses, compute_l2_norms=features, compute_sparsity_metrics=features,
        compute_variance_metrics=features, compute_featurewise_density_statistics=features,
        compute_featurewise_weight_based_metrics=features,
    )  # fmt: skip


def measure(given: argparse.Namespace) -> None:
    layer, d_sae = SHAPES[given.model]
    hook = f"blocks.{layer}.hook_resid_pre"
    hf, lens = smollm2() if given.model == "smollm2" else models(12)
    most = 3 * max(given.batches.values())
    tokens = torch.randint(0, lens.cfg.d_vocab, (given.batch * most, 128), generator=torch.Generator().manual_seed(1))
    saes = [random_sae(lens, hook, d_sae, given.l0, tokens, seed) for seed in range(given.k)]
    wrapped = [ForSAEBench(sae, hook, layer) for sae in saes]
    with tempfile.TemporaryDirectory() as folder:
        for index, sae in enumerate(saes):
            sae.save_model(f"{folder}/sae-{index}")

        def ours(part: str, k: int, batches: int) -> Any:
            entries = [{"use": "saelens", "path": f"{folder}/sae-{i}", "name": f"sae-{i}"} for i in range(k)]
            data = register_rows("rows", _rows(tokens[: batches * given.batch]))
            return saeval.evaluate(
                model=hf, saes=entries, data=data, metrics=OURS[part], allow=["*"], batch_size=given.batch,
                plugins=tiny_plugins(),
            )  # fmt: skip

        def core(part: str, k: int, batches: int) -> Any:
            size = config(part, given.batch, batches)
            return [saebench.run_evals(sae, Store(tokens, given.batch), lens, size) for sae in wrapped[:k]]

        def run_evals_of_saelens(part: str, k: int, batches: int) -> Any:
            size = get_eval_everything_config(given.batch, batches, batches)
            size.compute_kl = size.compute_ce_loss = part == "losses"
            size.compute_l2_norms = size.compute_sparsity_metrics = size.compute_variance_metrics = part == "features"
            size.compute_featurewise_density_statistics = part == "features"
            size.compute_featurewise_weight_based_metrics = part == "features"
            return [run_evals(sae, Store(tokens, given.batch), lens, ActivationScaler(), size) for sae in saes[:k]]

        sides = {"saeval": (ours, given.k), "SAEBench": (core, 1), "sae-lens": (run_evals_of_saelens, 1)}
        for side, _ in sides.values():  # lazy imports, thread pools
            side("losses", 1, 1)
        _compare(ours("losses", 1, 1), core("losses", 1, 1))
        print(f"{'':10}{'part':10}{'s per SAE and batch':>20}{'s per SAE, once':>18}{'at paper settings':>20}")
        total = dict.fromkeys(sides, 0.0)
        for part in PAPER:
            for name, (side, k) in sides.items():
                few, more = given.batches[part], 3 * given.batches[part]
                seconds = [_seconds(side, part, k, batches) / k for batches in (few, more)]
                per_batch = (seconds[1] - seconds[0]) / (more - few)
                once = max(0.0, seconds[0] - per_batch * few)
                paper = once + per_batch * PAPER[part]
                total[name] += paper
                print(f"{name:10}{part:10}{per_batch:20.3f}{once:18.2f}{paper:20.0f}", flush=True)
        for name, seconds in total.items():
            print(f"{name}: {seconds:.0f} s of CPU per SAE at k = {given.k}, {seconds / total['saeval']:.1f} x saeval")


def _compare(ours: Any, theirs: Any) -> None:
    """Print SAEBench's values and their relative differences in saeval."""
    theirs = {name: value for part in theirs[0][0].values() for name, value in part.items()}
    values = {name: record["value"] for result in ours for name, record in result.values.items() if name in theirs}
    for name in values:
        print(f"{name}: {theirs[name]:.6g}, relative difference {values[name] / theirs[name] - 1:.1e}")


def _rows(tokens: Tensor) -> TokenDataset:
    """Return the same rows with one more token, since saeval's rows end with a target that is no input."""
    rows = torch.cat([tokens, tokens[:, :1]], 1).numpy().astype(np.int32)
    owner = np.repeat(np.arange(len(rows), dtype=np.int32)[:, None], rows.shape[1], axis=1)
    return TokenDataset.from_arrays(rows, owner, np.arange(len(rows), dtype=np.int32))


def _seconds(side: Callable[[str, int, int], Any], part: str, k: int, batches: int) -> float:
    started = time.process_time()
    side(part, k, batches)
    return time.process_time() - started


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=SHAPES, default="smollm2")
    parser.add_argument("--k", type=int, default=12)
    parser.add_argument("--l0", type=int, default=64)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--losses", type=int, default=1, help="batches that are timed, and three times as many")
    parser.add_argument("--features", type=int, default=3, help="batches that are timed, and three times as many")
    arguments = parser.parse_args()
    arguments.batches = {"losses": arguments.losses, "features": arguments.features}
    measure(arguments)
