"""Proportions in tables, comparisons, JSON and CSV."""

from __future__ import annotations

import json

import numpy as np

from made_results import result
from saeval.results.comparison import compare
from saeval.results.leaderboard import from_results
from saeval_reports import comparisons, tables


def all_right(name, documents=4):
    scored = result(name, 1.0, np.zeros(documents), better="higher")
    scored.values["v"] |= {"unit": "share of pairs", "proportion": True, "ci95": [0.51, 1.0]}
    return scored


def test_tables_show_the_interval_of_a_proportion_in_place_of_an_error_of_0():
    boards = from_results([all_right("a"), all_right("b")], "t", {})
    text = tables.markdown(boards)
    assert "1 [0.51, 1]" in text
    assert "± 0" not in text
    assert json.loads(tables.as_json(boards))[0]["m.v.ci95"] == [0.51, 1.0]
    assert "m.v.ci95.low" in tables.csv(boards)
    comparison = comparisons.markdown(compare(boards, "a", "b"))
    assert "0 [-0.49, 0.49]" in comparison
    assert "± 0" not in comparison
