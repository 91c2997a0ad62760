"""What matchings cost, for the time that `saeval check` foretells."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from saeval.plugin import Subject

SOLVING = 6e6
"""Operations of a matrix product that take as long as the solver's own work for each feature: candidates, prices,
augmenting paths. Measured from 256 to 4,096 features on a CPU, of dictionaries that share a mean direction."""


def matching(n: int, m: int, d: int) -> float:
    """Operations of one exact matching of n with m features in d dimensions: all cosines, then the solver's work."""
    return 2.0 * n * m * d + SOLVING * max(n, m)


def pairs(subjects: Sequence[Subject]) -> list[tuple[int, int, int]]:
    """(features, features, width) of each two members; members whose width is not known count as none."""
    sizes = [(s.d_sae or 0, max(s.d_in or 0, s.d_out or 0)) for s in subjects]
    return [(n, m, d) for (n, d), (m, _) in itertools.combinations(sizes, 2)]
