"""Samples a second and memory at the scale of SynthSAEBench: SAEs of 4,096 latents on 16,384 known features.

python benchmarks/ground_truth.py                     5 million samples through four SAEs
python benchmarks/ground_truth.py --samples 200000    fewer
"""

from __future__ import annotations

import argparse
import resource
import time

import torch

from saeval import evaluate


class TopK:
    """A TopK SAE with random unit directions and tied weights."""

    hook_name, k = "activations", 32

    def __init__(self, seed: int, latents: int, width: int) -> None:
        directions = torch.randn(latents, width, generator=torch.Generator().manual_seed(seed))
        self.W_dec = directions / directions.norm(dim=1, keepdim=True)
        self.W_enc, self.b_dec = self.W_dec.T, torch.zeros(width)
        self.b_enc = torch.zeros(latents)

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        values, indices = (x @ self.W_enc).topk(self.k, dim=-1)
        return torch.zeros(*x.shape[:-1], len(self.W_dec)).scatter(-1, indices, values.relu())

    def decode(self, acts: torch.Tensor) -> torch.Tensor:
        return acts @ self.W_dec


def evaluated(saes: dict[str, TopK], arguments: argparse.Namespace, samples: int) -> None:
    data = {"use": "synthetic", "preset": arguments.preset, "samples": samples}
    metrics = ["truth_recovery", "truth_absorption", "l0"]
    results = evaluate(data=data, saes=saes, metrics=metrics, batch_size=arguments.batch, preflight="off")
    assert not results.failed, results.failed[0].traceback


def products(saes: list[TopK], samples: int, repeats: int = 4) -> float:
    """Return the seconds of CPU time that a sample's products with all encoders take."""
    x = torch.randn(samples, saes[0].W_dec.shape[1])
    x @ saes[0].W_enc
    started = time.process_time()
    for _ in range(repeats):
        for sae in saes:
            x @ sae.W_enc
    return (time.process_time() - started) / (repeats * samples)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=5_000_000)
    parser.add_argument("--saes", type=int, default=4)
    parser.add_argument("--latents", type=int, default=4096)
    parser.add_argument("--preset", default="synthsaebench")
    parser.add_argument("--batch", type=int, default=4, help="rows of 256 samples")
    parser.add_argument("--generate", action="store_true", help="only generate the samples")
    arguments = parser.parse_args()
    from saeval_synthetic.source import Synthetic

    source = Synthetic(preset=arguments.preset, samples=arguments.samples)
    started, cpu = time.perf_counter(), time.process_time()
    if arguments.generate:
        rows = source.dataset("evaluation")
        rows.batch([0], "cpu")  # makes the world
        started, cpu = time.perf_counter(), time.process_time()
        for first in range(0, len(rows), arguments.batch):
            rows.batch(range(first, min(first + arguments.batch, len(rows))), "cpu")
    else:
        saes = {f"sae-{i}": TopK(i, arguments.latents, source.width) for i in range(arguments.saes)}
        few = 256 * arguments.batch
        evaluated(saes, arguments, few)
        fixed, floor = time.process_time() - cpu, products(list(saes.values()), few)
        print(
            f"{few:,} samples: {fixed:.0f} s of CPU time, the same for any number; a sample's products with the",
            end=" ",
        )
        print(f"encoders alone take {1000 * floor:.2f} ms, and as much again with the decoders", flush=True)
        started, cpu = time.perf_counter(), time.process_time()
        evaluated(saes, arguments, arguments.samples)
        each = (time.process_time() - cpu - fixed) / (arguments.samples - few)
        print(
            f"{1000 * each:.2f} ms of CPU time for each further sample, {each / floor:.1f} times the encoders' products"
        )
    wall, cpu = time.perf_counter() - started, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    rate = f"{arguments.samples / wall:,.0f} samples/s, {arguments.samples / cpu:,.0f} per second of CPU time"
    print(f"{arguments.samples:,} samples: {wall:.0f} s, {rate}, peak {peak:.2f} GiB")


if __name__ == "__main__":
    main()
