"""A metric with interventions of its own: it says what to put in place of the activations, and sees the predictions."""

from saeval.plugin import Mean, Metric, Scalar, hookimpl
from saeval.testing import evaluate_tiny


class HalfWay(Metric):
    """Harm of going half of the way from the activations to the reconstruction.

    Values:
        half: mean KL(clean‖half-way); nats; ≥ 0; lower is better.
        whole: mean KL(clean‖spliced); nats; ≥ 0; lower is better.
    """

    name, version, headline = "half_way", 1, ("half", "whole")
    interventions = ("half",)

    def substitutes(self, activations, reconstruction):  # one tensor [batch, seq, d] for each name above
        return {"half": (activations + reconstruction) / 2}

    def observe(self, substitute_scores, spliced_scores, mask):  # the first is a dict with the same names
        return {"half": Mean.of(substitute_scores["half"].kl, mask), "whole": Mean.of(spliced_scores.kl, mask)}

    def conclude(self, total):
        return {name: Scalar(total[name].value, unit="nats", better="lower") for name in ("half", "whole")}


@hookimpl
def saeval_metrics():
    return [HalfWay]


def run():
    return evaluate_tiny(["half_way"], HalfWay)


def test_half_of_the_error_does_less_harm():
    (result,) = run()
    assert 0 < result.values["half"]["value"] < result.values["whole"]["value"]


if __name__ == "__main__":
    print(run().leaderboard())
