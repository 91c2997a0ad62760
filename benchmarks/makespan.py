"""The time of a sweep on 1 to 512 workers: 1,000 SAEs on ten models. `python benchmarks/makespan.py --help`.

It runs nothing: it puts costs that you have measured into the order in which a run hands out its shards.
"""

from __future__ import annotations

import argparse

from saeval.plan.blocks import makespan


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=int, default=10)
    parser.add_argument("--saes", type=int, default=100, help="SAEs of each model (default: 100)")
    parser.add_argument("--together", type=int, default=25, help="SAEs that fit in memory together (default: 25)")
    parser.add_argument("--sequences", type=int, default=4096)
    parser.add_argument("--block", type=int, default=256)
    parser.add_argument("--clean", type=float, required=True, help="seconds of a clean pass over a sequence")
    parser.add_argument("--each", type=float, required=True, help="seconds of an SAE's work on a sequence")
    parser.add_argument("--start", type=float, required=True, help="seconds until a worker has loaded the model")
    parser.add_argument("--load", type=float, required=True, help="seconds to load an SAE")
    parser.add_argument("--add", type=float, required=True, help="seconds to add an SAE's sums of a block")
    parser.add_argument("--conclude", type=float, required=True, help="seconds to conclude the cells of an SAE")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 8, 64, 512])
    costs = parser.parse_args()
    passes = -(-costs.saes // costs.together)
    blocks = -(-costs.sequences // costs.block)
    fold = [costs.block * costs.clean] * blocks
    shard = costs.block * (costs.clean + costs.together * costs.each)
    work = costs.models * (sum(fold) + passes * blocks * shard)
    first = costs.models * costs.saes * (blocks * costs.add + costs.conclude)
    print(f"work of the shards: {work / 3600:.1f} h; adding and concluding, in one process: {first / 3600:.2f} h")
    print("| workers | hours | ideal | in use | workers that are busy at once |\n|---|---|---|---|---|")
    for workers in costs.workers:
        busy = min(workers, passes * blocks)
        loads = costs.start + min(passes, -(-passes * blocks // workers)) * costs.together * costs.load
        of_model = makespan([fold, [shard] * (passes * blocks)], workers) + loads
        seconds = costs.models * of_model + first
        ideal = work / workers
        print(f"| {workers} | {seconds / 3600:.2f} | {ideal / 3600:.2f} | {ideal / seconds:.0%} | {busy} |")


if __name__ == "__main__":
    main()
