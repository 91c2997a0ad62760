"""sae-probes' settings: numbers of texts by class, and wrong labels, as its own functions give them."""

from __future__ import annotations

import numpy as np
import pytest

from peer_modules import saeprobes_data, saeprobes_modules
from saeval.plugin import PerRow, Stamp, Undefined
from saeval.testing.claims import some
from saeval_compat.saeprobes import SAEProbes, corrupted, saeprobes_texts, sizes
from saeval_compat.saeprobes_regressions import best_regression
from saeval_concepts.tasks import Task


def labels(no, yes, seed=0):
    return np.random.default_rng(seed).permutation(np.repeat([0, 1], [no, yes]))


def texts_of(fit, test, **given):
    """The texts of one task with these labels, of which each is a document."""
    rows = [
        PerRow.of(y=y[:, None].astype(np.int8)).stamp(Stamp(np.arange(len(y)), np.arange(len(y)), len(y)))
        for y in (fit, test)
    ]
    options = {"train_size": 1024, "seed": 42, "frac": None, "corrupt_frac": None, **given}
    (found,) = saeprobes_texts(*rows, (Task("t", "t", "1"),), **options)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("frac", [0.05, 0.2, 0.5, 0.85, 0.95])
def test_the_numbers_of_texts_are_saeprobes_own(frac):
    """Of both sides of a data set with these classes; the fit side of ours is as large as its."""
    theirs = saeprobes_data()
    y = labels(3000, 2000)
    theirs.get_yvals = lambda dataset: y
    count, held = theirs.get_classimabalance_num_train("data")
    train, test = theirs.get_train_test_indices(y, count, held, frac, 42)
    found = [sizes(10**6, 10**6, len(side), frac) for side in (train, test)]
    assert found == [tuple(np.bincount(y[side], minlength=2).tolist()) for side in (train, test)]
    # all texts together, to fit and to evaluate, of which one is left out
    assert sum(sizes(3000, 2000, None, frac)) == count + held + 1
    assert set(theirs.get_class_imbalance()) >= {0.05, 0.95}


@pytest.mark.slow
def test_the_numbers_of_few_texts_are_saeprobes_own():
    theirs = saeprobes_data()
    y = labels(700, 700)
    for count in some(theirs.get_training_sizes()):
        train, _ = theirs.get_train_test_indices(y, count, 100, 0.5, 42)
        assert sizes(700, 700, count, None) == tuple(np.bincount(y[train], minlength=2).tolist())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:'penalty' was deprecated:FutureWarning")
@pytest.mark.parametrize("frac", [0.0, 0.15, 0.5])
def test_wrong_labels_and_their_scores_are_saeprobes_own(frac):
    """Of activations, for which alone it has them: the same labels are wrong, and the same numbers follow."""
    data, (training,) = saeprobes_data(), saeprobes_modules("sae_probes.utils_training")
    draw = np.random.default_rng(1)
    y, answers = labels(40, 40), labels(30, 30, 1)
    x, held = (draw.normal(size=(len(own), 6)) + own[:, None] for own in (y, answers))
    theirs = data.corrupt_ytrain(y, frac, seed=42)
    ours = corrupted(y == 1, frac, 42)
    assert ours.tolist() == (theirs == 1).tolist()
    assert (ours != (y == 1)).sum() == int(80 * frac)
    expected = training.find_best_reg(x, theirs, held, answers, seed=42).metrics
    found = best_regression(x, ours.astype(np.int64), held, answers, "l2", 42)
    assert found._asdict() == pytest.approx(vars(expected), abs=1e-6)


def test_texts_of_each_setting():
    fit, test = labels(400, 300), labels(60, 100, 1)
    normal = texts_of(fit, test)
    assert [np.bincount(y).tolist() for _, y in normal] == [[300, 300], [60, 60]]
    scarce = texts_of(fit, test, train_size=5)
    assert [np.bincount(y).tolist() for _, y in scarce] == [[2, 3], [60, 60]]
    rare = texts_of(fit, test, frac=0.1)
    # 315 texts allow 95% of positives, and 63 evaluated ones 95% of negatives
    assert [np.bincount(y).tolist() for _, y in rare] == [[283, 32], [56, 7]]
    assert sum(map(len, (texts_of(fit, test, frac=0.95).fitted[1], rare.fitted[1]))) == 2 * 315
    for rows, y in some([*rare, *normal]):
        assert len(set(rows.tolist())) == len(rows) == len(y)
    noisy = texts_of(fit, test, corrupt_frac=0.25)
    assert noisy.fitted[0].tolist() == normal.fitted[0].tolist()
    assert (noisy.fitted[1] != normal.fitted[1]).sum() == 150
    assert [part.tolist() for part in noisy.tested] == [part.tolist() for part in normal.tested]


def test_too_few_texts_for_a_share():
    with pytest.raises(Undefined, match=r"the evaluated texts have too few texts of task 't' for a share of 0\.95"):
        texts_of(labels(40, 40), labels(8, 8), frac=0.95)


@pytest.mark.parametrize(
    ("given", "names"),
    [
        ({"frac": 0.2, "corrupt_frac": 0.1}, "'frac' and 'corrupt_frac'"),
        ({"frac": 0.2, "train_size": 64}, "'train_size' and 'frac'"),
        ({"binarize": True, "train_size": 64}, "'train_size' and 'binarize'"),
    ],
)
def test_settings_that_it_does_not_have(given, names):
    with pytest.raises(ValueError, match=f"sae-probes has no setting with both {names}; leave one out"):
        SAEProbes(**given)
