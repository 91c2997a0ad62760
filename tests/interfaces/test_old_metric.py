"""A metric that was written when estimates carried influences runs unchanged: authors' doors have not moved."""

from __future__ import annotations

import json

import pytest

from saeval.cli import main
from saeval.testing.claims import some

SOURCE = '''"""How much smaller reconstructions are, and how unevenly they miss."""
from saeval import Curve, Mean, Metric, Ratio, Scalar, hookimpl


class Shrinkage(Metric):
    """Ratio of the norms of reconstruction and activations, and the log of its distance from 1."""

    name = "shrinkage"
    version = 1
    headline = ("shrinkage",)

    def __init__(self, floor: float = 1e-6) -> None:
        self.floor = floor

    def observe(self, activations, reconstruction, mask):
        norms, shorter = activations.norm(dim=-1), reconstruction.norm(dim=-1)
        return {"size": Ratio.of(shorter, norms, mask), "miss": Mean.of((norms - shorter).abs() + self.floor, mask)}

    def conclude(self, total):
        size, miss = total["size"].value, total["miss"].value
        return {
            "shrinkage": Scalar(1 - size, better="lower"),
            "log_miss": Scalar(miss.log(), unit="nats", better="lower"),
            "both": Curve([1, 2], [(size * miss).sqrt(), 2 / (size + 1) - miss.exp()]),
        }


@hookimpl
def saeval_metrics():
    return [Shrinkage]
'''


def test_it_runs_unchanged(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "shrinkage.py").write_text(SOURCE)
    (tmp_path / "s.yaml").write_text(
        "suite: old\nmodel: testbed\ndata: {use: python-stdlib, context: 16, sequences: 48}\n"
        "saes: [testbed/topk-8, testbed/topk-32]\nmetrics: [shrinkage]\n"
    )
    assert main(["run", "s.yaml", "--plugin", "shrinkage.py", "--format", "json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert len(rows) == 2
    for row in some(rows):
        assert 0 < row["shrinkage.shrinkage"] < 1
        assert row["shrinkage.shrinkage.stderr"] > 0
        assert row["shrinkage.log_miss.stderr"] > 0
        assert 1 < row["effective_documents"] <= row["documents"]
    few, many = sorted(rows, key=lambda row: row["name"] != "testbed/topk-8")
    assert few["shrinkage.shrinkage"] > many["shrinkage.shrinkage"]
    assert few["rank"] == pytest.approx(2)


QUANTITIES = '''"""A fold without `@fold` and a gathered quantity without the name of its parameter, as both were once written."""
from saeval.plugin import Mean, Metric, Scalar, gathered, hookimpl


def norm_sum(activations, mask) -> Mean:
    """Mean norm of the activations."""
    return Mean.of(activations.norm(dim=-1), mask)


@gathered
def lengths(mask, spliced_activations):
    """Norms of what is spliced in, all at once."""
    return [spliced.norm(dim=-1) for spliced in spliced_activations]


class Relative(Metric):
    """Norm of what is spliced in, in units of the mean norm of the activations."""

    name, version = "relative", 1

    def observe(self, lengths, mask, norm_sum):
        return Mean.of(lengths / norm_sum.value.value, mask)

    def conclude(self, total):
        return Scalar(total.value)


@hookimpl
def saeval_metrics():
    return [Relative]


@hookimpl
def saeval_quantities():
    return [norm_sum, lengths]
'''


def test_folds_and_gathered_quantities_of_the_old_spelling_run_unchanged(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "relative.py").write_text(QUANTITIES)
    (tmp_path / "s.yaml").write_text(
        "suite: old\nmodel: testbed\ndata: {use: python-stdlib, context: 16, sequences: 24}\n"
        "saes: [testbed/topk-8, testbed/topk-32]\nmetrics: [relative]\n"
    )
    assert main(["run", "s.yaml", "--plugin", "relative.py", "--format", "json"]) == 0
    for row in some(json.loads(capsys.readouterr().out)):
        assert 0.3 < row["relative.relative"] < 1.2
    assert main(["show", "norm_sum", "--plugin", "relative.py"]) == 0
    assert "a fold, by its annotation only: decorate it with @fold" in capsys.readouterr().out
