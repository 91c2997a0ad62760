"""CPU time of a run on real language models against its matrix products: `python benchmarks/real_models.py --help`.

Evaluates TopK SAEs of width 8 d_model in the middle of Gemma 3 270M or SmolLM2-135M, on texts of the package
sae-probes; models and texts are downloaded from the package index, once. The floor is the time of the matrix products
that no evaluation can avoid: those of one clean pass, of the resumed passes of the SAEs and of one ablation, and of
the unembedding of each of them, at the scored tokens. Both are CPU time per token (user and system, all threads) of one
process, as medians over alternating repeats. The features are directions of the text's activations, so that scores are
in the range of trained SAEs.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from saeval.api import prepare
from saeval.base.memory import keep_freed_memory
from saeval.base.run_options import RunOptions
from saeval.engine.loop import Engine
from saeval.registry.discovery import Plugins
from saeval.registry.registry import Registry
from saeval.results.store import Store

sys.path.append(str(Path(__file__).parent / "real"))
from wheels import GEMMA3, SMOLLM2, model_file, texts

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "saeval-benchmarks"
BLOCKS = {"gemma3": (GEMMA3, 8), "smollm2": (SMOLLM2, 14)}
"""Each model's file and the block whose output is read."""
ACTIVE, WIDTH = 64, 8


def news() -> Path:
    """Return the news of the training texts as a JSON Lines file."""
    file = CACHE / "news.jsonl"
    if not file.exists():
        lines = texts(CACHE)[0].read_text(encoding="utf-8").splitlines(keepends=True)
        file.write_text("".join(line for line in lines if '"name": "100_news_fake/' in line), encoding="utf-8")
    return file


def write_saes(folder: Path, activations: torch.Tensor, count: int) -> list[dict[str, Any]]:
    """Write TopK SAEs in the format of sparsify and return their suite entries.

    Features are principal directions and their opposites, and random directions that are rarely active.
    """
    d = activations.shape[1]
    mean = activations.mean(0)
    directions = torch.linalg.svd(activations - mean, full_matrices=False).Vh
    entries = []
    for index in range(count):
        generator = torch.Generator().manual_seed(index)
        rest = torch.nn.functional.normalize(torch.randn(WIDTH * d - 2 * len(directions), d, generator=generator))
        W_dec = torch.cat([directions, -directions, rest])
        scale = torch.cat([torch.ones(2 * len(directions)), torch.full((len(rest),), 0.1)])
        path = folder / f"sae-{index}"
        path.mkdir(parents=True)
        tensors = {"encoder.weight": W_dec * scale[:, None], "encoder.bias": torch.zeros(len(W_dec)), "W_dec": W_dec}
        save_file({**tensors, "b_dec": mean}, path / "sae.safetensors")
        config = {"activation": "topk", "num_latents": len(W_dec), "k": ACTIVE - index, "d_in": d}
        (path / "cfg.json").write_text(json.dumps(config))
        entries.append({"use": "sparsify", "path": str(path), "name": f"sae-{index}"})
    return entries


class Clock:
    """CPU time at the start and end of each batch, per pass, as the display of a run's progress."""

    def __init__(self) -> None:
        self.passes: list[list[tuple[int, float]]] = []

    def started(self, title: str, sequences: int, done: int) -> None:
        self.passes.append([(done, time.process_time())])

    def advanced(self, sequences: int, tokens: int) -> None:
        done, _ = self.passes[-1][-1]
        self.passes[-1].append((done + sequences, time.process_time()))

    def finished(self) -> None: ...

    def per_sequence(self) -> float:
        """CPU seconds per sequence, without the first batch of a pass, whose clean pass the preflight has run."""
        return sum((marks[-1][1] - marks[1][1]) / (marks[-1][0] - marks[1][0]) for marks in self.passes)


def run(suite: dict[str, Any], options: RunOptions, loaded: Any) -> tuple[float, float, Any]:
    """Return CPU seconds of the whole run without loading the model, and per sequence, and the results."""
    with tempfile.TemporaryDirectory() as folder:
        start, clock = time.process_time(), Clock()
        planned = prepare(suite, Registry(Plugins()), options)
        vars(planned.spec)["load"] = lambda device: loaded
        results = Engine(planned, Store(Path(folder) / "run"), clock).run()
        total = time.process_time() - start
    failed = [result.reason for result in results if result.status == "failed"]
    assert not failed, failed[0]
    return total, clock.per_sequence(), results


class Floor:
    """The matrix products of a model's blocks, its unembedding and an SAE, on random inputs of the same shapes."""

    def __init__(self, module: torch.nn.Module, block: int, tokens: int) -> None:
        base = module.get_decoder()
        linear = [[m for m in part.modules() if isinstance(m, torch.nn.Linear)] for part in base.layers]
        head, d = module.get_output_embeddings(), base.config.hidden_size
        sae = [torch.nn.Linear(d, WIDTH * d, bias=False), torch.nn.Linear(WIDTH * d, d, bias=False)]
        self.parts = {
            "clean": [*chain(*linear)], "rest": [*chain(*linear[block + 1 :])], "head": [head], "sae": sae,
        }  # fmt: skip
        shapes = {(m.in_features, m.weight.dtype) for m in chain(*self.parts.values())}
        self.inputs = {(width, dtype): torch.randn(tokens, width).to(dtype) for width, dtype in shapes}

    @torch.no_grad()
    def seconds(self) -> dict[str, float]:
        """CPU seconds of each part for one batch."""
        times = {}
        for name, part in self.parts.items():
            start = time.process_time()
            for linear in part:
                linear(self.inputs[linear.in_features, linear.weight.dtype])
            times[name] = time.process_time() - start
        return times


def floor_of(parts: dict[str, float], saes: int) -> float:
    """CPU seconds of one clean pass, the resumed passes of the SAEs and of one ablation, and their unembeddings."""
    return parts["clean"] + (saes + 1) * parts["rest"] + (saes + 2) * parts["head"] + saes * parts["sae"]


def errors(results: Any) -> dict[str, tuple[float, float]]:
    """Return value and standard error by subject and name."""
    return {
        f"{result.cell['subjects'][0]['name']} {name}": (value["value"], value["stderr"])
        for result in results
        for name, value in result.values.items()
        if value.get("value") is not None and value.get("stderr")
    }


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=BLOCKS, default="gemma3")
    parser.add_argument("--saes", type=int, nargs="+", default=[1, 4, 12])
    parser.add_argument("--shares", type=float, nargs="+", default=[1.0, 0.25])
    parser.add_argument("--context", type=int, default=64)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--batches", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--json", type=Path, help="also write all results here")
    options = parser.parse_args(argv)
    keep_freed_memory()  # as the command line does
    name, block = BLOCKS[options.model]
    file = model_file(CACHE, name)
    entry = {"use": "huggingface", "path": str(file.parent), "gguf_file": file.name}
    data = {"use": "text", "path": str(news()), "context": options.context}
    data["sequences"] = options.batch * options.batches
    run_options = RunOptions(preflight="stop", batch_size=options.batch, dtype=options.dtype)

    def suite(saes: list[Any], share: float) -> dict[str, Any]:
        return {
            "suite": "cost",
            "model": entry,
            "data": {**data, "score_share": share},
            "saes": saes,
            "metrics": [{"ce": {"ablation": "zero"}}, {"kl": {"ablation": "zero"}}, "l0", "reconstruction"],
        }

    with tempfile.TemporaryDirectory() as folder:
        hook_name = f"blocks.{block}.hook_resid_post"
        without = {**suite([], 1), "hooks": [hook_name], "metrics": ["perturbation_curve"]}
        del without["saes"]
        planned = prepare(without, Registry(Plugins()), run_options)
        assert planned.spec is not None
        loaded = planned.spec.load("cpu")
        rows = planned.streams.fit
        batch = rows.batch(range(min(len(rows), 16)), "cpu")
        activations = loaded.capture(batch, [hook_name], False).activations[hook_name][batch.mask].float()
        saes = [{**sae, "hook_name": hook_name} for sae in write_saes(Path(folder), activations, max(options.saes))]
        tokens, everything = options.batch * options.context, []
        floor = Floor(loaded.module, block, tokens)
        for count in options.saes:
            floors, runs = [], {share: [] for share in options.shares}
            for _ in range(options.repeats):
                for share in options.shares:
                    before = floor.seconds()
                    runs[share].append(run(suite(saes[:count], share), run_options, loaded))
                    floors += [floor_of(parts, count) / tokens for parts in (before, floor.seconds())]
            bare = statistics.median(floors)
            for share, repeats in runs.items():
                each = [per_sequence / options.context for _, per_sequence, _ in repeats]
                row = {
                    "model": options.model, "dtype": options.dtype, "saes": count, "share": share,
                    "floor": 1000 * bare, "saeval": 1000 * statistics.median(each), "each": [1000 * x for x in each],
                    "ratio": statistics.median(each) / bare, "whole run": statistics.median(r[0] for r in repeats),
                }  # fmt: skip
                print({k: round(v, 3) if isinstance(v, float) else v for k, v in row.items()}, flush=True)
                everything.append({**row, "floors": floors, "values": errors(repeats[-1][2])})
        if options.json:
            options.json.write_text(json.dumps(everything))


if __name__ == "__main__":
    main()
