"""Time and memory of the sparse maps between two wide SAEs: `python benchmarks/connections.py --help`.

Activations are planted: F2 = W·F1 with 4 sources per feature, set to 0 where it is below 1. Frequencies of
features are log-uniform. The peak memory is that of the whole process until the fit ends, activations included.
"""

from __future__ import annotations

import argparse
import resource
import time

import numpy as np
from scipy.sparse import csc_array, csr_array, vstack

from saeval_connections.maps import fit


def sparse_codes(tokens: int, width: int, l0: int, random: np.random.Generator) -> csr_array:
    """About `l0` features per token, at frequencies that differ a hundredfold."""
    chance = 10 ** random.uniform(-2, 0, width)
    features = random.choice(width, tokens * l0, p=chance / chance.sum())
    rows = np.repeat(np.arange(tokens), l0)
    codes = csr_array((random.gamma(2, 1, len(rows)), (rows, features)), shape=(tokens, width))
    codes.sum_duplicates()
    return codes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=16384)
    parser.add_argument("--tokens", type=int, default=200_000)
    parser.add_argument("--l0", type=int, default=64)
    parser.add_argument("--levels", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    options = parser.parse_args()
    random = np.random.default_rng(0)
    earlier = sparse_codes(options.tokens, options.width, options.l0, random)
    # A permutation of the features with three weaker sources each, thinned to the width of the earlier code.
    places = np.stack([random.permutation(options.width) for _ in range(4)], 1)
    weights = np.tile([1.0, 0.4, 0.3, 0.2], (options.width, 1))
    W = csr_array(
        (weights.ravel(), (places.ravel(), np.repeat(np.arange(options.width), 4))), shape=(options.width,) * 2
    )
    parts = []
    for first in range(0, options.tokens, 10_000):
        part = csr_array(earlier[first : first + 10_000] @ W)
        part.data[part.data < 1.0] = 0
        part.eliminate_zeros()
        parts.append(part)
    later = csc_array(vstack(parts))
    del parts
    held = (earlier.nnz + later.nnz) / options.tokens
    before = time.perf_counter(), time.process_time()
    maps = fit(csc_array(earlier), later, options.levels, 1e-3, 10)
    wall, cpu = time.perf_counter() - before[0], time.process_time() - before[1]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    W_fit = maps.widest().W
    hits = (W_fit != 0).multiply(W.T != 0).nnz
    print(f"{options.width} x {options.width}, {options.tokens} tokens, {held:.0f} activations a token in both SAEs")
    print(
        f"fit {wall:.0f} s ({cpu:.0f} s of CPU), peak {peak:.2f} GB, {W_fit.nnz / options.width:.1f} sources a feature"
    )
    print(f"planted edges: precision {hits / max(W_fit.nnz, 1):.3f}, recall {hits / W.nnz:.3f}")


if __name__ == "__main__":
    main()
