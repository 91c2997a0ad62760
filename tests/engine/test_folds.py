"""Folds: in which pass they are taken, and over which rows."""

from __future__ import annotations

from saeval import Mean, Metric, Moments, Scalar, fit_split, fold
from saeval.registry.discovery import Plugins
from saeval.registry.registry import Registry
from saeval.testing import TinyModel, evaluate_tiny


def test_a_fold_asked_for_by_conclude_alone_shares_the_metrics_own_pass():
    class Late(Metric):
        name, version = "late", 1

        def observe(self, activations, mask):
            return Mean.of(activations.norm(dim=-1), mask)

        def conclude(self, total, activation_moments):
            return Scalar(total.value, n=activation_moments.n)

    model = TinyModel()
    evaluate_tiny(["late"], Late, model=model, batch_size=8)
    assert model.passes == {"clean": 0, "cut": 3, "resumed": 0}


@fold
def clean_loss(clean_scores, mask):
    """Fold of the clean pass."""
    return Mean.of(clean_scores.nll, mask)


def test_a_fold_for_conclude_waits_for_the_pass_of_the_cells_where_others_need_an_earlier_one():
    class Relative(Metric):
        name, version = "relative", 1

        def observe(self, activations, mask):
            return Mean.of(activations.norm(dim=-1), mask)

        def conclude(self, total, clean_loss):
            return Scalar(total.value / clean_loss.value)

    model = TinyModel()
    results = evaluate_tiny(["relative", "ce"], Relative, model=model, quantities=[clean_loss], batch_size=8)
    assert [r.status for r in results] == ["ok", "ok"]
    assert model.passes == {"clean": 3 + 2, "cut": 3 - 1, "resumed": 6 + 1}  # the preflight's pass serves the first


def test_a_fold_over_the_fit_split_may_be_asked_for_by_conclude_alone():

    @fold
    @fit_split
    def fit_moments(activations, mask):
        """Moments over the fit split."""
        return Moments.of(activations, mask)

    class Shift(Metric):
        name, version = "shift", 1

        def observe(self, mask):
            return Mean.of(mask.double())

        def conclude(self, total, fit_moments):
            return Scalar(total.value, n=fit_moments.n)

    results = evaluate_tiny(["shift"], Shift, quantities=[fit_moments])
    assert results[0].status == "ok", results[0].traceback
    assert results.value("shift")["n"] > 0


def test_every_fold_that_ships_is_marked():
    folds = [entry.thing for entry in Registry(Plugins([])).quantities if entry.thing.fold]
    assert len(folds) > 12
    assert not [fold.name for fold in folds if "fold" not in getattr(fold.function, "__saeval__", {})]
