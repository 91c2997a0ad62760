"""All paired tests of a column at once: the same ranks as by the single tests."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from claims import every
from saeval import pairs
from saeval.board import Column, Entry, Row
from saeval.differences import ALPHA, difference, holm
from saeval.estimate import Estimate
from saeval.pairs import Pairs
from saeval.ranks import rank


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


@given(boards(), st.integers(1, 5), st.integers(0, 3), st.integers(1, 40))
@settings(max_examples=120, deadline=None)
def test_a_whole_column_is_tested_as_its_pairs_are(entries, block, few, bins):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pairs, "_BLOCK", block)
        patch.setattr(pairs, "_FEW", few)
        patch.setattr(pairs, "_BINS", bins)
        patch.setattr(pairs, "_CHUNK", 16)
        assert at_once(entries) == by_single_tests(entries)


@given(boards())
@settings(max_examples=40, deadline=None)
def test_what_could_be_detected_is_the_same_as_of_the_single_difference(entries):
    single = [difference(one, entries[0]).detectable for one in entries]
    at_once = [one.detectable for one in Pairs(entries).differences(0)]
    assert at_once == [None if one is None else pytest.approx(one, rel=1e-6) for one in single]


@pytest.mark.parametrize("documents", [6, 40])
def test_holms_steps_go_on_while_tests_are_significant(documents):
    """Each significant test lowers the bar of the next: plain Bonferroni would find fewer."""
    rng = np.random.default_rng(documents)
    entries = ordered(entry(i * 0.05, rng.normal(size=documents) / documents**0.5 / 14) for i in range(40))
    better, worse = at_once(entries)
    assert (better, worse) == by_single_tests(entries)
    places = itertools.combinations(entries, 2)
    p_values = [p for a, b in places if (p := difference(a, b).p_value) is not None]
    bonferroni = sum(p * len(p_values) < ALPHA for p in p_values)
    assert bonferroni < sum(better) < len(p_values)


def test_the_whole_is_seen_in_the_ranks_of_rows():
    rng = np.random.default_rng(0)
    rows = [Row(f"r{i}", "h", "sae", {"m.v": entry(i % 7, rng.normal(size=30) / 30)}) for i in range(20)]
    rank(rows, Column("m.v", better="higher"))
    better, worse = by_single_tests([row.entries["m.v"] for row in rows])
    assert [(row.rank, row.rank_high) for row in rows] == [(1 + w, 20 - b) for b, w in zip(better, worse, strict=True)]
    assert len({row.rank for row in rows}) > 5
    top = rows[0].entries["m.v"]
    assert every(
        row.detectable == pytest.approx(difference(row.entries["m.v"], top).detectable, rel=1e-9) for row in rows[1:]
    )


def test_entries_of_other_documents_cannot_be_ranked_together():
    with pytest.raises(ValueError, match="estimates over different streams cannot be combined: 3 and 4 documents"):
        Pairs([entry(1.0, np.ones(3)), entry(2.0, np.ones(4))])


def test_differences_far_smaller_than_the_deviations_are_computed_themselves():
    """A variance of 1e-18 of two variances of 1 is nothing that g_ii + g_jj - 2 g_ij in float64 could give."""
    rng = np.random.default_rng(3)
    shared = rng.normal(size=(2, 40))
    entries = ordered(
        entry(1 + 1e-9 * rng.normal(), shared[i % 2] + 1e-9 * rng.normal(size=40) / 20) for i in range(12)
    )
    assert at_once(entries) == by_single_tests(entries)
    assert 0 < sum(at_once(entries)[0]) < 12 * 11 / 2
