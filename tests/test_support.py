"""What an error rests on: effective documents and the largest one's share, and the warning wherever numbers stand."""

from __future__ import annotations

import csv
import io
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from claims import some
from saeval import Estimate, Mean, Metric, Scalar
from saeval.cli import main
from saeval.estimate import doubts
from saeval.testing import evaluate_tiny, tiny_tokens

COUNTS = st.lists(st.integers(1, 1000), min_size=2, max_size=30)


def of(sizes, means):
    n = np.array(sizes)
    return Mean(np.array(means, dtype=float) * n, n.astype(float), n).value


@given(COUNTS)
def test_documents_of_one_size_count_fully_and_others_for_less(sizes):
    equal = of([7] * len(sizes), range(len(sizes))).support
    assert equal.documents == len(sizes)
    assert equal.effective == pytest.approx(len(sizes))
    unequal = of(sizes, range(len(sizes))).support
    assert 1 <= unequal.effective <= len(sizes) + 1e-9


def test_one_document_with_half_of_the_tokens_leaves_fewer_than_four():
    support = of([480] + [10] * 48, range(49)).support
    assert support.effective == pytest.approx(960**2 / (480**2 + 48 * 100))
    assert support.effective < 4
    assert support.few
    assert support.doubt == "fewer than 20 effective documents (3.92, from 49)"


def test_one_document_that_decides_is_a_doubt_of_its_own():
    support = of([10] * 50, [100, *np.resize([1.0, -1.0], 49)]).support
    assert not support.few
    assert support.largest_share > 0.9
    assert support.doubt == "one of 50 documents makes 98% of the variance"
    assert of([10] * 50, np.resize([1.0, -1.0], 50)).support.doubt == ""
    constant = of([10] * 50, [3.0] * 50).support
    assert (constant.largest_share, constant.doubt) == (None, "")


def test_one_document_has_no_error_to_doubt():
    assert of([10], [1.0]).support.doubt == ""


def test_the_worst_place_of_each_reason_is_named():
    fewer, few, heavy = of([9] * 5, range(5)), of([9] * 8, range(8)), of([9] * 50, [100, *range(49)])
    said = doubts((e.support, place) for e, place in ((few, "b"), (fewer, "a"), (heavy, "c")))
    assert len(said) == 2
    assert said[0].startswith("fewer than 20 effective documents (5, from 5), in a and 1 more: errors, intervals")
    assert "in c: errors" in said[1]


class Uneven(Metric):
    """The mean norm, of few documents where the rows are."""

    name, version = "uneven", 1

    def observe(self, activations, mask):
        return Mean.of(activations.norm(dim=-1), mask)

    def conclude(self, total):
        return Scalar(total.value, better="lower")


def test_results_and_their_frame_state_it():
    found = evaluate_tiny(["uneven"], Uneven, rows=tiny_tokens(rows=48, documents=24))
    record = found[0].values["uneven"]
    assert record["documents"] == 21  # those that have a token in the mask
    assert 10 < record["effective_documents"] <= 21
    assert 1 / 21 < record["largest_share"] < 1
    frame = found.to_frame()
    assert frame["effective_documents"].iloc[0] == record["effective_documents"]
    assert isinstance(found[0].estimate("uneven"), Estimate)
    assert found[0].estimate("uneven").support == found[0].support("uneven")


@pytest.fixture
def suite(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "s.yaml").write_text(
        "suite: few\nmodel: testbed\ndata: {use: python-stdlib, context: 16, sequences: 6}\n"
        "saes: [testbed/topk-8, testbed/topk-32]\nmetrics: [reconstruction, {perturbation: {draws: 1, positions: 1}}]\n"
    )
    assert main(["run", "s.yaml", "--format", "csv"]) == 0
    return "results/few"


def test_every_table_and_page_warns_of_few_documents(suite, capsys, tmp_path):
    assert main(["leaderboard", suite, "--format", "json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    for row in some(rows):
        assert 1 <= row["effective_documents"] < 20
        assert row["effective_documents"] <= row["documents"]
    words = "fewer than 20 effective documents ("
    for command in (
        ["leaderboard", suite],
        ["compare", suite, "testbed/topk-8", "testbed/topk-32"],
    ):
        assert main(command) == 0
        assert words in capsys.readouterr().out, command
    for command in (
        ["leaderboard", suite, "--format", "csv"],
        ["compare", suite, "testbed/topk-8", "testbed/topk-32", "--format", "csv"],
    ):
        assert main(command) == 0
        lines = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
        assert some(lines)[0]["effective_documents"]
        assert float(lines[0]["documents"]) < 20
    assert main(["report", suite]) == 0
    page = next(tmp_path.rglob("perturbation.md")).read_text()
    assert page.startswith("**Fewer than 20 effective documents (")
