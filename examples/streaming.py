"""A streaming metric: it sees the activations and what the SAE makes of them, batch by batch."""

from saeval.plugin import Metric, Ratio, Scalar, hookimpl
from saeval.testing import evaluate_tiny


class ErrorShare(Metric):
    """Share of the activations' norm that the reconstruction lacks.

    Values:
        share: Σ‖x − x̂‖ / Σ‖x‖ over the tokens of the mask; ratio; ≥ 0; lower is better.
    """

    name, version = "error_share", 1

    def observe(self, activations, reconstruction, mask):  # [batch, seq, d_in], the mask [batch, seq]
        return Ratio.of((activations - reconstruction).norm(dim=-1), activations.norm(dim=-1), mask)

    def conclude(self, total):
        return {"share": Scalar(total.value, unit="ratio", better="lower")}


@hookimpl
def saeval_metrics():
    return [ErrorShare]


def run():
    return evaluate_tiny(["error_share"], ErrorShare, controls=["identity"])


def test_a_perfect_substitute_lacks_nothing():
    assert run().value("error_share.share", "identity")["value"] == 0


if __name__ == "__main__":
    print(run().leaderboard())
