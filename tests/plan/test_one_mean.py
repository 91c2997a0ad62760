"""One μ for all: the reference of explained variance, the mean ablation, and the mean control."""

from __future__ import annotations

import pytest

from saeval.testing import evaluate_tiny, tiny_tokens
from scattered_rows import documents, saes

TARGET = {"reconstruction.mse": 0.6}


def explained(**options):
    options = {"rows": documents(), "saes": saes(), "batch_size": 32, "precision": TARGET, **options}
    return evaluate_tiny(["reconstruction"], **options)


def test_the_mean_control_explains_nothing_wherever_a_run_stops():
    results = explained(controls=["mean"])
    assert results.sample["stopped_adaptively"]
    assert results.value("reconstruction.fvu", "mean")["value"] == pytest.approx(1, abs=1e-9)
    assert results.value("reconstruction.explained_variance", "mean")["value"] == pytest.approx(0, abs=1e-9)


def test_the_reference_does_not_depend_on_what_else_the_suite_has():
    alone, beside = explained(), explained(controls=["mean"])
    for name in ("a", "b"):
        one, other = (r.value("reconstruction.explained_variance", name) for r in (alone, beside))
        assert one == other


def test_a_run_over_all_rows_needs_no_pass_more():
    rows = tiny_tokens()
    results = evaluate_tiny(["reconstruction"], rows=rows, batch_size=len(rows))
    assert results.forward_passes == 1
