"""A control: an untrained baseline with a row of its own."""

from saeval.plugin import Control, Substitute, hookimpl
from saeval.testing import evaluate_tiny


class Shrunk(Substitute):
    name = "shrunk"

    def __init__(self, mean, factor):
        self.mean, self.factor = mean, factor

    def decode(self, encoding, activations):  # [batch, seq, d_in]
        mean = self.mean.to(activations)
        return mean + self.factor * (activations - mean)


class Shrink(Control):
    """The activations, moved to their mean by a factor."""

    name, version = "shrink", 1

    def __init__(self, factor: float = 0.5):  # the keys in a suite's `controls:`
        self.factor = factor

    def build(self, activation_mean):  # its parameters are requests, too
        return Shrunk(activation_mean, self.factor)


@hookimpl
def saeval_controls():
    return [Shrink]


def run():
    controls = [{"use": "shrink", "factor": factor, "name": f"shrink {factor}"} for factor in (0.0, 0.5)]
    return evaluate_tiny(["reconstruction"], controls=controls, control_classes=[Shrink])


def test_half_of_the_deviation_leaves_a_quarter_of_the_variance():
    results = run()
    explained = [results.value("reconstruction.explained_variance", f"shrink {x}")["value"] for x in (0.0, 0.5)]
    assert abs(explained[0]) < 1e-5
    assert abs(explained[1] - 0.75) < 1e-5


if __name__ == "__main__":
    print(run().leaderboard())
