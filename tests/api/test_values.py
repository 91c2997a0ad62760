"""`Results.value`: one value by name, or why there is none."""

from __future__ import annotations

import pytest

from saeval import Metric, SaevalError, Scalar, Undefined
from saeval.testing import TinySAE, evaluate_tiny


class Sometimes(Metric):
    """A number, none, or a failure."""

    name = "sometimes"

    def __init__(self, what: str = "number") -> None:
        self.what = what

    def conclude(self, W_dec):
        if self.what == "undefined":
            raise Undefined("no token has a norm")
        return Scalar(1.0 if self.what == "number" else 1 / 0)


def results(what):
    return evaluate_tiny([{"sometimes": {"what": what}}], Sometimes, saes={"map": TinySAE(), "other": TinySAE(seed=1)})


def test_a_value_that_is_there():
    assert results("number").value("sometimes", "map")["value"] == 1


@pytest.mark.parametrize(
    ("what", "name", "subject", "sentence"),
    [
        ("undefined", "sometimes.sometimes", "map", "sometimes of map is undefined: no token has a norm"),
        ("failing", "sometimes", "map", "sometimes of map failed: ZeroDivisionError: "),
        (
            "number",
            "sometimes.sometime",
            "map",
            "metric 'sometimes' has no value 'sometime'; did you mean 'sometimes'?",
        ),
        ("number", "sometimes", None, "sometimes: 2 results match; name one of ['map', 'other']"),
    ],
)
def test_one_that_is_missing_says_why(what, name, subject, sentence):
    found = results(what)
    with pytest.raises(KeyError) as raised:
        found.value(name, subject)
    assert isinstance(raised.value, SaevalError)
    assert str(raised.value).startswith(sentence)
