"""Removal of planted spurious correlations: a biased probe that is repaired wholly, in part, or has nothing to repair."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import pearsonr

from planted import MARK, OTHER, VOCABULARY, OneHot, Reader, marked_tokens, texts
from saeval import SaevalError
from saeval.testing import evaluate_tiny
from saeval.testing.claims import every, some
from saeval_concepts.directions import LeftOut
from saeval_concepts.rows import chosen_tokens
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


class Both(OneHot):
    """A model in which a token has one mark or both: its number says which."""

    def __init__(self) -> None:
        super().__init__()
        self.embed[:] = 0
        for token in range(VOCABULARY):
            self.embed[token, MARK], self.embed[token, OTHER] = token % 2, token // 2 % 2


BITS = {"p": lambda tokens, draw: tokens % 2 == 1, "q": lambda tokens, draw: tokens // 2 % 2 == 1}


def tokens(batch_size=None, labels=BITS, sae=Reader, **options):
    data, fit = (marked_tokens(labels, seed, validation=v) for seed, v in ((1, 0.0), (2, 0.4)))
    given = {"batch_size": batch_size} if batch_size else {}
    (result,) = evaluate_tiny(
        [{"scr": {"n": (1, 2), "draws": 2, "pooling": "token", "per_quadrant": 1, **options}}], model=Both(),
        saes=[sae()], rows=data, fit=fit, **given,
    )  # fmt: skip
    return result


def test_spurious_labels_of_tokens():
    result = tokens()
    found = numbers(result)
    names = ["first@1", "second@1", "skyline_first", "skyline_second"]
    assert [found[name] for name in names] == pytest.approx([1] * 4)
    # the threshold stays between none and both marks, so that one mark is a no: of 3/4 right answers 1/2 remain
    assert found["accuracy_first@1"] == pytest.approx(-1)
    assert [row[:3] for row in result.values["latents"]["rows"] if row[1] == 1] == [["q", 1, OTHER], ["p", 1, MARK]]
    before, after = 0.5**0.5, 1.25**-0.5
    assert numbers(tokens(sae=Half))["first@1"] == pytest.approx((after - before) / (1 - before), abs=0.02)
    assert numbers(tokens(batch_size=7)) == pytest.approx(found, abs=1e-9)


def test_tokens_of_each_pair_of_answers():
    """One of each pair from each row that has it, with both answers; a third label that is not asked for is ignored."""
    draw = np.random.default_rng(0)
    answers = {name: torch.from_numpy(draw.integers(0, 2, (30, 12)).astype(np.int8)) for name in ("p", "q", "r")}
    answers["q"][5] = -1
    ids = torch.from_numpy(draw.integers(0, 9, (30, 12)))
    inside = ids > 1
    keys = np.arange(30 * 12, dtype=np.uint64).reshape(30, 12)
    chosen = chosen_tokens(ids, inside, answers, keys, tasks=("p", "q"), pooling="token", per_quadrant=1)
    assert set(chosen.labels) == {"p", "q"}
    for name, own in some(chosen.labels.items()):
        assert own.tolist() == answers[name][chosen.rows, chosen.positions].tolist()
    assert inside[chosen.rows, chosen.positions].all()
    found = list(zip(chosen.rows, chosen.labels["p"], chosen.labels["q"], strict=True))
    known = inside & (answers["q"] >= 0)
    rows, positions = np.nonzero(known.numpy())
    there = set(zip(rows, *(answers[name][rows, positions].tolist() for name in ("p", "q")), strict=True))
    assert len(found) == len(there)
    assert set(found) == there
    one, many = (
        chosen_tokens(
            ids[part], inside[part], {n: a[part] for n, a in answers.items()}, keys[part], ("p", "q"), "token", 4, 1
        )
        for part in (slice(3, 4), slice(0, 30))
    )
    assert one.positions.tolist() == many.positions[many.rows == 3].tolist()


@pytest.mark.parametrize(
    ("given", "fault"),
    [
        ({"columns": {"p": TWO["p"], "q": TWO["p"]}}, "no texts with one of the four pairs of answers for task 'p and q'"),
        ({"validation": 0.0}, "the texts for validation have no text of task 'p and q'"),
    ],
)  # fmt: skip
def test_data_that_cannot_be_used(given, fault):
    (result,) = repaired(**given)
    assert result.status == "undefined"
    assert fault in result.reason


def test_three_labels_are_refused_before_the_run():
    with pytest.raises(SaevalError, match=r"'tasks' matches 3 tasks \('p', 'q', 'r'\); name the 2 to use"):
        repaired(columns={**TWO, "r": TWO["p"]})


def test_labels_of_tokens_that_cannot_be_used():
    same = {"p": BITS["p"], "q": BITS["p"]}
    assert "no texts with one of the four pairs of answers for task 'p and q'" in tokens(labels=same).reason
    with pytest.raises(SaevalError, match=r"'tasks' matches 1 task .'p'.; 2 are needed"):
        tokens(tasks=("p",))


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
