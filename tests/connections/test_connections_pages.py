"""The pages of connections: edges, their tokens, and those that only the weights claim."""

from __future__ import annotations

import json
from types import SimpleNamespace

from saeval_connections.pages import claimed_by_weights_alone, pages, sparsity

COLUMNS = [
    "earlier", "later", "direct", "block", "data", "intervention", "stderr", "strength", "rank", "tokens",
    "strongest_by", "shown",
]  # fmt: skip
REAL = [3, 7, 0.5, 0.6, 0.4, 0.45, 0.05, 0.8, 1, 900, "direct, block, data", 1]
CLAIMED = [3, 9, 0.7, 0.1, 0.0, 0.01, 0.02, 0.02, 60, 900, "direct", 1]


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


def test_pages_have_the_edges_their_tokens_and_pictures():
    files = pages([result()])
    stem = "feature-connections-next"
    assert set(files) == {f"{stem}{end}" for end in (".md", ".html", "-graph.png", "-fvu.png")}
    page = files[f"{stem}.html"]
    assert "3 → 7, strength 0.8" in page
    assert "&lt;b&gt;" in page
    assert "<b>" not in page
    assert "A note." in page
    assert files[f"{stem}-graph.png"].startswith(b"\x89PNG")


def test_an_edge_that_neither_data_nor_intervention_shows_is_claimed_by_the_weights_alone():
    real, claimed = (dict(zip(COLUMNS, row, strict=True)) for row in (REAL, CLAIMED))
    assert claimed_by_weights_alone(claimed)
    assert not claimed_by_weights_alone(real)
    assert not claimed_by_weights_alone({**claimed, "intervention": 0.05})
    assert "Claimed by the weights alone" in pages([result()])["feature-connections-next.md"]


def test_bars_are_the_recorded_intervals():
    (axes,) = sparsity(result()).axes
    _, _, (bars,) = axes.containers[0].lines
    assert [segment[:, 1].tolist() for segment in bars.get_segments()] == [[0.7, 0.9], [0.5, 0.5]]
