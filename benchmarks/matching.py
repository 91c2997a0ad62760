"""Cost of a matching, compared with the matrix product that it needs: `python benchmarks/matching.py --help`.

The floor is the cosine product in float32 and the 32 best of each row, in blocks, in the same process. The peak memory
is that of the whole process until the matching ends, both dictionaries included. Vectors: a planted share of the rows
of A is in B too, with noise (cosine about 0.9), and the rest is random; or one of the harder kinds.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Callable
from typing import TypeVar

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn.functional import normalize

from saeval_stability import match, similarity

T = TypeVar("T")

BEST = 32
BLOCK = 1 << 24  # entries


def planted(n: int, m: int, d: int, share: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    A, B = (torch.randn(k, d, generator=generator) for k in (n, m))
    count = int(share * min(n, m))
    B[torch.randperm(m, generator=generator)[:count]] = A[:count] + 0.5 * torch.randn(count, d, generator=generator)
    return A, B


def shared_mean(n: int, m: int, d: int, share: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """All rows lean towards one direction by different amounts; those that lean most are close to all others."""
    A, B = planted(n, m, d, share, generator)
    mean = torch.randn(d, generator=generator)
    for rows in (A, B):
        rows += torch.rand(len(rows), 1, generator=generator) * mean
    return A, B


def clusters(n: int, m: int, d: int, share: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Rows scattered around twenty directions."""
    centres = torch.randn(20, d, generator=generator)
    A, B = (
        centres[torch.randint(20, (k,), generator=generator)] + 0.3 * torch.randn(k, d, generator=generator)
        for k in (n, m)
    )
    return A, B


def floor(A: Tensor, B: Tensor) -> float:
    """Seconds of the product alone."""
    product = 0.0
    A, B = normalize(A), normalize(B)
    step = max(1, BLOCK // len(B))
    buffer = torch.empty(step, len(B))  # new pages for each block would cost a third of the product
    for first in range(0, len(A), step):
        before = time.perf_counter()
        block = torch.mm(A[first : first + step], B.T, out=buffer[: len(A) - first])
        product += time.perf_counter() - before
        block.topk(min(BEST, len(B)), dim=1)
    return product


def dense(A: Tensor, B: Tensor) -> float:
    """Σ cos by scipy's dense solver."""
    cosines = (normalize(A.double()) @ normalize(B.double()).T).numpy()
    rows, columns = linear_sum_assignment(cosines, maximize=True)
    return float(cosines[rows, columns].sum())


def timed(task: Callable[[Tensor, Tensor], T], A: Tensor, B: Tensor) -> tuple[float, float, T]:
    """Seconds, CPU seconds of all threads, and the result."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = task(A, B)
    return time.perf_counter() - wall, time.process_time() - cpu, result


def main() -> None:
    kinds = {"planted": planted, "shared-mean": shared_mean, "clusters": clusters}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=10_000, help="rows of A")
    parser.add_argument("--m", type=int, help="rows of B (default: as many as A)")
    parser.add_argument("--d", type=int, default=768)
    parser.add_argument("--share", type=float, default=0.4)
    parser.add_argument("--kind", choices=kinds, default="planted")
    parser.add_argument("--dense", action="store_true", help="compare with scipy.optimize.linear_sum_assignment")
    parser.add_argument("--repeat", type=int, default=1, help="runs of each, of which the fastest counts; 0: no floor")
    parser.add_argument("--float32", action="store_true", help="as on a processor without bfloat16 products")
    args = parser.parse_args()
    if args.float32:
        similarity.fastest = lambda device: torch.float32
    m = args.m or args.n
    match(torch.eye(40, 4), torch.eye(50, 4))  # compiles
    A, B = kinds[args.kind](args.n, m, args.d, args.share, torch.Generator().manual_seed(0))
    print(f"{args.kind} {args.n} x {m} x {args.d}, {torch.get_num_threads()} threads", flush=True)
    runs, floors = [timed(match, A, B)], []
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6  # before the floor adds its own
    for k in range(args.repeat):
        floors.append(timed(floor, A, B))
        if k:
            runs.append(timed(match, A, B))
    seconds, cpu, matching = min(runs, key=lambda run: run[0])
    proof = matching.certificate
    print(f"match: {seconds:.1f} s ({cpu:.1f} s of CPU); peak memory {peak:.2f} GB")
    print(
        f"gap {proof.gap:.1e}, {proof.rounds} rounds, {proof.candidates} candidates, "
        f"{proof.computed:.2%} of all pairs computed again"
    )
    print(f"sum/min {matching.over_smaller:.6f}, max-cos {matching.a_to_b.mean:.6f} and {matching.b_to_a.mean:.6f}")
    if floors:
        least, least_cpu, product = min(floors)
        print(
            f"floor: {least:.1f} s ({least_cpu:.1f} s of CPU), {product:.1f} s of it the product; "
            f"match takes {seconds / least:.2f} x ({cpu / least_cpu:.2f} x the CPU)",
            flush=True,
        )
    if args.dense:
        slow, slow_cpu, best = timed(dense, A, B)
        print(
            f"linear_sum_assignment: {slow:.1f} s ({slow_cpu:.1f} s of CPU), {slow / seconds:.1f} x the match "
            f"({slow_cpu / cpu:.1f} x the CPU); sums differ by {matching.total - best:.1e}"
        )


if __name__ == "__main__":
    main()
