"""Removal of planted spurious correlations: a biased probe that is repaired wholly, in part, or has nothing to repair."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import pearsonr

from planted import MARK, OTHER, OneHot, Reader, texts
from saeval.testing import evaluate_tiny
from saeval.testing.claims import every
from saeval_concepts.directions import LeftOut
from saeval_concepts.scr import SCR

TWO = {"p": lambda row: row % 2, "q": lambda row: row // 2 % 2}
FIRST = 12
"""Tokens before it leave no trace in the activations."""


def marks(row):
    """The marks of the labels, three words that are always there; the model does not see the others."""
    return [MARK if row % 2 else 1, OTHER if row // 2 % 2 else 2, FIRST, FIRST + 1, FIRST + 2]


def repaired(marks=marks, saes=None, columns=TWO, validation=0.4, **options):
    """The results of SAEs on texts with these marks."""
    return evaluate_tiny(
        [{"scr": {"n": (1, 2), "draws": 20, **options}}], model=OneHot(first=FIRST), saes=saes or [Reader()],
        rows=texts(marks, 1, columns=columns, words=FIRST),
        fit=texts(marks, 2, validation=validation, columns=columns, words=FIRST),
    )  # fmt: skip


def numbers(result):
    return {name: record["value"] for name, record in result.values.items() if "value" in record}


def test_a_spurious_label_with_a_feature_of_its_own():
    """The biased probe reads both marks alike; without the other mark, it is the kept label's own probe."""
    (result,) = repaired()
    found = numbers(result)
    whole = ["first@1", "second@1", "skyline_first", "skyline_second", "removed_first@1"]
    assert [found[name] for name in whole] == pytest.approx([1] * 5)
    assert found["shuffled_first@1"] < 0.6
    assert found["random_first@1"] < 0.2
    table = {(row[0], row[1]): row[2] for row in result.values["probes"]["rows"]}
    assert table["biased", "p"] == pytest.approx(table["biased", "q"]) == pytest.approx(0.5**0.5, abs=0.02)
    assert table["p", "p"] == pytest.approx(1)
    assert [row[:3] for row in result.values["latents"]["rows"] if row[1] == 1] == [["q", 1, OTHER], ["p", 1, MARK]]


class Half(Reader):
    """Each feature writes half of its token's direction."""

    def __init__(self) -> None:
        super().__init__()
        self.W_dec = self.W_dec / 2


def test_a_spurious_label_that_features_carry_in_part():
    """Of equal weights 1 and 1, the second becomes 1/2: the correlation grows from 1/√2 to 1/√1.25, of the way to 1."""
    before, after = 0.5**0.5, 1.25**-0.5
    found = numbers(repaired(saes=[Half()])[0])
    assert found["first@1"] == pytest.approx((after - before) / (1 - before), abs=0.02)


def test_a_dictionary_without_the_labels():
    silent = Reader()
    silent.b_enc[[MARK, OTHER]] = -9.0
    found = numbers(repaired(saes=[silent])[0])
    assert found["first@2"] == pytest.approx(0)


def test_nothing_to_repair():
    """The second mark is not in the texts, so the biased probe knows the first label alone."""
    (result,) = repaired(lambda row: [*marks(row)[:1], 2, *marks(row)[2:]])
    values = result.values
    assert "the biased probe follows 'p' as well as its own probe" in values["first@1"]["reason"]
    assert values["first@1"]["value"] is None


@pytest.mark.parametrize(
    ("given", "fault"),
    [
        ({"columns": {**TWO, "r": TWO["p"]}}, "'tasks' matches 3 tasks ('p', 'q', 'r'); name the two"),
        ({"columns": {"p": TWO["p"], "q": TWO["p"]}}, "no texts with one of the four pairs of answers for task 'p and q'"),
        ({"validation": 0.0}, "the texts for validation have no text of task 'p and q'"),
    ],
)  # fmt: skip
def test_data_that_cannot_be_used(given, fault):
    (result,) = repaired(**given)
    assert result.status == "undefined"
    assert fault in result.reason


def test_values_are_declared():
    (result,) = repaired()
    scalars = {name for name, record in result.values.items() if "value" in record}
    assert set(SCR(n=(1, 2)).value_names) == scalars


def test_correlations_without_each_document():
    draw = np.random.default_rng(0)
    clusters, y, logits = draw.integers(0, 6, 50), draw.random(50) < 0.4, draw.normal(size=(50, 2))
    found = LeftOut(clusters, 6).correlation(logits, y)

    def theirs(rows):
        return [pearsonr(logits[rows, column], y[rows]).statistic for column in (0, 1)]

    assert found[-1] == pytest.approx(theirs(np.arange(50)))
    assert every(found[c] == pytest.approx(theirs(np.flatnonzero(clusters != c))) for c in range(6))
    assert (LeftOut(clusters, 6).correlation(np.full(50, 0.1), y) == 0).all()
