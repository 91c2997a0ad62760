"""Probing of SAEBench and sae-probes: their own functions on the same activations and draws, and values by hand."""

from __future__ import annotations

import inspect
import json
import types
from itertools import pairwise

import numpy as np
import pytest
import torch

from peer_modules import TorchDraws, saebench_modules, saeprobes_modules
from saeval import SaevalError
from saeval.plugin import Stamp
from saeval.testing import TinyModel, TinySAE, evaluate_tiny, tiny_tokens
from saeval.testing.claims import every, some
from saeval.text.annotations import Annotations
from saeval.text.tokens import TokenDataset
from saeval_compat import saeprobes_regressions
from saeval_compat.saebench_probing import ByPlace, Classes, SAEBenchProbing, best_columns, coordinates
from saeval_compat.saeprobes import SAEProbes, TaskSums
from saeval_compat.saeprobes_regressions import best_regression, splits
from saeval_compat.sparse_rows import SparseRows
from saeval_concepts.texts import pooled

OLD = pytest.mark.filterwarnings("ignore:'penalty' was deprecated:FutureWarning")
"""Both packages call scikit-learn in an older way."""
D, LENGTH, NAMES = 30, 7, ("a", "b", "c")


@pytest.fixture(scope="module")
def bench():
    """SAEBench's modules of probes and of activations."""
    training, activations = saebench_modules(
        "sae_bench.evals.sparse_probing.probe_training", "sae_bench.sae_bench_utils.activation_collection"
    )
    # Checked by beartype alone, it takes the sizes of the function that calls it for its own.
    training.train_sklearn_probe = inspect.unwrap(training.train_sklearn_probe)
    return types.SimpleNamespace(training=training, activations=activations)


def texts(seed, count=40):
    """Features of texts of three classes by class, mostly zeros, float32."""
    draw = np.random.default_rng(seed)
    made = {}
    for number, name in enumerate(NAMES):
        z = np.maximum(draw.normal(size=(count, D)) - 0.5, 0)
        z[:, number] += draw.random(count)
        z[:, 10 + number] += 0.7 * draw.random(count)
        made[name] = torch.from_numpy(z).float()
    return made


def classes_of(fit, test):
    """The classes of texts that stand one class after another."""

    def rows(groups):
        edges = np.cumsum([0, *(len(group) for group in groups.values())])
        return [np.arange(low, high) for low, high in pairwise(edges)]

    return Classes("kind", NAMES, rows(fit), rows(test))


def whole(groups):
    return torch.cat(list(groups.values())).numpy()


@pytest.mark.slow
@OLD
@pytest.mark.parametrize("k", [1, 2, 5])
def test_probes_of_k_features_are_saebenchs(bench, k):
    fit, test = texts(1), texts(2)
    torch.manual_seed(k)
    _, expected = bench.training.train_probe_on_activations(fit, test, select_top_k=k)
    torch.manual_seed(k)
    asked = classes_of(fit, test).asked(TorchDraws())
    found = coordinates(asked, whole(fit), whole(test), k)
    assert found == pytest.approx(list(expected.values()), abs=1e-6)
    assert len(set(found)) > 1, "the numbers differ, so that equality says something"


@pytest.mark.slow
def test_probes_of_all_features_are_saebenchs(bench):
    """Also from rows that are stored without their zeros."""
    fit, test = texts(3), texts(4)
    torch.manual_seed(5)
    _, expected = bench.training.train_probe_on_activations(
        fit, test, select_top_k=None, use_sklearn=False, batch_size=250, epochs=100, lr=1e-2
    )
    classes = classes_of(fit, test)
    stored = []
    for groups in (fit, test):
        z = torch.from_numpy(whole(groups))
        rows = SparseRows.of(np.arange(len(z)), z).stamp(Stamp(np.arange(len(z)), np.arange(len(z)), len(z)))
        stored.append(ByPlace(rows, np.arange(len(z))))
    for numbers in some([(whole(fit), whole(test)), tuple(stored)]):
        torch.manual_seed(5)
        found = classes.dense(*numbers, TorchDraws())
        assert found == pytest.approx(list(expected.values()), abs=1e-6)
    assert len(set(expected.values())) > 1


@pytest.mark.slow
def test_means_over_tokens_are_saebenchs(bench):
    """Activations of BOS and padding are 0 there, and neither they nor their features count."""
    sae = TinySAE(seed=3)
    x = torch.randn(6, LENGTH, 16, generator=torch.Generator().manual_seed(0))
    included = torch.arange(LENGTH) < torch.tensor([3, 4, 5, 6, 7, 7])[:, None]
    included[:, 0] = False
    x = x * included[..., None]
    theirs = types.SimpleNamespace(dtype=torch.float32, encode=sae.encode)
    expected = bench.activations.get_sae_meaned_activations({"all": x}, theirs, 4)["all"]
    means = bench.activations.create_meaned_model_activations({"all": x})["all"]
    assert torch.allclose(pooled(sae.encode(x), included, "mean"), expected, atol=1e-6)
    assert torch.allclose(pooled(x, included, "mean"), means, atol=1e-6)


@pytest.mark.slow
@OLD
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning", "ignore:Inconsistent values")
@pytest.mark.parametrize(
    ("count", "options"),
    [
        (160, {}),
        (160, {"penalty": "l1"}),
        (60, {}),
        (6, {}),
        (3, {}),
        (160, {"binarize": True}),
        (24, {"setting": "scarcity", "num_train": 24}),
        (160, {"setting": "imbalance", "frac": 0.2}),
    ],
    ids=["one-fold", "l1", "six-folds", "pairs", "no-folds", "binarized", "scarcity", "imbalance"],
)
def test_saeprobes_own_numbers(count, options, tmp_path):
    """Its ranks, folds, choice of C and scores on the same activations, in the file that it writes."""
    (theirs,) = saeprobes_modules("sae_probes.run_sae_evals")
    draw = np.random.default_rng(count)
    setting = {name: options[name] for name in ("num_train", "frac") if name in options}
    each = round(1 / setting.get("frac", 0.5))
    y, answers = ((np.arange(n) % each == 1).astype(np.int64) for n in (count, 50))
    z, held = (np.maximum(draw.normal(size=(len(side), D)) - 0.3, 0).astype(np.float32) for side in (y, answers))
    for numbers, side in ((z, y), (held, answers)):
        numbers[:, 3] += 0.6 * side * (draw.random(len(side)) < 0.7)
        numbers[:, 4] *= 5
    tensors = [torch.from_numpy(part) for part in (z, held, y, answers)]
    theirs.generate_sae_activations = lambda **_: types.SimpleNamespace(
        X_train=tensors[0], X_test=tensors[1], y_train=tensors[2], y_test=tensors[3]
    )
    ks = [1, 4] if count > 100 else [1]
    penalty, binarize = options.get("penalty", "l2"), options.get("binarize", False)
    theirs.run_sae_eval(
        None, "data", "hook", penalty, options.get("setting", "normal"), "model", tmp_path, binarize=binarize, ks=ks,
        results_path=tmp_path, **setting,
    )  # fmt: skip
    (file,) = tmp_path.rglob("*.json")
    expected = json.loads(file.read_text())

    member = np.array([[y == 0, y == 1]], dtype=np.int64)
    scores = torch.from_numpy(TaskSums.of(z, member).scores.astype(np.float32))[0]
    order = torch.argsort(scores, descending=True).numpy()
    for k, printed in some(list(zip(ks, expected, strict=True))):
        assert printed["indices"] == order[:k].tolist()
        assert printed.items() >= setting.items()
        fit, test = (part[:, order[:k]] != 0 if binarize else part[:, order[:k]] for part in (z, held))
        found = best_regression(fit, y, test, answers, penalty, 42)._asdict()
        assert {name: printed[name] for name in found} == pytest.approx(found, abs=1e-6)


def test_folds_of_saeprobes():
    """All pairs of both classes; six folds; the last 20%, at most 100."""
    assert every(len(held) == 2 for _, held in splits(np.arange(12) % 2, 0))
    assert len(splits(np.arange(12) % 2, 0)) == 36
    assert len(splits(np.arange(60) % 2, 0)) == 6
    for n, size in ((128, 25), (600, 100)):
        ((fit, held),) = splits(np.arange(n) % 2, 0)
        assert (len(held), fit[-1], held[0]) == (size, n - size - 1, n - size)


def test_features_of_the_largest_difference():
    assert best_columns(np.array([0.1, -3.0, 2.0, 0.0]), 2).tolist() == [1, 2]
    z = np.array([[2.0, 0.0, 0.1], [0.0, 0.0, 0.0], [-4.0, 5.0, 0.0], [0.0, 5.0, 0.0]])
    sums = TaskSums.of(z, np.array([[[1, 1, 0, 0], [0, 0, 1, 1]]]))
    assert sums.scores[0] == pytest.approx([3 / 3, 5 / 5, 0.05 / 0.1], abs=1e-4)


def test_rows_without_zeros():
    z = torch.tensor([[0.0, 2.0, 0.0], [0.0, 0.0, 0.0], [1.0, 0.0, -3.0]])
    stamps = [Stamp(np.array(ids), np.array(ids), 9) for ids in ([5, 1, 7], [4, 2, 3], [8, 6, 0])]
    parts = [SparseRows.of(np.array([0, 2]), z[[0, 2]]).stamp(stamp) for stamp in stamps]
    total = parts[0] + parts[1] + parts[2]
    again = SparseRows.from_state(total.state())
    for rows in some([total, again]):
        assert rows[np.array([7, 5, 3, 8])].tolist() == z[[2, 0, 2, 0]].tolist()


def labelled(rows=72):
    """Rows of three classes in one column, and of two in another."""
    tokens = tiny_tokens(rows=rows)
    number = np.arange(len(tokens))
    labels = {"kind": np.array(["a", "b", "c"])[number % 3], "p": (number // 3 % 2).astype(str)}
    nothing = np.zeros(len(tokens), np.uint64)
    annotations = Annotations(labels, nothing.astype(bool), [], nothing, np.zeros(tokens.tokens.shape, np.uint64))
    return TokenDataset(tokens.tokens, tokens.documents, tokens.clusters, [0], annotations=annotations)


METRICS = [{"saebench_probing": {"k": (1, 3)}}, {"saeprobes": {"k": (1, 4)}}]


@pytest.fixture(autouse=True)
def few_penalties(monkeypatch, request):
    """Fewer values of C in runs of suites, for speed."""
    if "own_numbers" not in request.node.name:
        monkeypatch.setattr(saeprobes_regressions, "PENALTIES", np.array([1.0]))


def run(saes=1, metrics=METRICS):
    model = TinyModel()
    made = {f"sae-{seed}": TinySAE(seed=seed) for seed in range(saes)}
    return evaluate_tiny(metrics, rows=labelled(), fit=labelled(), model=model, saes=made), model


def test_both_in_a_suite():
    (probing, probes), model = run()
    assert set(SAEBenchProbing(k=(1, 3)).value_names) | {"classes"} == set(probing.values)
    assert set(SAEProbes(k=(1, 4)).value_names) | {"tasks", "indices"} == set(probes.values)
    assert every(0 <= probing.values[name]["value"] <= 1 for name in SAEBenchProbing(k=(1, 3)).value_names)
    table = probing.values["classes"]
    rows = [dict(zip(table["columns"], row, strict=True)) for row in table["rows"]]
    assert [(row["dataset"], row["class"]) for row in rows] == [("kind", n) for n in "abc"] + [("p", n) for n in "01"]
    sae = [row["sae_top_1_test_accuracy"] for row in rows]
    assert probing.values["sae_top_1_test_accuracy"]["value"] == pytest.approx(
        (np.mean(sae[:3]) + np.mean(sae[3:])) / 2
    )
    assert probes.array("indices").shape == (4, 4)
    assert model.passes["clean"] == model.passes["resumed"] == 0


def test_no_task_and_no_sae_adds_a_pass():
    metrics = [
        {"saebench_probing": {"k": (1,), "lower_vram_usage": True}},
        {"saeprobes": {"k": (1,), "train_size": 2}},
    ]
    alone = run(1, [{name: {**given, "tasks": ("p",)} for name, given in m.items()} for m in metrics])
    assert alone[1].passes == run(2, metrics)[1].passes


def test_all_features_are_kept_only_for_the_probe_of_all():
    saving = [{"saebench_probing": {"k": (1,), "lower_vram_usage": saving}} for saving in (True, False)]
    (without,), _ = run(metrics=saving[:1])
    (kept,), _ = run(metrics=saving[1:])
    assert "leaves it out with 'lower_vram_usage'" in without.values["sae_test_accuracy"]["reason"]
    names = [name for name in kept.values if name not in ("sae_test_accuracy", "classes")]
    assert every(without.values[name] == kept.values[name] for name in names)


def test_a_class_alone_cannot_be_probed():
    (result,), _ = run(metrics=[{"saebench_probing": {"tasks": ("kind=a",)}}])
    assert result.status == "undefined"
    assert "'tasks' matches 'kind=a' alone; name two classes of 'kind'" in result.reason


@pytest.mark.parametrize("metric", ["saebench_probing", "saeprobes", "saebench_tpp", "saebench_scr"])
def test_a_task_that_matches_nothing_is_refused(metric):
    with pytest.raises(SaevalError, match=f"metric '{metric}': no task matches 'kinds'"):
        run(metrics=[{metric: {"tasks": ("kinds",)}}])
