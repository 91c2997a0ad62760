"""Claims on boards, counted over many runs: verdicts, ranks that separate rows, sure differences."""

from __future__ import annotations

import re
from collections import defaultdict

from saeval.base.names import names_matching_any
from saeval.results.comparison import compare
from saeval.results.leaderboard import from_results
from saeval.results.verdicts import verdicts
from saeval.testing.claims import some


class Tally:
    """Numbers of runs, and of runs with a claim, by kind of claim."""

    def __init__(self):
        self.runs, self.claims = defaultdict(int), defaultdict(int)
        self.tested = set()
        """`metric.value` of each column with a verdict, with `*` for a number."""

    def add(self, kind, claimed):
        self.runs[kind] += 1
        self.claims[kind] += bool(claimed)

    def shares(self):
        return {kind: self.claims[kind] / runs for kind, runs in self.runs.items()}

    def verdicts(self, results, kinds, layout=None, above=False):
        """Count a run for each kind, which has patterns of columns: a claim if one of their verdicts is.

        With `above`, only claims that a value is above its null.
        """
        (board,) = from_results(list(results), "world", layout or {})
        made, names = verdicts(board), {result.metric: result.cell["metric"] for result in results}
        self.tested |= {null_of(names[v.column.metric], v.column.value) for v in made}
        for kind, patterns in kinds.items():
            columns = names_matching_any(patterns, [v.column.name for v in made])
            own = some(v for v in made if v.column.name in columns)
            self.add(kind, any(v.claimed and (not above or v.value > v.null["value"]) for v in own))
        return made

    def comparison(self, kind, results, a, b):
        """Count a run: a claim if a difference of two rows is sure."""
        compared = compare(from_results(results, "world", {}), a, b)
        self.add(kind, any(row.sure for row in some(row for row in compared if row.p_holm is not None)))

    def ranks(self, kind, results, column):
        """Count a run: a claim if a row's interval of ranks by a column has not all ranks."""
        (board,) = from_results(results, "world", {"rank_by": column})
        ranked = [row for row in board.rows if row.rank is not None]
        self.add(kind, any((row.rank, row.rank_high) != (1, len(ranked)) for row in some(ranked)))


def null_of(metric, value):
    """The name of a value with a null: numbers in it are parameters, and the rest of a name is a control."""
    return f"{metric}.{re.sub(r'[0-9]+', '*', value.partition(' vs ')[0])}"
