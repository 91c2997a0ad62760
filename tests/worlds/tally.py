"""Claims on boards, counted over many runs: verdicts, ranks that separate rows, sure differences."""

from __future__ import annotations

import math
from collections import defaultdict
from fnmatch import fnmatchcase

from saeval.results.comparison import compare
from saeval.results.leaderboard import from_results
from saeval.results.verdicts import verdicts

MOST = 0.07
"""Largest share of runs with a false claim: 5%, and two standard errors of 200 runs at a share of 2.5%."""


class Tally:
    """Numbers of runs, and of runs with a claim, by kind of claim."""

    def __init__(self):
        self.runs, self.claims = defaultdict(int), defaultdict(int)
        self.nulls = set()
        """Each column with a null that had a verdict."""

    def add(self, kind, claimed):
        self.runs[kind] += 1
        self.claims[kind] += bool(claimed)

    def share(self, kind):
        return self.claims[kind] / self.runs[kind]

    def verdicts(self, results, kinds, layout=None):
        """Count the verdicts of one board, a run for each kind: a label, and patterns of its columns."""
        (board,) = from_results(results, "world", layout or {})
        made = verdicts(board)
        self.nulls |= {verdict.column.name for verdict in made}
        for kind, patterns in kinds.items():
            own = [v for v in made if any(fnmatchcase(v.column.name, pattern) for pattern in patterns)]
            if own:
                self.add(kind, any(verdict.claimed for verdict in own))
        return made

    def comparison(self, kind, results, a, b):
        compared = compare(from_results(results, "world", {}), a, b)
        assert any(row.p_holm is not None for row in compared)
        self.add(kind, any(row.sure for row in compared))

    def ranks(self, kind, results, column):
        """Count the rows' intervals of ranks by a column: a claim if one is not 1 to all."""
        (board,) = from_results(results, "world", {"rank_by": column})
        ranked = [row for row in board.rows if row.rank is not None]
        assert len(ranked) > 1
        self.add(kind, any((row.rank, row.rank_high) != (1, len(ranked)) for row in ranked))

    def table(self):
        """Lines of `kind | runs | share`."""
        return [f"| {kind} | {self.runs[kind]} | {self.share(kind):.3f} |" for kind in self.runs]


def wilson_high(claims, runs, z=1.96):
    """The upper end of the 95% interval of a share."""
    share = claims / runs
    centre, reach = share + z * z / 2 / runs, z * math.sqrt(share * (1 - share) / runs + z * z / 4 / runs**2)
    return (centre + reach) / (1 + z * z / runs)
