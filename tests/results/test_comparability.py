"""Ranks, and differences of two rows, of a value that is comparable within a hook only."""

from __future__ import annotations

import numpy as np
import pytest
from pydantic import TypeAdapter

from made_results import result
from saeval.results.comparison import compare
from saeval.results.leaderboard import from_results
from saeval.results.records import LayoutRecord
from saeval.suite.schema import Leaderboard
from saeval.testing.claims import every, none
from saeval_reports import comparisons, tables

RNG = np.random.default_rng(0)


def results(saes, comparable="hook", documents=12):
    """A result for each (name, hook, value)."""
    made = []
    for name, hook, value in saes:
        own = result(name, value, 0.01 * RNG.normal(size=documents), site=hook)
        own.cell["subjects"][0]["hook_name"] = hook
        own.values["v"] |= {"comparable": comparable} if comparable else {}
        made.append(own)
    return made


SAES = [("a", "h1", 5.0), ("b", "h2", 1.0), ("c", "h1", 4.0), ("d", "h2", 2.0), ("e", "h2", 3.0), ("f", "h3", 0.5)]


def ranked(comparable="hook", saes=SAES, **settings):
    (board,) = from_results(results(saes, comparable), "t", settings)
    return board


def ranks(board):
    return [(row.name, row.rank, row.rank_high) for row in board.rows]


def test_ranks_are_within_a_hook_and_rows_are_in_its_order():
    board = ranked()
    within = [("c", 1, 1), ("a", 2, 2), ("b", 1, 1), ("d", 2, 2), ("e", 3, 3), ("f", None, None)]
    assert ranks(board) == within
    assert board.warnings == [
        "m.v is comparable within a hook only: rows are ordered by hook, and ranks are among the SAEs at one hook; "
        "an SAE alone at its hook has no rank (h3)"
    ]
    text = tables.markdown([board])
    assert "every two of these SAEs at one hook differ significantly" in text
    assert "against the top row of its hook" in text


def test_hooks_are_in_the_order_of_their_blocks():
    hooks = [f"blocks.{block}.hook_{place}" for block, place in ((10, "z"), (2, "z"), (2, "mlp_out"), (0, "z"))]
    board = ranked(saes=[(name, hook, 1.0) for name, hook in zip("abcd", hooks, strict=True)])
    assert [row.name for row in board.rows] == list("dbca")


@pytest.mark.parametrize("comparable", ["model", "everywhere", None])
def test_other_values_and_old_results_are_ranked_together(comparable):
    board = ranked(comparable)
    assert ranks(board) == [(name, place, place) for place, name in enumerate("fbdeca", start=1)]
    assert board.warnings == []


def test_a_suite_may_insist_on_ranks_across_hooks_and_the_table_says_so():
    board = ranked(across_hooks=True)
    assert [row.name for row in board.rows] == list("fbdeca")
    (warning,) = board.warnings
    assert "the suite sets 'across_hooks: true'" in warning


def test_a_suites_wish_is_in_its_layout():
    layout = Leaderboard(across_hooks=True).model_dump()
    assert TypeAdapter(LayoutRecord).validate_python(layout)["across_hooks"] is True
    assert not ranked(**layout).within_hooks


def test_saes_that_are_alone_at_their_hooks_are_not_ranked():
    board = ranked(saes=[("a", "h1", 5.0), ("b", "h2", 1.0)])
    assert ranks(board) == [("a", None, None), ("b", None, None)]
    assert "no two SAEs share a hook: rows are ordered by hook, and nothing is ranked" in board.warnings[0]


def test_at_one_hook_nothing_changes():
    saes = [(name, "h", value) for name, _, value in SAES]
    hook, model = ranked(saes=saes), ranked("model", saes=saes)
    assert ranks(hook) == ranks(model)
    assert hook.warnings == []


def test_the_intervals_of_all_hooks_hold_together():
    """With 12 hooks of two equal SAEs each, some rank is wrong in at most 5 of 100 boards."""
    rng = np.random.default_rng(1)
    boards, wrong = 200, 0
    for _ in range(boards):
        saes = []
        for place in range(24):
            own = rng.normal(size=20)
            made = result(f"{place}", float(own.mean()), (own - own.mean()) / 20, site=f"h{place // 2}")
            made.cell["subjects"][0]["hook_name"] = f"h{place // 2}"
            made.values["v"]["comparable"] = "hook"
            saes.append(made)
        (board,) = from_results(saes, "t", {})
        wrong += any(row.rank != 1 for row in board.rows)
    assert wrong / boards < 0.05 + 2 * (0.05 * 0.95 / boards) ** 0.5


def test_a_comparison_across_hooks_has_no_test_and_says_why():
    board = ranked()
    apart = compare([board], "a", "b")[0]
    assert (apart.difference.value, apart.difference.p_value, apart.p_holm, apart.better) == (4.0, None, None, None)
    assert apart.difference.detectable is None
    assert "comparable within a hook only (m.v)" in comparisons.markdown(compare([board], "a", "b"))
    together = compare([board], "a", "c")[0]
    assert together.sure
    assert together.better == "c"
    assert compare([ranked("model")], "a", "b")[0].sure


def test_an_undefined_first_value_does_not_hide_where_the_others_are_comparable():
    made = results([("first", "h1", 1.0), *SAES])
    made[0].values["v"] = dict.fromkeys(("value", "stderr", "ci95", "n")) | {"unit": "nats", "better": "lower"}
    (board,) = from_results(made, "t", {})
    assert board.within_hooks
    assert none(row.rank for row in board.rows if row.name == "first")
    assert every(row.rank for row in board.rows if row.name in "abcde")
