"""The pages of connections: edges, their tokens, and those that only the weights claim."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from saeval.testing import check_chart
from saeval.testing.claims import every, some
from saeval_connections.pages import claimed_by_weights_alone, sections, sparsity, strengths

COLUMNS = [
    "earlier", "later", "direct", "block", "data", "intervention", "stderr", "strength", "rank", "tokens",
    "documents", "strongest_by", "shown",
]  # fmt: skip
REAL = [3, 7, 0.5, 0.6, 0.4, 0.45, 0.05, 0.8, 1, 900, 12, "direct, block, data", 1]
CLAIMED = [3, 9, 0.7, 0.1, 0.0, 0.01, 0.02, 0.02, 60, 900, 6, "direct", 1]


def result():
    curve = {"kind": "curve", "x": [1.0, 4.0], "y": [0.8, 0.5], "stderr": [0.02, None], "ci95": [(0.7, 0.9), None]}
    tokens = [json.dumps(["<b>", " for", "$x$"]), json.dumps([0.0, 2.5, 0.1])]
    contexts = [[sae, f, 2.5, 11, *tokens] for sae, f in (("earlier", 3), ("later", 7), ("later", 9))]
    values = {
        "fvu_linear_4": {"value": 0.5, "stderr": 0.02, "unit": "share of variance"},
        "fvu_by_sources_linear": curve,
        "fvu_by_sources_relu": curve,
        "edges": {"kind": "table", "columns": COLUMNS, "rows": [REAL, CLAIMED]},
        "contexts": {"kind": "table", "columns": [], "rows": contexts},
    }
    names = ("blocks.1.hook_resid_pre", "blocks.2.hook_resid_pre")
    cell = {"metric": "feature_connections", "over": "next", "subjects": [{"name": h, "hook_name": h} for h in names]}
    return SimpleNamespace(cell=cell, metric="feature_connections", status="ok", values=values, notes=["A note."])


def test_a_section_has_the_edges_their_tokens_and_charts():
    (section,) = sections([result()])
    assert section.name == "feature-connections-next"
    assert [chart.name for chart in section.charts] == ["graph", "strengths", "fvu"]
    for chart in some(section.charts):
        check_chart(chart)
    assert "A note." in section.notes
    headings = [passage.heading for passage in section.passages]
    assert headings == ["3 → 7, strength 0.8"] * 2 + ["3 → 9, strength 0.02"] * 2
    assert every(passage.tokens == ["<b>", " for", "$x$"] for passage in section.passages)


def test_a_feature_of_several_edges_is_named_once_in_the_graph():
    graph, *_ = sections([result()])[0].charts
    assert [(r["earlier label"], r["later label"]) for r in graph.data] == [
        ("3 “ for”", "7 “ for”"),
        (None, "9 “ for”"),
    ]
    assert [r["earlier height"] for r in graph.data] == [0.5, 0.5]


def test_bars_of_strengths_are_95_percent_intervals_in_their_unit():
    first, second = strengths(result()).data
    t_11, t_5 = 2.200985, 2.570582
    assert first["strength"] - first["strength_low"] == pytest.approx(t_11 * 0.05 * 0.8 / 0.45)
    assert second["strength_high"] - second["strength"] == pytest.approx(t_5 * 0.02 * 0.02 / 0.01)
    assert "bars: 95% intervals" in strengths(result()).subtitle


def test_an_edge_that_neither_data_nor_intervention_shows_is_claimed_by_the_weights_alone():
    real, claimed = (dict(zip(COLUMNS, row, strict=True)) for row in (REAL, CLAIMED))
    assert claimed_by_weights_alone(claimed)
    assert not claimed_by_weights_alone(real)
    assert not claimed_by_weights_alone({**claimed, "intervention": 0.05})
    (section,) = sections([result()])
    table = section.tables[0]
    assert (table.title, len(table.rows)) == ("Claimed by the weights alone", 1)
    assert "1 edge listed as strong by the weights alone" in section.summary[1]


def test_bars_are_the_recorded_intervals():
    linear = [r for r in sparsity(result()).data if r["map"] == "linear maps"]
    assert [(r["fvu_low"], r["fvu_high"]) for r in linear] == [(0.7, 0.9), (None, None)]
