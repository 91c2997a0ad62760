"""Blocks: the consecutive rows that are summed on their own, before the sums of all blocks are added in order."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from jaxtyping import Int


class Block(NamedTuple):
    """Consecutive rows of a stream, from `start` up to but not including `end`."""

    start: int
    end: int


def blocks(clusters: Int[np.ndarray, "n"], size: int, stops: Iterable[int] = ()) -> list[Block]:
    """Return the blocks of a stream, in order; `clusters` holds the document of each row.

    They depend on the rows alone, not on batches or workers: a sum over a stream is the sum of its blocks, added from
    the first to the last, whoever has summed each. A block has `size` rows, and up to half as many more if a row after
    which no document continues is among them. One also ends at each of `stops`, numbers of rows.
    """
    n = len(clusters)
    last = np.zeros(int(clusters.max()) + 1 if n else 0, dtype=np.int64)
    np.maximum.at(last, clusters, np.arange(n))
    whole = 1 + np.flatnonzero(np.maximum.accumulate(last[clusters]) == np.arange(n))
    found = []
    for start, stop in pairwise(sorted({0, *(row for row in stops if 0 < row < n), n})):
        while start < stop:
            end = start + size
            place = int(np.searchsorted(whole, end))
            if place < len(whole) and whole[place] <= end + size // 2:
                end = int(whole[place])
            found.append(Block(start, min(end, stop)))
            start = found[-1].end
    return found


def makespan(stages: Iterable[Sequence[float]], workers: int) -> float:
    """Return the time until all tasks are done, given their times: `stages` one after the other, each task of a stage
    by the worker that is free first, in order."""
    total = 0.0
    for times in stages:
        busy = [0.0] * max(1, workers)
        for time in times:
            heapq.heapreplace(busy, busy[0] + time)
        total += max(busy)
    return total
