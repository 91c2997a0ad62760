"""Two workers of one thread each beside one, on one suite: `python benchmarks/workers.py FOLDER`.

Run it on a machine with two cores and nothing else to do. The suite takes a few minutes for one worker.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import saeval

SUITE = {
    "suite": "workers",
    "model": {"use": "testbed"},
    "data": {"use": "python-stdlib", "sequences": 3584, "context": 128},
    "saes": ["testbed/relu-*"],
    "controls": ["mean", "zero"],
    "metrics": ["l0", "density", "reconstruction", "ce", "kl"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="a new folder for the results")
    parser.add_argument("--sequences", type=int, default=SUITE["data"]["sequences"])
    arguments = parser.parse_args()
    suite = {**SUITE, "data": {**SUITE["data"], "sequences": arguments.sequences}}
    seconds, values = {}, {}
    for workers in (1, 2):
        begun = time.perf_counter()
        out = arguments.folder / str(workers)
        results = saeval.run(suite, out=out, engine=f"local:{workers}", engine_option=["threads=1"], fresh=True)
        seconds[workers] = time.perf_counter() - begun
        values[workers] = [result.values for result in results]
        print(f"{workers} of one thread: {seconds[workers]:.1f} s")
    print(f"ratio {seconds[1] / seconds[2]:.2f}; the same values: {values[1] == values[2]}")


if __name__ == "__main__":
    main()
