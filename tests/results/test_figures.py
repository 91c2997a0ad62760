"""What figures show can be read: no title is cut, and a logarithmic axis has labels however short it is."""

from __future__ import annotations

import importlib

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from saeval.results.pages import figure, label_log_axis
from saeval.testing import TinySAE, evaluate_tiny
from saeval.testing.claims import every


def page(plugin):
    return importlib.import_module(f"saeval_{plugin}.pages")  # the package's own `pages` is a function


@pytest.fixture(scope="module")
def results():
    """One SAE alone, so that every figure has a single panel."""
    metrics = [
        {"perturbation": {"draws": 2, "nulls": []}},
        {"perturbation_curve": {"draws": 2, "cosines": [0.9, 0.95]}},
    ]
    found = evaluate_tiny(metrics, saes={"sae": TinySAE()})
    assert [r.status for r in found] == ["ok", "ok"], [r.reason for r in found]
    return list(found)


@pytest.fixture(scope="module")
def group():
    saes = {"a-first-seed-of-many": TinySAE(), "another-second-seed": TinySAE(seed=1)}
    metric = {
        "seed_stability": {
            "over": "a-group-of-two",
            "draws": 2,
            "alive_firings": 1,
            "modes": ["signed"],
            "controls": [],
        }
    }
    (found,) = evaluate_tiny([metric], saes=saes, groups={"a-group-of-two": ["*"]})
    assert found.status == "ok", found.reason
    return found


def drawn(made):
    canvas = FigureCanvasAgg(made)
    canvas.draw()
    return canvas.get_renderer()


def titles(made):
    return [
        text for text in (made._suptitle, *(axes.title for axes in made.axes)) if text is not None and text.get_text()
    ]


def cut(made):
    """The titles that do not fit into their figure."""
    renderer = drawn(made)
    boxes = {text.get_text(): text.get_window_extent(renderer) for text in titles(made)}
    assert boxes
    return [text for text, box in boxes.items() if box.x0 < 0 or box.x1 > made.bbox.width]


def labels(axis):
    low, high = sorted(axis.get_view_interval())
    placed = [label for label in axis.get_ticklabels() if low <= _place(axis, label) <= high]
    return [label.get_text() for label in placed if label.get_text()]


def _place(axis, label):
    return label.get_position()[0 if axis.axis_name == "x" else 1]


def test_no_title_of_a_single_panel_is_cut(results, group):
    charts = [
        page("perturbation").ratio_chart(results[:1]), page("perturbation").curve_chart(results[1:]),
        page("stability").histograms(group), page("stability").scatter(group), page("stability").heat_maps(group),
    ]  # fmt: skip
    assert [cut(chart) for chart in charts] == [[]] * 5


def test_the_axes_of_real_charts_have_labels(results):
    for chart in (page("perturbation").ratio_chart(results[:1]), page("perturbation").curve_chart(results[1:])):
        drawn(chart)
        (axes,) = chart.axes
        assert axes.get_yscale() == "log"
        assert len(labels(axes.yaxis)) >= 3


@pytest.mark.parametrize(
    ("low", "high"), [(0.83, 1.7), (0.96, 1.04), (1, 1.01), (0.02, 0.9), (0.3, 40), (3e-4, 2.7e-3)]
)
def test_a_short_logarithmic_axis_has_more_than_one_label(low, high):
    made = figure(4, 3)
    axes = made.add_subplot()
    axes.plot([0, 1], [low, high])
    axes.set_yscale("log")
    axes.set_ylim(low, high)
    label_log_axis(axes.yaxis)
    drawn(made)
    found = labels(axes.yaxis)
    assert 3 <= len(found) <= 12
    assert len(set(found)) == len(found)
    assert every(low * 0.99 <= float(text) <= high * 1.01 for text in found)


def test_a_long_logarithmic_axis_keeps_its_powers_of_ten():
    made = figure(4, 3)
    axes = made.add_subplot()
    axes.set_yscale("log")
    axes.set_ylim(1e-6, 10)
    label_log_axis(axes.yaxis)
    drawn(made)
    assert any("10^{-5}" in text for text in labels(axes.yaxis))
