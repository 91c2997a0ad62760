"""What an error rests on: effective documents and the largest one's share, and the warning wherever numbers stand."""

from __future__ import annotations

import csv
import io
import json
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

import saeval
from saeval import Estimate, Mean, Metric, Scalar
from saeval.cli import main
from saeval.cli.result_text import detail
from saeval.results.board import Board, Column, Entry, Row
from saeval.results.pages import write_pages
from saeval.results.paired_tests import difference
from saeval.results.ranks import rank
from saeval.results.report import Report
from saeval.stats.estimate import reliability_warnings
from saeval.testing import evaluate_tiny, tiny_tokens
from saeval.testing.claims import every, some

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


def test_one_document_with_half_of_the_tokens_leaves_at_most_four():
    support = of([480] + [10] * 48, range(49)).support
    assert support.effective == pytest.approx(960**2 / (480**2 + 48 * 100))
    assert support.effective < 4
    assert support.few
    one = "of which one accounts for 97% of the squared standard error"
    assert support.doubt == f"fewer than 20 effective documents (3.92, from 49), {one}"


def test_one_document_that_decides_is_a_doubt_of_its_own():
    support = of([10] * 50, [100, *np.resize([1.0, -1.0], 49)]).support
    assert not support.few
    assert support.largest_share > 0.9
    assert support.doubt == "one of 50 documents accounts for 98% of the squared standard error"
    assert of([10] * 50, np.resize([1.0, -1.0], 50)).support.doubt == ""
    constant = of([10] * 50, [3.0] * 50).support
    assert (constant.largest_share, constant.doubt) == (None, "")


def test_of_few_documents_one_that_makes_the_whole_error_is_named():
    """As a document with a massive activation does; no test of a large share is possible with so few."""
    values = np.array([0.3, 0.3001, 0.2999, 0.3, 9.0])
    one = Mean(values, np.ones(5), np.ones(5, int)).value.support
    assert one.doubt == (
        "fewer than 20 effective documents (5, from 5), of which one accounts for 80% of the squared standard error"
    )
    equal = Mean(np.arange(5.0), np.ones(5), np.ones(5, int)).value.support
    assert equal.doubt == "fewer than 20 effective documents (5, from 5)"
    (said,) = reliability_warnings([(equal, "a"), (one, "b")])
    assert said.startswith("fewer than 20 effective documents (5, from 5; worst: b; also 1 other value), of which one")


def test_one_document_has_no_error_to_doubt():
    assert of([10], [1.0]).support.doubt == ""


def test_the_worst_place_of_each_reason_is_named():
    fewer, few, heavy = of([9] * 5, range(5)), of([9] * 8, range(8)), of([9] * 50, [100, *range(49)])
    known = [(e.support, place) for e, place in ((few, "b"), (fewer, "a"), (heavy, "c"))]
    said = reliability_warnings(known)
    assert len(said) == 2
    assert said[0].startswith("fewer than 20 effective documents (5, from 5; worst: a; also 1 other value): errors, ")
    assert said[1].startswith("one of 50 documents accounts for 36% of the squared standard error (in c): errors, ")
    first, second = reliability_warnings([known[0], known[2]], [known[1], *known])
    assert "(5, from 5; worst: a; also 1 value and 2 other paired tests): " in first
    assert "for up to 36% of the squared standard error (worst: c; also 1 paired test): " in second


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


class Lopsided(Metric):
    """A value of all tokens, shown first, and one that a single token moves."""

    name, version, headline = "lopsided", 1, ("steady",)

    def observe(self, activations, mask):
        norm = activations.norm(dim=-1)
        return {"steady": Mean.of(norm.square(), mask), "moved": Mean.of((norm == norm[mask].max()) * norm, mask)}

    def conclude(self, total):
        return {name: Scalar(one.value) for name, one in total.items()}


def test_a_result_and_its_pages_warn_of_every_value_and_name_the_worst(tmp_path):
    rows = tiny_tokens(rows=60, documents=60)
    (result,) = evaluate_tiny(["lopsided"], Lopsided, rows=rows, batch_size=60)
    steady, moved = result.support("steady"), result.support("moved")
    assert not steady.unreliable
    assert moved.one_decides
    words = f"one of {moved.documents} documents accounts for {moved.largest_share:.0%} of the squared standard error "
    words += "(in lopsided.moved of tinysae): errors, intervals and tests are themselves unreliable"
    assert f"- {words}" in detail(result)
    page = Report("mine", pages=lambda results: {"mine.md": "text"})
    ((written,), _) = write_pages([page], [result], tmp_path)
    assert written.read_text().startswith(f"**{words[0].upper()}{words[1:]}.**")


@pytest.fixture
def suite(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "s.yaml").write_text(
        "suite: few\nmodel: testbed\ndata: {use: python-stdlib, context: 16, sequences: 6}\n"
        "saes: [testbed/topk-8, testbed/topk-32]\nmetrics: [reconstruction, {perturbation: {draws: 1, positions: 1}}]\n"
    )
    assert main(["run", "s.yaml", "--format", "csv"]) == 0
    assert "fewer than 20 effective documents (" in capsys.readouterr().err
    return "results/few"


def test_every_table_and_page_warns_of_few_documents(suite, capsys, tmp_path):
    assert main(["leaderboard", suite, "--format", "json"]) == 0
    words = "fewer than 20 effective documents ("
    output = capsys.readouterr()
    rows = json.loads(output.out)
    for row in some(rows):
        assert 1 <= row["effective_documents"] < 20
        assert row["effective_documents"] <= row["documents"]
        for column in ("reconstruction.mse", "perturbation.kl_sae", "perturbation.ratio"):
            assert row["unreliable"][column].startswith(words)
    assert rows[1]["unreliable"]["rank"].startswith(words)
    assert output.err.startswith(words)
    assert " other values and 1 paired test): errors, " in output.err
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
        output = capsys.readouterr()
        lines = list(csv.DictReader(io.StringIO(output.out)))
        assert some(lines)[0]["effective_documents"]
        assert int(lines[0]["documents"]) < 20
        assert words in lines[0]["unreliable"]
        assert words in output.err
    assert main(["report", suite]) == 0
    page = next(tmp_path.rglob("perturbation.md")).read_text()
    assert page.startswith("**Fewer than 20 effective documents (")


@pytest.mark.parametrize(("documents", "most"), [(20, 0.02), (38, 0.02), (100, 0.02)])
def test_documents_of_one_kind_are_hardly_ever_called_decided_by_one(documents, most):
    """Also where chance alone gives the largest a fifth."""
    random = np.random.default_rng(0)
    n = np.full(documents, 20)
    x = random.standard_normal((1000, documents))
    supports = [of(n, row).support for row in x]
    assert np.mean([support.one_decides for support in supports]) < most
    heavy = [of(n, np.append(row[1:], 30.0)).support for row in x[:100]]
    assert every(support.one_decides for support in heavy)


def entry(x):
    estimate = of([10] * len(x), x)
    return Entry(estimate.value, estimate.stderr, None, 10, "ok", None, estimate)


def test_few_documents_that_agree_are_no_finding_and_many_are():
    two = difference(entry([0.6, 0.5]), entry([0.5, 0.4]))
    assert two.stderr < 1e-12
    assert (two.p_value, two.detectable, two.ci95) == (pytest.approx(0.5), None, None)
    many = difference(entry(np.full(30, 16.0)), entry(np.full(30, 32.0)))
    assert many.p_value == pytest.approx(2.0**-29)
    assert difference(entry([2.0, 2.0]), entry([2.0, 2.0])).p_value is None


def test_equal_saes_that_are_counted_over_few_documents_are_seldom_told_apart():
    """Counts over few documents agree by chance."""
    random = np.random.default_rng(1)
    split = 0
    for _ in range(300):
        counts = random.binomial(16, 0.6, (8, 2)) / 16
        rows = [Row(str(i), "h", "sae", {"m.v": entry(one)}) for i, one in enumerate(counts)]
        rank(rows, Column("m.v", "", "higher"))
        split += any((row.rank, row.rank_high) != (1, 8) for row in rows)
    assert split / 300 < 0.07


def test_the_part_on_fewest_documents_gives_the_degrees_of_freedom():
    random = np.random.default_rng(2)
    false = 0
    for _ in range(400):
        n = np.zeros(50, dtype=int)
        n[:3] = 20
        few = Mean(random.standard_normal(50) * n, n.astype(float), n).value
        paired = of([20] * 50, 0.1 * random.standard_normal(50)) - few
        assert paired.effective == pytest.approx(3)
        false += abs(paired.value) > paired.stderr * stats.t.ppf(0.975, paired.effective - 1)
    assert false / 400 < 0.09


def test_a_test_is_repeated_where_every_document_moves_alike_up_to_a_factor():
    x, y = np.random.default_rng(3).standard_normal((2, 30))
    zero = entry(np.zeros(30))
    one = difference(entry(x), zero)
    for other in (3 * x, -x, x / np.log(2)):
        assert one.repeats(difference(entry(other), zero))
    assert not one.repeats(difference(entry(x[::-1]), zero))  # the same value and error
    assert not one.repeats(difference(entry(y), zero))


def test_sizes_that_only_say_which_documents_are_refused():
    with pytest.raises(TypeError, match="numbers of observations per document"):
        Estimate(1.0, np.ones(3), np.array([True, True, False]))


def test_nearly_one_document_gives_neither_interval_nor_test():
    lone = of([10**6, 1], [1.0, 2.0])
    assert lone.stderr > 0
    record = Scalar(lone).record()
    assert (record["ci95"], record["reason"]) == (
        None,
        "one document holds nearly all tokens, so there is no interval",
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert of([0, 0], [1.0, 2.0]).stderr is None


def test_a_difference_that_one_document_decides_is_warned_of_beside_ranks():
    x = np.random.default_rng(4).standard_normal(100)
    shifted = np.append(x[:-1] + 1e-9 * x[1:], x[-1] + 1)
    rows = [Row(name, "h", "sae", {"m.v": entry(one)}) for name, one in (("a", x), ("b", shifted))]
    column = Column("m.v", "", "lower")
    rank(rows, column)
    board = Board("t", "", {"use": "x"}, [column], rows, "m.v")
    assert [doubt for doubt in board.doubts if "in m.v of" in doubt] == []
    (doubt,) = board.doubts
    assert doubt.startswith("one of 100 documents accounts for 9")
    assert "b beside the top row" in doubt


def test_quantiles_of_whole_numbers_say_what_they_rest_on():
    found = saeval.evaluate(
        model="testbed", data={"use": "python-stdlib", "context": 16, "sequences": 6}, saes=["testbed/topk-8"],
        metrics=["l0"],
    )  # fmt: skip
    for name in ("l0_p5", "l0_p50", "l0_p95"):
        assert found[0].values[name]["documents"] == found[0].values["l0"]["documents"]
