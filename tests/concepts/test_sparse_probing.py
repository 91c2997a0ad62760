"""Sparse probing of planted labels: known AUCs, no leak from the evaluated texts, no pass per task or SAE."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import binom
from sklearn.metrics import balanced_accuracy_score, f1_score, roc_auc_score

from planted import CONTEXT, MARK, OTHER, RARE, VOCABULARY, YES, OneHot, Reader, texts
from saeval import SaevalError
from saeval.plugin import Batch, PerRow, Stamp
from saeval.testing import evaluate_tiny
from saeval.testing.claims import every, some
from saeval.text.annotations import Annotations
from saeval.text.tokens import TokenDataset
from saeval_concepts import probes
from saeval_concepts.probes import Probes, auc, quality
from saeval_concepts.sparse_probing import SparseProbing
from saeval_concepts.tasks import Task
from saeval_concepts.texts import chosen_features, class_sums, cv_parts, of_tasks, pooled


def probed(marks, saes=None, model=None, columns=None, **options):
    """The values of SAEs on texts with these marks, of which the fit split are other ones."""
    metric = {"sparse_probing": {"k": (1, 2), "folds": 2, **options}}
    results = evaluate_tiny(
        [metric], model=model or OneHot(), saes=saes or [Reader()], rows=texts(marks, 1, columns=columns),
        fit=texts(marks, 2, columns=columns),
    )  # fmt: skip
    return [{name: record for name, record in result.values.items() if "value" in record} for result in results]


def numbers(values):
    return {name: record["value"] for name, record in values.items()}


@pytest.mark.parametrize(("pooling", "scale"), [("mean", "none"), ("max", "mean_active")])
def test_a_feature_that_is_the_label(pooling, scale):
    (values,) = probed(lambda row: [MARK] * (row % 2), pooling=pooling, scale=scale)
    found = numbers(values)
    assert found["auc@1"] == found["accuracy@1"] == found["f1@1"] == found["auc_tokens"] == 1
    assert found["auc_neurons@1"] == 1
    assert found["lead_neurons@1"] == 0
    assert found["auc_random@1"] < 0.9
    assert found["accuracy_majority"] == 0.5


def test_a_rare_class_is_found_too():
    """Every penalty orders these texts rightly; a strong one calls none of them positive."""
    (values,) = probed(lambda row: [MARK] * (row % 6 == 0), columns={"rare": lambda row: int(row % 6 == 0)})
    found = numbers(values)
    assert found["auc@1"] == found["f1@1"] == found["balanced_accuracy@1"] == 1
    assert found["accuracy_majority"] == pytest.approx(5 / 6)


def test_the_last_token_alone():
    def last(row):
        return [1] * (CONTEXT - 3) + [MARK] * (row % 2)

    (values,) = probed(last, pooling="last")
    assert numbers(values)["auc@1"] == 1
    (values,) = probed(lambda row: [MARK] * (row % 2), pooling="last")
    assert numbers(values)["auc@1"] < 0.8


def test_a_label_that_two_features_share():
    """Half of the positives have one mark, half the other: one feature separates half of them, and ties the rest."""
    (values,) = probed(lambda row: [[], [MARK], [], [OTHER]][row % 4], scale="none")
    found = numbers(values)
    assert found["auc@1"] == pytest.approx(0.75)
    assert found["accuracy@1"] == pytest.approx(0.75)
    assert found["auc@2"] == 1


def test_a_column_of_three_classes_is_three_questions():
    columns = {"kind": lambda row: "abc"[row % 3]}
    (values,) = probed(lambda row: [[MARK], [OTHER], [RARE]][row % 3], columns=columns)
    assert numbers(values)["auc@1"] == 1
    (one,) = probed(lambda row: [[MARK], [OTHER], [RARE]][row % 3], columns=columns, tasks=("kind=b",))
    assert one["auc@1"]["n"] == 120


def test_what_does_not_matter():
    """The order and scale of features, and the decoder."""
    order = np.random.default_rng(3).permutation(VOCABULARY)
    saes = [Reader(), Reader(order=order), Reader(scale=7.0), Reader(decoder_scale=5.0)]
    for number, sae in enumerate(saes):
        sae.name = f"sae-{number}"
    first, *others = map(numbers, probed(lambda row: [[], [MARK], [1], [OTHER]][row % 4], saes=saes))
    names = [name for name in first if "random" not in name]
    assert every(other[name] == pytest.approx(first[name], abs=1e-6) for other in others for name in names)


def test_no_task_and_no_sae_adds_a_pass():
    def passes(saes, columns, k):
        model = OneHot()
        for number, sae in enumerate(saes):
            sae.name = f"sae-{number}"
        probed(lambda row: [MARK] * (row % 2), saes, model, columns, k=k)
        return dict(model.passes)

    alone = passes([Reader()], YES, (1,))
    many = {f"task {i}": lambda row, i=i: (row // (i + 1)) % 2 for i in range(3)}
    assert passes([Reader(), Reader()], many, (1, 5)) == alone


def test_the_evaluated_texts_choose_nothing():
    """Neither features nor their scores follow from evaluated texts, nor from their labels."""
    fit = texts(lambda row: [MARK] * (row % 2), 2)
    evaluated = [
        texts(lambda row: [MARK] * (row % 2), 1),
        texts(lambda row: [OTHER] * (row % 2), 5),
        texts(lambda row: [MARK] * (row % 2), 1, columns={"marked": lambda row: int(row % 3 == 0)}),
    ]
    found = []
    for rows in evaluated:
        (result,) = evaluate_tiny(
            [{"sparse_probing": {"k": (1, 5), "folds": 2}}], model=OneHot(), saes=[Reader()], rows=rows, fit=fit
        )
        found.append(result.values)
    assert found[0]["latents"] == found[1]["latents"] == found[2]["latents"]
    assert [values["auc@1"]["value"] for values in found] == [1, 0.5, pytest.approx(0.5, abs=0.1)]


def test_texts_for_validation_are_not_fitted():
    marked = texts(lambda row: [MARK] * (row % 2), 2, validation=0.5)
    labels = {"marked": np.where(marked.annotations.validation, "0", marked.annotations.labels["marked"])}
    wrong = Annotations(labels, marked.annotations.validation, [], marked.annotations.covered, marked.annotations.bits)
    values = [
        numbers(
            {
                name: record
                for name, record in evaluate_tiny(
                    [{"sparse_probing": {"k": (1,), "folds": 2}}], model=OneHot(), saes=[Reader()],
                    rows=texts(lambda row: [MARK] * (row % 2), 1),
                    fit=TokenDataset(marked.tokens, marked.documents, marked.clusters, [0], annotations=annotations),
                )[0].values.items()
                if "value" in record
            }
        )
        for annotations in (marked.annotations, wrong)
    ]  # fmt: skip
    assert values[0] == values[1]


@pytest.mark.parametrize(
    ("given", "fault"),
    [
        ({"columns": {"marked": lambda row: "x"}}, "no column of labels has two classes, but 'marked' has 'x' alone"),
        ({"columns": {"marked": lambda row: ""}}, "the data have no labels; use a source with labels"),
    ],
)
def test_tasks_that_cannot_be_probed(given, fault):
    rows = texts(lambda row: [MARK], 1, columns=given.get("columns"))
    options = {name: value for name, value in given.items() if name != "columns"}
    results = evaluate_tiny(
        [{"sparse_probing": {"k": (1,), "folds": 2, **options}}], model=OneHot(), saes=[Reader()], rows=rows, fit=rows
    )
    assert results[0].status == "undefined"
    assert fault in results[0].reason


@pytest.mark.parametrize("metric", ["sparse_probing", "tpp", "scr", "absorption"])
def test_a_task_that_matches_nothing_is_refused_before_the_run(metric):
    rows = texts(lambda row: [MARK], 1)
    model = OneHot()
    fault = f"metric '{metric}': no task matches 'mark'; did you mean 'marked'"
    with pytest.raises(SaevalError, match=fault):
        evaluate_tiny([{metric: {"tasks": ("mark",)}}], model=model, saes=[Reader()], rows=rows, fit=rows)
    assert not sum(model.passes.values())


def test_values_are_declared():
    (values,) = probed(lambda row: [MARK] * (row % 2), refits=3)
    declared = SparseProbing(k=(1, 2), refits=3).value_names
    assert set(declared) == set(values)
    assert values["refit_deviation@1"]["value"] == 0


def simulated(seed, effect=0.0, n=160, d=40, k=(1, 4), tokens=1):
    """AUC estimates of rows whose first feature differs by `effect` between the classes, chosen on half of them.

    Rows are texts, or several tokens of each of n texts, which have the text's label and features like each other's.
    """
    draw = np.random.default_rng(seed)
    y = np.repeat((draw.random(n) < 0.5).astype(np.int8), tokens)
    own = np.repeat(draw.normal(size=(n, d)), tokens, axis=0) + (tokens > 1) * 0.5 * draw.normal(size=(n * tokens, d))
    z = torch.from_numpy(np.maximum(own, 0) + effect * y[:, None] * (np.arange(d) == 0))
    documents, half = np.repeat(np.arange(n // 2), tokens), n // 2 * tokens
    batch = Batch(*[torch.zeros(half, 1)] * 4, np.arange(half), documents)
    task = Task("t", "t", "1")
    labels = y[:half, None]
    (choice,) = chosen_features(class_sums(z[:half], labels, batch, 2, 0), (task,), k, "mean_active", 0)
    stamp, types = Stamp(np.arange(half), documents, n // 2), np.full(half, -1)
    fit, test = (PerRow.of(y=own, types=types).stamp(stamp) for own in (y[:half], y[half:]))
    judge = Probes.of("t", fit, y[:half], test, y[half:], folds=2, penalty="l2", seed=0)
    x, tests = z[:half].numpy(), z[half:].numpy()
    found = []
    for count in k:
        best = {None: choice.whole[:count], **{part: own[:count] for part, own in enumerate(choice.parts)}}
        judged, _ = judge.judged(lambda part, best=best: x[:, best[part]], tests[:, choice.whole[:count]])
        found.append(judged.auc)
    return found


def test_one_class_among_the_evaluated_texts():
    rows = texts(lambda row: [], 1, columns={"marked": lambda row: 1})
    options = {"model": OneHot(), "saes": [Reader()], "rows": rows, "fit": texts(lambda row: [MARK] * (row % 2), 2)}
    (result,) = evaluate_tiny([{"sparse_probing": {"k": (1,), "folds": 2}}], **options)
    assert result.status == "undefined"
    assert "the evaluated texts have one class only for task 'marked'" in result.reason


@pytest.mark.slow
@pytest.mark.parametrize("tokens", [1, 5])
def test_labels_unrelated_to_the_text_give_a_half(monkeypatch, tokens):
    """Intervals of 200 runs cover 0.5 as often as they say, though features are chosen among 40 for each.

    Also for several tokens of a text, of which each says almost what the others do.
    """
    monkeypatch.setattr(probes, "PENALTIES", np.logspace(-2, 0, 3))  # fewer, for speed
    runs = [simulated(seed, tokens=tokens) for seed in range(200)]
    for estimates in some(list(zip(*runs, strict=True))):
        covered = sum(low <= 0.5 <= high for low, high in (estimate.ci95 for estimate in estimates))
        assert 0.91 * 200 <= covered <= 0.98 * 200
        assert binom.sf(sum(estimate.value > 0.5 for estimate in estimates) - 1, 200, 0.5) > 0.001


def test_rows_hold_chosen_features_alone():
    """Of 131,072 features, each row keeps those of the probes and of the parts of the cross-validation."""
    n, d_sae, k, folds = 6, 131_072, 4, 2
    z = torch.rand(n, d_sae, generator=torch.Generator().manual_seed(0))
    labels, task = np.array([[0], [1]] * (n // 2), dtype=np.int8), (Task("t", "t", "1"),)
    batch = Batch(*[torch.zeros(n, 1)] * 4, np.arange(n), np.arange(n))
    choice = chosen_features(class_sums(z, labels, batch, folds, 0), task, (1, k), "mean_active", 0)
    tables = of_tasks(z, labels, choice, task, None)
    sizes = [np.asarray(column).size for part in tables["t"].parts for column in part.values()]
    assert sum(some(sizes)) <= n * (k * (2 + folds) + 4)


def test_a_weak_label_is_found():
    (one, four) = simulated(0, effect=3.0)
    assert one.value > 0.85
    assert one.ci95[0] > 0.7
    assert four.value > 0.8


@pytest.mark.parametrize("seed", range(5))
def test_qualities_are_those_of_scikit_learn_without_each_document(seed):
    draw = np.random.default_rng(seed)
    n, documents = 60, 12
    clusters, y = draw.integers(0, documents, n), draw.random(n) < 0.4
    scores = np.round(draw.normal(size=n) + y, 1)  # with ties
    found = quality(scores, y, clusters, documents)

    def theirs(rows):
        said = scores[rows] > 0
        return [
            roc_auc_score(y[rows], scores[rows]), np.mean(said == y[rows]),
            balanced_accuracy_score(y[rows], said), f1_score(y[rows], said),
        ]  # fmt: skip

    found = found[:4]
    assert [estimate.value for estimate in found] == pytest.approx(theirs(np.arange(n)))
    without = np.array([theirs(np.flatnonzero(clusters != document)) for document in np.unique(clusters)])
    ours = np.array([estimate.without[np.unique(clusters)] for estimate in found]).T
    assert ours == pytest.approx(without)
    assert auc(scores, y) == pytest.approx(found[0].value)


def test_pooling_of_rows_with_padding():
    x = torch.tensor([[[1.0], [5.0], [-9.0]], [[-2.0], [-4.0], [7.0]], [[3.0], [3.0], [3.0]]])
    included = torch.tensor([[True, True, False], [True, True, False], [False, False, False]])
    assert pooled(x, included, "mean").flatten().tolist() == [3.0, -3.0, 0.0]
    assert pooled(x, included, "max").flatten().tolist() == [5.0, -2.0, 0.0]
    assert pooled(x, included, "last").flatten().tolist() == [5.0, -4.0, 0.0]


def test_documents_stay_together_in_cross_validation():
    documents = np.repeat(np.arange(100), 3)
    parts = cv_parts(documents, 3, 0).reshape(100, 3)
    assert set(parts.flatten().tolist()) == {0, 1, 2}
    assert (parts == parts[:, :1]).all()
