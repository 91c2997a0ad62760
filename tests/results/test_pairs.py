"""All paired tests of a column at once: the same ranks as by the single tests."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from made_entries import at_once, boards, by_single_tests, entry, ordered
from saeval.results import all_pairs
from saeval.results.all_pairs import Pairs
from saeval.results.board import Column, Row
from saeval.results.paired_tests import ALPHA, difference
from saeval.results.ranks import rank
from saeval.testing.claims import every


@given(boards(), st.integers(1, 5), st.integers(0, 3), st.integers(1, 40))
@settings(max_examples=120, deadline=None)
def test_a_whole_column_is_tested_as_its_pairs_are(entries, block, few, bins):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(all_pairs, "_BLOCK", block)
        patch.setattr(all_pairs, "_FEW", few)
        patch.setattr(all_pairs, "_BINS", bins)
        patch.setattr(all_pairs, "_CHUNK", 16)
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
