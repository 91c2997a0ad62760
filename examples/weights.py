"""A metric of the weights alone: it has no `observe`, so it needs no forward pass."""

import torch

from saeval.plugin import Metric, Scalar, hookimpl
from saeval.testing import TinySAE, evaluate_tiny


class ClosestPair(Metric):
    """Cosine of the two decoder directions that are most alike.

    Values:
        cosine: max over i < j of cos(W_dec[i], W_dec[j]); cosine; −1 .. 1; lower is better.
    """

    name, version = "closest_pair", 1

    def conclude(self, W_dec):  # [d_sae, d_out]
        directions = torch.nn.functional.normalize(W_dec.double(), dim=1)
        cosines = directions @ directions.T
        cosines.fill_diagonal_(-1)
        return {"cosine": Scalar(float(cosines.max()), unit="cosine", better="lower")}


@hookimpl
def saeval_metrics():
    return [ClosestPair]


class Doubled(TinySAE):
    """Its last feature has the direction of its first."""

    def __init__(self):
        super().__init__()
        self.W_dec[-1] = 3 * self.W_dec[0]


def run():
    return evaluate_tiny(["closest_pair"], ClosestPair, saes=[TinySAE(), Doubled()])


def test_a_feature_twice_has_cosine_1():
    assert abs(run().value("closest_pair.cosine", "doubled")["value"] - 1) < 1e-6


if __name__ == "__main__":
    print(run().leaderboard())
