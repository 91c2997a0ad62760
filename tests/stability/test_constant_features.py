"""Features whose activation never varies have no correlation, and their SAEs a Jaccard index all the same."""

from __future__ import annotations

import pytest
import torch

from given_features import FEW, Given, column, value
from saeval.testing import evaluate_tiny
from saeval.testing.claims import some


class Constant(Given):
    """Its first `count` features are 1 on every token."""

    count = 32

    def encode(self, x):
        acts = super().encode(x)
        return torch.cat([torch.ones_like(acts[..., : self.count]), acts[..., self.count :]], -1)


def constant(count, seed=0):
    given = Given.random(seed, bias=0.5)
    made = Constant(given.W_dec, given.W_enc, given.b_enc)
    made.count = count
    return made


def functional(**saes):
    entry = {"functional_stability": {**FEW, "over": "g"}}
    (result,) = evaluate_tiny([entry], saes=saes, groups={"g": ["*"]})
    return result


def test_the_table_of_pairs_agrees_with_the_values():
    result = functional(a=constant(8), b=constant(8))
    table = result.values["pairs"]
    rows = {row[2]: dict(zip(table["columns"], row, strict=True)) for row in table["rows"]}
    assert (rows["pearson"]["n_a"], rows["pearson"]["n_b"]) == (32, 32)
    for view, row in some(rows.items()):
        for name in ("matched", "matched_over_smaller", "max_a_to_b", "share_above_0_9"):
            assert row[name] == value(result, f"{view}_{name}"), (view, name)
    assert value(result, "pearson_matched") == pytest.approx(24 / 32)
    assert value(result, "pearson_matched_over_smaller") == pytest.approx(1)


def test_a_member_that_never_varies_leaves_only_correlations_undefined(tmp_path):
    from saeval_stability.pages import sections

    varying = Given.random(0, bias=0.5)
    result = functional(a=varying, b=constant(32, seed=1), c=Given.random(2, bias=0.5))
    assert result.status == "ok", result.reason
    undefined = {n: r["reason"] for n, r in result.values.items() if "kind" not in r and r["value"] is None}
    told = "no alive feature of 'b' varies, so there is no correlation"
    assert set(undefined.values()) == {told}
    scalars = [name for name, record in result.values.items() if "kind" not in record]
    assert set(undefined) == {name for name in scalars if name.startswith("pearson") or name == "index_agreement"}
    assert 0 < value(result, "jaccard_matched") <= 1
    assert column(result, "members", "pearson_features")[1] == 0
    views = [(row[0], row[1], row[2]) for row in result.values["pairs"]["rows"]]
    assert ("a", "c", "pearson") in views
    assert ("a", "b", "pearson") not in views
    assert ("a", "b", "jaccard") in views
    (section,) = sections([result])
    drawn = next(chart for chart in section.charts if chart.name == "pairs")
    assert "pearson (correlation)" not in {r["view"] for r in drawn.data}


def test_two_members_that_never_vary_agree_in_when_they_fire():
    result = functional(a=constant(32), b=constant(32, seed=1))
    assert value(result, "jaccard_matched") == 1
    record = result.values["pearson_matched"]
    assert record["value"] is None
    assert record["reason"] == "no alive feature of 'a', 'b' varies, so there is no correlation"
