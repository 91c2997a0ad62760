"""Peak memory of probes of wide SAEs: `python benchmarks/probing_memory.py --help`.

Runs `sparse_probing` on texts with random labels of a small model and a random SAE of the given width, each run in a
process of its own, and prints the peak above that of the process before, beside what all features of all texts take.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import time

import numpy as np

CONTEXT = 16


def peak() -> float:
    """The largest memory of this process so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measured(width: int, rows: int, tasks: int, k: int, active: float) -> tuple[float, float]:
    """MB above those before the run, and seconds; `rows` texts to fit and as many to evaluate."""
    import torch

    from saeval.testing import TinyModel, TinySAE, evaluate_tiny
    from saeval.text.annotations import Annotations
    from saeval.text.tokens import TokenDataset

    def texts(seed: int) -> TokenDataset:
        draw = np.random.default_rng(seed)
        tokens = draw.integers(1, 30, (rows, CONTEXT + 1)).astype(np.int32)
        labels = {f"t{number}": draw.integers(0, 2, rows).astype(str) for number in range(tasks)}
        nothing, bits = np.zeros(rows, np.uint64), np.zeros(tokens.shape, np.uint64)
        owner = np.repeat(np.arange(rows, dtype=np.int32)[:, None], CONTEXT + 1, axis=1)
        annotations = Annotations(labels, nothing.astype(bool), [], nothing, bits)
        return TokenDataset(tokens, owner, np.arange(rows), excluded=[0], annotations=annotations)

    torch.set_num_threads(1)
    model, sae = TinyModel(vocab=30), TinySAE(d_sae=width)
    sae.b_enc -= torch.tensor([active])
    evaluated, fit = texts(1), texts(2)
    metric = {"sparse_probing": {"k": (1, k), "folds": 2, "examples": 0}}
    before, start = peak(), time.perf_counter()
    (result,) = evaluate_tiny([metric], model=model, saes=[sae], rows=evaluated, fit=fit, batch_size=8)
    assert result.status == "ok", result.reason
    return peak() - before, time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--widths", type=int, nargs="+", default=[16_384, 131_072], help="numbers of features")
    parser.add_argument("--rows", type=int, nargs="+", default=[1000, 4000], help="texts to fit, and to evaluate")
    parser.add_argument("--tasks", type=int, default=4)
    parser.add_argument("--k", type=int, default=16, help="features of the largest probe (default 16)")
    parser.add_argument("--less", type=float, default=1.0, help="subtracted from the SAE's thresholds (default 1)")
    arguments = parser.parse_args()
    print("| d_sae | texts | peak above the start, MB | all features of all texts, float32, MB | seconds |")
    print("|---|---|---|---|---|")
    context = multiprocessing.get_context("spawn")
    for width in arguments.widths:
        for rows in arguments.rows:
            with context.Pool(1) as pool:
                used, seconds = pool.apply(measured, (width, rows, arguments.tasks, arguments.k, arguments.less))
            dense = 2 * rows * width * 4 / 2**20
            print(f"| {width:,} | 2 × {rows:,} | {used:,.0f} | {dense:,.0f} | {seconds:.0f} |", flush=True)


if __name__ == "__main__":
    main()
