"""Columns of entries with documents, and their tests pair by pair and all at once."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import strategies as st

from saeval.results.all_pairs import Pairs
from saeval.results.board import Entry
from saeval.results.paired_tests import ALPHA, difference, holm
from saeval.stats.estimate import Estimate


def by_single_tests(entries):
    """How many entries each is surely better than, and how many are surely better, one `difference` a pair."""
    better, worse = np.zeros((2, len(entries)), dtype=int)
    places = list(itertools.combinations(range(len(entries)), 2))
    tests = [difference(entries[a], entries[b]) for a, b in places]
    for (a, b), test, p in zip(places, tests, holm([t.p_value for t in tests]), strict=True):
        if p < ALPHA if p is not None else (test.paired is None and test.value != 0):
            better[a] += 1
            worse[b] += 1
    return better.tolist(), worse.tolist()


def at_once(entries):
    better, worse = Pairs(entries).sure()
    return better.tolist(), worse.tolist()


def entry(value, deviations, sizes=None, **facts):
    deviations = np.asarray(deviations, dtype=float)
    sizes = np.ones(len(deviations)) if sizes is None else np.asarray(sizes, dtype=float)
    return Entry(value, estimate=Estimate(value, value - deviations, sizes), **facts)


def ordered(entries):
    return sorted(entries, key=lambda one: one.value)


@st.composite
def boards(draw):
    """Entries of one stream, some of them twins, constant, nearly equal, with documents or values of their own."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    documents, scale = draw(st.integers(1, 8)), draw(st.sampled_from([1e-9, 1e-3, 0.1, 1.0, 30.0]))
    sizes = rng.integers(1, 9, documents).astype(float) if draw(st.booleans()) else np.full(documents, 4.0)
    shared = rng.normal(size=documents) * draw(st.sampled_from([0.0, 1.0, 1e4]))
    entries: list[Entry] = []
    kinds = [
        "plain",
        "plain",
        "plain",
        "twin",
        "shifted",
        "near",
        "flat",
        "no array",
        "sizes",
        "absent",
        "nan",
        "draws",
    ]
    for _ in range(draw(st.integers(1, 14))):
        kind, value = draw(st.sampled_from(kinds)), float(rng.choice([rng.normal(), rng.integers(3)]))
        own = (shared + rng.normal(size=documents)) * scale / 10
        known = [one.estimate for one in entries if one.estimate is not None]
        if kind in ("twin", "shifted", "near") and known:
            like = known[rng.integers(len(known))]
            small = scale * 10.0 ** -rng.integers(3, 14)
            off = {"twin": 0.0, "shifted": value, "near": small * rng.normal()}[kind]
            noise = rng.normal(size=documents) * small / 3 if kind == "near" else 0.0
            entries.append(
                Entry(like.value + off, estimate=Estimate(like.value + off, like.without + off + noise, sizes))
            )
        elif kind == "flat":
            entries.append(entry(value, np.zeros(documents), sizes))
        elif kind == "no array":
            entries.append(Entry(value, reason="none"))
        elif kind == "sizes":
            entries.append(entry(value, own, rng.integers(1, 99, documents)))
        elif kind == "absent":
            here = rng.integers(0, 2, documents)
            entries.append(entry(value, own * here, sizes * here))
        elif kind == "nan":
            own[rng.integers(documents)] = rng.choice([np.nan, np.inf])
            entries.append(entry(value, own, sizes))
        elif kind == "draws":
            entries.append(
                entry(value, own, sizes, draws=int(rng.integers(2, 5)), spread=float(rng.choice([0.0, scale])))
            )
        else:
            entries.append(entry(value, own, sizes))
    return ordered(entries)
