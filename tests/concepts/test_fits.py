"""Few fitted rows, few of one class, wrong labels: which rows a probe is fitted to, and that it is judged on the same."""

from __future__ import annotations

import numpy as np
import pytest

from planted import MARK, OneHot, Reader, marked_tokens, texts
from saeval.plugin import Metric, Scalar
from saeval.testing import evaluate_tiny
from saeval.testing.claims import some
from saeval_concepts.fits import quota
from saeval_concepts.probes import Trainer


class Fitted(Metric):
    """Which rows a probe is fitted to: numbers by class and of wrong labels, and sums that tell rows and tokens apart."""

    name = "fitted"

    def __init__(
        self, tasks=("*",), pooling="last", seed=0, fit_rows=None, positive_share=None, label_noise=0.0, per_row=4,
        held_out_types=0.0,
    ) -> None:  # fmt: skip
        self.tasks, self.pooling, self.seed, self.per_row = tasks, pooling, seed, per_row
        self.fit_rows, self.positive_share, self.label_noise = fit_rows, positive_share, label_noise
        self.held_out_types = held_out_types

    def conclude(self, fit_activation_rows):
        rows, y = fit_activation_rows.ids, fit_activation_rows["y"][:, 0]
        x = fit_activation_rows["x"]
        wrong = (y == 1) != (x[:, MARK] == 1 if self.pooling == "token" else rows % 3 == 0)
        which = ((rows + 1) ** 2 * (1 + x @ np.arange(x.shape[1]))).sum()
        numbers = {"yes": (y == 1).sum(), "no": (y == 0).sum(), "wrong": wrong.sum(), "rows": (rows**2).sum()}
        numbers |= {"which": which, "which wrong": ((rows + 1) ** 2)[wrong].sum()}
        return {name: Scalar(float(number)) for name, number in numbers.items()}


def third(row):
    return int(row % 3 == 0)


def fitted(batch_size=None, rows=None, **options):
    rows = rows or texts(lambda row: [MARK] * third(row), 2, columns={"third": third})
    given = {"batch_size": batch_size} if batch_size else {}
    (result,) = evaluate_tiny([{"fitted": options}], Fitted, model=OneHot(), saes=[Reader()], rows=rows, **given)
    assert result.status == "ok", result.reason
    return {name: record["value"] for name, record in result.values.items()}


def a_mark_in_each_row(tokens):
    tokens[:, 3] = MARK


def fitted_tokens(batch_size=None, **options):
    """The same for tokens of 60 rows, of which each has the label once."""
    rows = marked_tokens({"mark": lambda tokens, draw: tokens == MARK}, 2, place=a_mark_in_each_row)
    return fitted(batch_size, rows, pooling="token", **options)


def test_the_rows_of_each_class():
    everything = fitted()
    assert (everything["yes"], everything["no"], everything["wrong"]) == (40, 80, 0)
    few = fitted(fit_rows=30)
    assert (few["yes"], few["no"]) == (10, 20)
    rare = fitted(fit_rows=30, positive_share=0.1)
    assert (rare["yes"], rare["no"]) == (3, 27)
    assert few["wrong"] == rare["wrong"] == 0
    shared = fitted(positive_share=0.8)
    assert (shared["yes"], shared["no"], shared["wrong"]) == (40, 10, 0)


def test_more_rows_keep_the_same_ones(monkeypatch):
    """Sums over the rows differ by squares of the rows that are added."""
    one, two, all_but = (fitted(fit_rows=count) for count in (60, 63, 119))
    assert 0 < two["rows"] - one["rows"] <= 3 * 119**2
    assert fitted()["rows"] - all_but["rows"] in {number**2 for number in range(120)}
    assert fitted(fit_rows=60, seed=1)["rows"] != one["rows"]


def test_a_share_of_the_fitted_labels_is_wrong():
    noisy, more = fitted(label_noise=0.2), fitted(label_noise=0.4)
    assert 12 <= noisy["wrong"] <= 36
    assert 36 <= more["wrong"] <= 60
    assert noisy["rows"] == more["rows"] == fitted()["rows"]
    assert 1 <= fitted(label_noise=0.3, fit_rows=40)["wrong"] <= 22


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ((80, 40, None, None), (80, 40)),
        ((80, 40, 30, None), (20, 10)),
        ((80, 40, 500, None), (80, 40)),
        ((80, 40, 30, 0.5), (15, 15)),
        ((80, 40, None, 0.5), (40, 40)),
        ((80, 40, None, 0.05), (80, 4)),
        ((80, 4, 30, 0.5), (4, 4)),
        ((1000, 3, 20, None), (19, 1)),
        ((80, 40, 2, 0.05), (1, 1)),
        ((80, 0, 10, 0.5), (80, 0)),
    ],
)
def test_quotas(given, expected):
    assert quota(*given) == expected


def probed(metrics, rows=None, fit=None):
    data = rows or texts(lambda row: [MARK] * third(row), 1, columns={"third": third})
    fit = fit or texts(lambda row: [MARK] * third(row), 2, columns={"third": third})
    saes = {"one": Reader(), "two": Reader(scale=3.0)}
    found = evaluate_tiny(metrics, model=OneHot(), saes=saes, rows=data, fit=fit)
    return [
        ({name: record["value"] for name, record in result.values.items() if "value" in record}, result.values["tasks"])
        for result in found
    ]


def test_evaluated_rows_stay_and_keep_their_labels():
    """Features and their probe survive wrong labels; the test is that of the true ones, for every SAE."""
    settings = [{}, {"fit_rows": 24}, {"positive_share": 0.1, "fit_rows": 60}, {"label_noise": 0.2}]
    metrics = [{"sparse_probing": {"k": (1,), "folds": 2, "as": f"s{n}", **own}} for n, own in enumerate(settings)]
    found = probed(metrics)
    assert len(found) == 8
    for values, table in some(found):
        (line,) = table["rows"]
        assert line[2:4] == [120, 40]
        assert values["auc@1"] == values["auc_neurons@1"] == 1
    assert {table["rows"][0][1] for _, table in found} == {120, 24, 60}


def test_settings_of_tokens():
    """Whatever is fitted, the evaluated tokens and their labels are the true ones."""
    labels = {"mark": lambda tokens, draw: tokens == MARK}
    rows = [marked_tokens(labels, seed, place=a_mark_in_each_row) for seed in (1, 2)]
    settings = [{"fit_rows": 50, "positive_share": 0.2}, {"label_noise": 0.2}]
    metrics = [
        {"sparse_probing": {"k": (1,), "folds": 2, "pooling": "token", "as": f"s{n}", **own}}
        for n, own in enumerate(settings)
    ]
    found = probed(metrics, *rows)
    assert {table["rows"][0][1] for _, table in found} == {50, 300}
    for values, table in some(found):
        assert table["rows"][0][2:4] == [300, 60]
        assert values["auc@1"] == values["auc_neurons@1"] == 1


def test_the_tokens_of_each_class():
    everything = fitted_tokens()
    assert (everything["yes"], everything["no"], everything["wrong"]) == (60, 240, 0)
    few, rare = fitted_tokens(fit_rows=50), fitted_tokens(fit_rows=50, positive_share=0.1)
    assert [(own["yes"], own["no"], own["wrong"]) for own in (few, rare)] == [(10, 40, 0), (5, 45, 0)]
    noisy, more = fitted_tokens(label_noise=0.2), fitted_tokens(label_noise=0.4)
    assert 40 <= noisy["wrong"] <= 80
    assert 95 <= more["wrong"] <= 145
    assert noisy["which"] == more["which"] == everything["which"]
    assert fitted_tokens(fit_rows=50, seed=1)["which"] != few["which"]


SETTINGS = {"fit_rows": 40, "positive_share": 0.25, "label_noise": 0.3}


@pytest.mark.parametrize("of", [fitted, fitted_tokens])
def test_neither_rows_nor_wrong_labels_depend_on_the_size_of_a_batch(of):
    whole, parts = of(**SETTINGS), of(batch_size=7, **SETTINGS)
    assert whole == parts
    assert whole["yes"] + whole["no"] == 40
    assert whole["wrong"] > 2


def test_a_penalty_without_cross_validation():
    """No part has both classes inside and outside: C is 1, not the smallest."""
    y = np.array([True, False])
    trainer = Trainer(y, np.array([0, 1]), np.array([0, 1]), folds=2)
    x = np.array([[1.0], [0.0]])
    assert trainer.fit(lambda part: x, x).C == 1
    y, parts = np.array([True, False] * 6), np.repeat([0, 1], 6)
    x = np.where(y, 1.0, 0.0)[:, None]
    assert Trainer(y, parts, np.arange(12), folds=2).fit(lambda part: x, x).C > 1


def test_one_row_of_each_class():
    for values, _ in some(probed([{"sparse_probing": {"k": (1, 2), "folds": 2, "fit_rows": 2}}])):
        assert 0 <= values["auc@1"] <= 1
