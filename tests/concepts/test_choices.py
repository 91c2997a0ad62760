"""Which rows, features and penalties are chosen, by hand: the steps of tpp, scr and absorption that whole runs blur."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from saeval.plugin import PerRow, Stamp
from saeval.testing.claims import every, some
from saeval_concepts.absorption import _falls_of
from saeval_concepts.absorption_effects import Falls, _ablated
from saeval_concepts.directions import Direction, balanced
from saeval_concepts.mains import Mains, WordProbe, main_candidates, main_features, word_probes
from saeval_concepts.probes import PENALTIES
from saeval_concepts.removals import Removal, Removals, removals_of
from saeval_concepts.scr import PairProbes, scr_removals
from saeval_concepts.tasks import Task
from saeval_concepts.tpp import TPP
from saeval_concepts.words import WordSums, word_sums
from saeval_concepts.written import GroupSums, written_by_class


def stamped(**columns):
    n = len(next(iter(columns.values())))
    return PerRow.of(**columns).stamp(Stamp(np.arange(n), np.arange(n), n))


def test_falls_of_three_classes():
    """Each removal takes its own share of each probe's margin, another at each N."""
    draw = np.random.default_rng(0)
    y = draw.integers(0, 2, (400, 3)).astype(np.int8)
    shares = np.array(
        [[[0.8, 0.1, 0.2], [0.9, 0.2, 0.3]], [[0.0, 0.4, 0.2], [0.1, 0.45, 0.3]], [[0.1, 0.1, 0.2], [0, 0, 1]]]
    )
    lost = shares[None] * y[:, None, None, :]  # [texts, removed class, N, probe]
    total = stamped(y=y, features=lost, shuffled=lost / 2, random=0 * lost)
    tasks = tuple(Task(name, name, "1") for name in "abc")
    probes = tuple(Direction(np.eye(3)[c], -0.5, 1.0) for c in range(3))
    removal = Removal(np.arange(2), np.zeros((2, 3)))
    removals = (Removals(removal, np.zeros(2), {}),) * 3
    found = TPP(n=(1, 2)).conclude(total, removals, probes, tasks, stamped(y=y, x=y.astype(float)))
    for place, count in enumerate((1, 2)):
        by_class = shares[:, place]
        own, others = np.diag(by_class).mean(), by_class[~np.eye(3, dtype=bool)].mean()
        assert found[f"intended@{count}"].value == pytest.approx(own)
        assert found[f"unintended@{count}"].value == pytest.approx(others)
        assert found[f"lead_shuffled@{count}"].value == pytest.approx((own - others) / 2)
        # a text of a class is lost where more than half of its margin of 1 is
        wrong = (by_class > 0.5) / 2
        expected = np.diag(wrong).mean(), wrong[~np.eye(3, dtype=bool)].mean()
        names = [f"accuracy_{part}@{count}" for part in ("intended", "unintended")]
        assert [found[name].value for name in names] == pytest.approx(expected, abs=0.01)


def test_random_features_write_as_much_as_those_in_whose_place_they_stand():
    sizes, norms = np.array([5.0, 1.0, 3.0, 2.0, 0.0]), np.array([1.0, 2.0, 0.5, 4.0, 1.0])
    sums = GroupSums(np.zeros((2, 5)), np.ones(2, np.int64), sizes)
    effects = np.array([0.0, 2.0, 1.0, 0.0, -1.0])
    found = removals_of(effects, 4, norms[:, None], norms, sums, 3, 0, "t")
    assert found.features.features.tolist() == [1, 2]
    assert found.scores.tolist() == [2, 1]
    for removal in some(found.controls["random"]):
        assert set(removal.features.tolist()) == {0, 3}  # alive, and none of those that are removed
        assert sizes[removal.features] * removal.weights[:, 0] == pytest.approx((sizes * norms)[[1, 2]])


def test_rows_outside_a_task_are_in_no_class():
    z = torch.tensor([[1.0], [2.0], [4.0], [8.0]])
    labels = np.array([[1, -1], [0, 1], [-1, 0], [-1, 0]], dtype=np.int8)
    sums = written_by_class(z, labels)
    assert sums.n.tolist() == [1, 1, 1, 2]
    assert sums.means.flatten().tolist() == [1, 2, 2, 6]


def test_scr_ranks_by_the_size_of_the_effect_on_the_other_labels_own_probe():
    """Feature 0 is more active with the second label and writes against it; feature 1 writes along the biased probe."""
    quadrant = np.array([[0.0, 0, 0], [1, 1, 0], [0, 0, 1], [1, 1, 1]])  # no-no, no-yes, yes-no, yes-yes
    sums = GroupSums(quadrant, np.ones(4, np.int64), np.ones(3))
    own = Direction(np.array([1.0, 0, 0]), 0, 1), Direction(np.array([0, 1.0, 0]), 0, 1)
    probes = PairProbes(Direction(np.array([0, 0, 1.0]), 0, 1), own)
    decoder = torch.tensor([[0.0, -3, 0], [0, 1, 9], [2, 0, 0]])
    tasks = (Task("p", "p", "1"), Task("q", "q", "1"))
    keeping_p, keeping_q = scr_removals(sums, probes, tasks, decoder, (3,), 1, 0)
    assert (keeping_p.features.features.tolist(), keeping_p.scores.tolist()) == ([0, 1], [3, 1])
    assert (keeping_q.features.features.tolist(), keeping_q.scores.tolist()) == ([2], [2])
    assert keeping_p.features.weights[:, 0].tolist() == [0, 9]


def test_the_texts_for_validation_choose_the_penalty():
    """More columns than texts: on the fitted texts themselves every penalty orders nearly all of them rightly."""
    draw = np.random.default_rng(1)

    def labelled(n):
        y = draw.random(n) < 0.5
        return draw.normal(size=(n, 40)) + np.outer(y, np.arange(40) == 0), y

    fit, validation = labelled(60), labelled(200)
    mean, deviation = fit[0].mean(0), fit[0].std(0)
    reached = []
    for C in PENALTIES:
        model = LogisticRegression(C=C, max_iter=1000)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model.fit((fit[0] - mean) / deviation, fit[1])
        scaled = [(x - mean) / deviation for x in (fit[0], validation[0])]
        reached.append(
            [roc_auc_score(y, model.decision_function(x)) for x, y in zip(scaled, (fit[1], validation[1]), strict=True)]
        )
    on_fit, on_validation = np.array(reached).T
    assert on_fit.argmax() != on_validation.argmax()
    assert PENALTIES[on_validation.argmax()] == Direction.fitted(fit, validation, "l2").C
    separable = np.where(fit[1], 1.0, -1.0)[:, None], fit[1]
    assert PENALTIES[0] == Direction.fitted(separable, separable, "l2").C


def test_as_many_texts_of_each_group():
    groups = np.array([0] * 5 + [1] * 3 + [-1] * 4 + [0], dtype=np.int8)
    rows = balanced(groups, 2, np.arange(13), 0, "t", "has")
    assert np.bincount(groups[rows]).tolist() == [3, 3]
    assert rows.tolist() == sorted(rows.tolist())
    assert set(range(5, 8)) < set(rows.tolist())


PROBE = WordProbe(np.ones(1), 0.0, 1.0)


def test_candidates_are_more_active_on_the_parent():
    sums = WordSums(np.array([[[1.0, 4, 0, 2], [2, 1, 3, 2]]]), np.ones((1, 2), np.int64))
    (found,) = main_candidates(sums, (PROBE,))
    assert found.tolist() == [2, 0]


def test_sums_of_words_leave_out_validation_texts():
    acts, labels = torch.tensor([[1.0], [2.0], [4.0]]), np.array([[1], [0], [1]], dtype=np.int8)
    found = word_sums(acts, labels, np.array([False, False, True]))
    assert found.sums.flatten().tolist() == [2, 1]
    assert found.n.flatten().tolist() == [1, 1]


def words(z, y, validation, score=None, top=None):
    n = len(y)
    score = np.ones(n) if score is None else score
    top = np.full((n, 3), -1) if top is None else top
    return {"t": stamped(y=y.astype(np.int8), validation=validation, z=z, top=top, score=score)}


def test_a_feature_that_adds_enough_is_a_main_feature_too():
    """Two features share the parent's words; a third adds nothing. Absorbers count where both are silent."""
    y = np.array([1] * 40 + [0] * 40) == 1
    kind = np.arange(80) % 4
    z = np.stack([y & (kind < 2), y & (kind == 2), y & (kind == 1)], axis=1).astype(float)
    validation = np.arange(80) % 8 < 4
    silent = y & (kind == 3)
    top = np.where(y[:, None], np.array([[0, 7, 8]]), -1)
    score = np.where(np.arange(80) < 12, -1.0, 1.0)
    rows, tasks = words(z, y, validation, score, top), (Task("t", "t", "1"),)
    (found,) = main_features(rows, (np.array([0, 5, 6]),), tasks, (PROBE,), 0.03)
    assert found.features.tolist() == [0, 5]
    # on words that the dense probe gets right, the first that is no main feature
    assert found.absorbers == {7: int((silent & (score > 0)).sum())}
    (alone,) = main_features(rows, (np.array([0, 5, 6]),), tasks, (PROBE,), 0.9)
    assert alone.features.tolist() == [0]


def test_validation_words_are_not_fitted():
    """What tells fitted words apart is reversed on the others: its F1 there is 0, for features and for activations."""
    y = np.arange(120) % 2 == 0
    validation = np.arange(120) >= 30
    x = np.where(y != validation, 1.0, 0.0)[:, None]
    (mains,) = main_features(words(x, y, validation), (np.array([0]),), (Task("t", "t", "1"),), (PROBE,), 0.03)
    assert mains.f1 == 0
    rows = stamped(x=x, y=y[:, None].astype(np.int8), validation=validation, answer=np.full(120, -1))
    (probe,) = word_probes(rows, (Task("t", "t", "1"),), 2, 0, 0.6)
    assert probe.f1 == 0
    assert probe.w[0] > 0
    assert probe.lacking == "its probe has an F1 of 0.00 on validation words, below 0.6"


def test_the_putative_absorber_of_a_word():
    acts = torch.zeros(9)
    acts[[2, 5, 7]] = 1.0
    absorbers = {5: 1, 7: 3, 8: 9}
    mains = Mains(np.array([0, 1]), 1.0, absorbers)
    absorber, *others = _ablated(acts, mains, 0, 5, 0)
    assert absorber == 7  # of those that fire here, the most frequent
    assert sorted(others) == [2, 5]
    acts[1] = 1.0  # one main feature is enough
    assert _ablated(acts, mains, 0, 5, 0) == []


def test_a_fall_exceeds_all_random_ones():
    random = np.array([[0.5, 2.0], [0.5, np.nan]])
    falls = Falls(np.array([3, 1]), np.array([0, 0]), np.array([9, 9]), np.array([1.0, 1.0]), random)
    found = _falls_of(falls, 0, np.array([1, 2, 3]))
    assert every(np.isnan(column[1]) for column in found.values())
    assert found["exceeds"][[0, 2]].tolist() == [1, 0]
    assert found["random"][[0, 2]].tolist() == [0.5, 1.25]
    assert found["chance"][[0, 2]].tolist() == [1 / 2, 1 / 3]
