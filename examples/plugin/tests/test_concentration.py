"""The metric keeps the rules, has the value that it should have, and its suite can be planned."""

import torch
from saeval_concentration import Concentration

from saeval.cli import main
from saeval.testing import TinySAE, check_metric, evaluate_tiny


class OneFeature(TinySAE):
    """Only its first feature fires."""

    def encode(self, x):
        return torch.nn.functional.one_hot(torch.zeros(x.shape[:-1], dtype=torch.long), 32).to(x.dtype)


def test_it_keeps_the_rules_of_metrics():
    check_metric(Concentration)


def test_one_feature_has_all_of_the_activation(tiny_rows):
    results = evaluate_tiny(["concentration"], saes={"one": OneFeature()}, rows=tiny_rows)
    assert abs(results.value("concentration.largest", "one")["value"] - 1) < 1e-6


def test_the_suite_can_be_planned(tmp_path):
    assert main(["check", "concentration-testbed", "--limit", "2", "--out", str(tmp_path)]) == 0
