"""What a notebook shows of results, and what a logger gets: tables, charts, plain numbers."""

from __future__ import annotations

import re
import sys
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pytest

from saeval import Curve, Metric, SaevalError, Scalar
from saeval.base import progress
from saeval.testing import TinySAE, evaluate_tiny
from saeval.testing.claims import every, none, some
from saeval_stability import match


class Shape(Metric):
    """A number and a curve of the decoder.

    Values:
        rows: number of features; count; ≥ 0; no better direction.
    """

    name = "shape"

    def conclude(self, W_dec):
        return {
            "rows": Scalar(len(W_dec), unit="count"),
            "norms": Curve([1.0, 2.0, 3.0], [0.5, None, 0.7], unit="norm"),
        }


@pytest.fixture(scope="module")
def results():
    saes = {"first": TinySAE(), "<script>alert(1)</script>": TinySAE(seed=1)}
    return evaluate_tiny(["l0", "ce", "kl", "reconstruction", "shape"], Shape, saes=saes, controls=["mean"])


class Balanced(HTMLParser):
    """Fails for an element that is not closed in its place."""

    def __init__(self, text):
        super().__init__()
        self.open, self.seen = [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.seen.append(tag)
        if tag not in ("img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_results_are_a_table_without_scripts(results):
    text = results._repr_html_()
    seen = Balanced(text).seen
    assert seen.count("tr") == 1 + 3
    assert "script" not in seen
    assert "&lt;script&gt;" in text
    assert "mean (control)" in text
    assert "± is one standard error" in text


def test_columns_that_do_not_fit_are_named(results):
    (board,) = results.boards()
    text = board._repr_html_()
    headers = re.findall(r"<th[^>]*>([^<]*)</th>", text)
    shown = [column.name for column in board.shown]
    missing = [name for name in shown if not any(header.startswith(name) for header in headers)]
    assert len(missing) > 0
    left_out = re.search(r"left out to fit: ([^;]*);", text)[1]
    assert every(name in left_out for name in missing[:6])
    assert none(name in left_out for name in set(shown) - set(missing))


def test_a_result_has_its_curve_as_a_picture(results):
    of_shape = next(r for r in results if r.metric == "shape")
    seen = Balanced(text := of_shape._repr_html_()).seen
    assert seen.count("img") == 1
    assert "data:image/svg+xml;base64," in text
    assert "32" in text
    for result in some(results):
        curves = sum(record.get("kind") == "curve" for record in result.values.values())
        assert Balanced(result._repr_html_()).seen.count("img") == min(curves, 3), result.metric


def test_a_matching_is_numbers_and_a_histogram():
    A = np.random.default_rng(0).normal(size=(20, 8))
    text = match(A, A[:12])._repr_html_()
    assert Balanced(text).seen.count("img") == 1
    assert "Matching of 20 and 12 features" in text
    assert re.search(r"matched pairs</td><td[^>]*>12</td>", text)
    assert re.search(r"mean similarity of the pairs</td><td[^>]*>1</td>", text)


def test_charts_of_a_value_are_drawn_and_written(results, tmp_path):
    drawn = results.plot("ce.delta_ce", to=tmp_path, format="svg")
    assert Balanced(drawn._repr_html_()).seen.count("img") == 1
    assert {file.suffix for file in tmp_path.iterdir()} == {".svg", ".csv"}
    with pytest.raises(SaevalError, match="no metric of these results is named 'cf'"):
        results.plot("cf")
    with pytest.raises(SaevalError, match="charts have no format 'pdf'"):
        results.plot("ce", format="pdf")


def test_scalars_of_one_sae_have_the_names_of_values():
    one = evaluate_tiny(["l0", "ce"], controls=["mean"])
    numbers = one.scalars()
    assert numbers["l0.l0"] == one.value("l0.l0", "tinysae")["value"]
    assert numbers["ce.delta_ce"] == one.value("ce.delta_ce", "tinysae")["value"]
    assert every(type(number) is float for number in numbers.values())
    assert "mean/ce.delta_ce" in one.scalars(controls=True)


def test_scalars_of_several_saes_name_them(results):
    numbers = results.scalars()
    assert numbers["first/l0.l0"] == results.value("l0.l0", "first")["value"]
    assert none(name.startswith("mean/") for name in numbers)
    assert len(results.frame) == len(results.to_frame()) > len(numbers)


def test_progress_is_shown_in_a_notebook_alone(monkeypatch):
    assert type(progress.shown(None)) is progress.Silence
    assert type(progress.shown(True)) is progress.Lines
    shell = SimpleNamespace(kernel=object())
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    assert type(progress.shown(None)) is progress.Notebook
    assert type(progress.shown(False)) is progress.Silence
    lines = progress.Lines()
    assert progress.shown(lines) is lines
