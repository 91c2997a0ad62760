"""Targeted perturbation of planted classes: known falls, a level of 0 without them, no pass per class or SAE."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from planted import MARK, OTHER, RARE, VOCABULARY, OneHot, Reader, texts
from saeval import SaevalError
from saeval.plugin import Metric, PerRow, Scalar, Stamp
from saeval.testing import TinyModel, TinySAE, evaluate_tiny
from saeval.testing.claims import every
from saeval_concepts import directions
from saeval_concepts.directions import Direction
from saeval_concepts.tasks import Task
from saeval_concepts.tpp import TPP, tpp_removals
from saeval_concepts.written import GroupSums, written_acts
from saeval_formats.dense import DenseSAE, ReLU

TWO = {"p": lambda row: row % 2, "q": lambda row: row // 2 % 2}


def two_marks(row):
    return [MARK if row % 2 else 1, OTHER if row // 2 % 2 else 2]


def perturbed(marks=two_marks, saes=None, model=None, columns=TWO, validation=0.4, seed=1, **options):
    """The results of SAEs on texts with these marks; the fit split has other texts."""
    return evaluate_tiny(
        [{"tpp": {"n": (1, 2), "penalty": "l1", **options}}], model=model or OneHot(), saes=saes or [Reader()],
        rows=texts(marks, seed, columns=columns), fit=texts(marks, 2, validation=validation, columns=columns),
    )  # fmt: skip


def numbers(result):
    return {name: record["value"] for name, record in result.values.items() if "value" in record}


def test_a_feature_that_is_the_class():
    """Its probe reads one direction, which the feature writes: it loses all of its margin, the other probe nothing."""
    (result,) = perturbed()
    found = numbers(result)
    names = ("total@1", "intended@1", "skyline", "removed@1", "removed@2", "total@2")
    assert [found[name] for name in names] == pytest.approx([1] * 6)
    assert found["unintended@1"] == pytest.approx(0)
    assert abs(found["shuffled@1"]) < 0.2
    assert found["lead_shuffled@1"] == pytest.approx(1 - found["shuffled@1"])
    # without its margin, a probe gives every text the same answer
    assert found["accuracy_intended@1"] == pytest.approx(0.5)
    assert found["accuracy_unintended@1"] == 0
    assert [row[:3] for row in result.values["latents"]["rows"]] == [["p", 1, MARK], ["q", 1, OTHER]]


class Half(Reader):
    """Each feature writes half of its token's direction."""

    def __init__(self) -> None:
        super().__init__()
        self.W_dec = self.W_dec / 2


class Both(Reader):
    """The feature of the first mark writes both marks."""

    def __init__(self) -> None:
        super().__init__()
        self.W_dec[MARK, OTHER] = 1


def test_a_feature_that_carries_part_of_the_margin_or_that_of_another_class():
    found = numbers(perturbed(saes=[Half()])[0])
    assert found["intended@1"] == found["total@1"] == pytest.approx(0.5)
    result = perturbed(saes=[Both()])[0]
    found = numbers(result)
    # removing MARK also takes `MARK there` from the second probe, whose margin that changes by chance alone
    assert found["intended@1"] == pytest.approx(1)
    assert abs(found["unintended@1"]) < 0.1


def test_a_dictionary_without_the_classes():
    """No feature is active more often in a class: nothing is removed, and nothing falls."""
    silent = Reader()
    silent.b_enc[[MARK, OTHER]] = -9.0
    found = numbers(perturbed(saes=[silent])[0])
    assert found["total@2"] == found["removed@2"] == 0


def test_what_does_not_matter():
    """The order of features, and their unit."""
    saes = [Reader(), Reader(order=np.random.default_rng(3).permutation(VOCABULARY)), Reader(scale=7.0)]
    for number, sae in enumerate(saes):
        sae.name = f"sae-{number}"
    marks = lambda row: [[MARK], [OTHER], [RARE]][row % 3]  # noqa: E731
    results = perturbed(marks, saes, columns={"kind": lambda row: "abc"[row % 3]}, penalty="l2")
    first, *others = map(numbers, results)
    names = [name for name in first if not any(word in name for word in ("shuffled", "random"))]
    assert every(other[name] == pytest.approx(first[name], abs=1e-6) for other in others for name in names)


def test_the_evaluated_texts_choose_nothing():
    one, other = (perturbed(seed=seed, penalty="l2")[0].values["latents"] for seed in (1, 5))
    assert one == other


def test_no_class_and_no_sae_adds_a_pass():
    def passes(names, columns, metrics):
        model, saes = OneHot(), [Reader() for _ in names]
        for name, sae in zip(names, saes, strict=True):
            sae.name = name
        rows = [texts(two_marks, seed, 0.4, columns) for seed in (1, 2)]
        evaluate_tiny(metrics, model=model, saes=saes, rows=rows[0], fit=rows[1])
        return dict(model.passes)

    alone = passes("a", TWO, [{"tpp": {"n": (1,)}}])
    more = {**TWO, "r": lambda row: row // 4 % 2}
    many = [{"tpp": {"n": (1, 5)}}, {"scr": {"tasks": ("p", "q"), "n": (1, 2)}}]
    assert passes("ab", more, many) == alone
    probing = {"sparse_probing": {"k": (1,), "folds": 2}}
    assert passes("a", TWO, [probing]) == passes("a", TWO, [probing, {"tpp": {"n": (1,)}}])


@pytest.mark.parametrize(
    ("given", "fault"),
    [
        ({"validation": 0.0}, "the texts for validation have no text of task 'p'"),
    ],
)
def test_data_that_cannot_be_used(given, fault):
    (result,) = perturbed(**given)
    assert result.status == "undefined"
    assert fault in result.reason


def test_one_class_is_refused_before_the_run():
    with pytest.raises(SaevalError, match=r"'tasks' matches 1 task .'p'.; 2 are needed"):
        perturbed(columns={"p": TWO["p"]})


def test_a_probe_that_does_not_know_its_class():
    """One cannot divide by a margin that may be 0; accuracies exist all the same."""
    columns = {**TWO, "r": lambda row: row * 7919 % 11 > 4}
    (result,) = perturbed(columns=columns, penalty="l2")
    assert "the margin of 'r' is below two standard errors" in result.values["total@1"]["reason"]
    assert result.values["accuracy_total@1"]["value"] is not None


def test_values_are_declared():
    (result,) = perturbed()
    scalars = {name for name, record in result.values.items() if "value" in record}
    assert set(TPP(n=(1, 2)).value_names) == scalars


class Longhand(Metric):
    """The largest difference between what leaves the logits and what removing the terms of each token takes from them."""

    name = "longhand"

    def __init__(self, pooling="mean", penalty="l2", tasks=("*",), n=(1, 3), draws=1, seed=0) -> None:
        self.pooling, self.penalty, self.tasks, self.n, self.draws, self.seed = pooling, penalty, tasks, n, draws, seed

    def observe(
        self, activations, feature_acts, included, W_dec, task_directions, tpp_removals, pooled_written_acts
    ):  # fmt: skip
        inside = included[..., None].double()
        length = inside.sum(1)
        differences = []
        for own in tpp_removals:
            changes = own.features.changes(pooled_written_acts, self.n)
            for place, count in enumerate(self.n):
                removed = torch.from_numpy(own.features.features[:count])
                after = activations.double() - feature_acts[..., removed].double() @ W_dec[removed].double()
                for number, probe in enumerate(task_directions):
                    before, now = ((x.double() * inside).sum(1) / length for x in (activations, after))
                    fall = probe.logits(before.numpy()) - probe.logits(now.numpy())
                    differences.append(np.abs(fall - changes[:, place, number]).max())
        return PerRow.of(difference=np.full(len(included), max(differences)))

    def conclude(self, total):
        return Scalar(float(total["difference"].max()))


def test_changes_are_those_of_removing_the_terms_of_each_token():
    rows, fit = (texts(two_marks, seed, 0.4, TWO) for seed in (1, 2))
    model, sae = TinyModel(vocab=VOCABULARY), TinySAE()
    (result,) = evaluate_tiny([{"longhand": {}}], Longhand, model=model, saes=[sae], rows=rows, fit=fit)
    assert result.values["longhand"]["value"] < 1e-6


@pytest.mark.parametrize("normalization", ["none", "layer_norm", "constant_norm_rescale"])
def test_what_features_write_with_normalised_inputs(normalization):
    draw = torch.Generator().manual_seed(0)
    weights = (torch.randn(*shape, generator=draw) for shape in [(8, 20), (20,), (20, 8), (8,)])
    W_enc, b_enc, W_dec, b_dec = weights
    sae = DenseSAE("h", W_enc, b_enc, W_dec, b_dec, ReLU(), normalization=normalization)
    x = torch.randn(2, 5, 8, generator=draw) * torch.arange(1, 6)[:, None]
    encoding, inside = sae.encode(x), torch.ones(2, 5, dtype=torch.bool)
    written = written_acts(sae, encoding, x, inside, np.zeros((2, 5), np.uint64), sae.weight("W_dec"))
    empty = sae.decode(encoding._replace(feature_acts=torch.zeros(2, 5, 20)), x)
    assert torch.allclose(written @ sae.weight("W_dec"), sae.decode(encoding, x) - empty, atol=1e-4)


class Squares(TinySAE):
    """Its reconstruction is no sum of features times rows."""

    def decode(self, feature_acts):
        return feature_acts.square() @ self.W_dec


def test_a_decoder_that_is_no_sum():
    rows = [texts(two_marks, seed, 0.4, TWO) for seed in (1, 2)]
    model, squares = TinyModel(vocab=VOCABULARY), Squares()
    (result,) = evaluate_tiny([{"tpp": {"n": (1,)}}], model=model, saes=[squares], rows=rows[0], fit=rows[1])
    assert result.status == "undefined"
    assert "is no sum of features times decoder rows" in result.reason


def simulated(seed, n=400, d=12, width=60):
    """The values of features that know nothing of two classes, which the activations carry."""
    draw = np.random.default_rng(seed)
    y = draw.integers(0, 2, (n, 2)).astype(np.int8)
    x = draw.normal(size=(n, d))
    x[:, :2] += 2.0 * y
    z = torch.from_numpy(np.maximum(draw.normal(size=(n, width)), 0))
    fit, validation, test = slice(0, n // 3), slice(n // 3, n // 2), slice(n // 2, n)
    tasks = (Task("p", "p", "1"), Task("q", "q", "1"))
    probes = tuple(Direction.fitted(*((x[part], y[part, c] == 1) for part in (fit, validation)), "l2") for c in (0, 1))
    sums = GroupSums.of(z[fit], np.concatenate([y[fit].T == 1, y[fit].T == 0]))
    metric = TPP(n=(1, 8), draws=1)
    decoder = torch.from_numpy(draw.normal(size=(width, d)))
    removals = tpp_removals(sums, probes, tasks, decoder, metric.n, 1, seed)
    rows = np.arange(n // 2)
    stamp = Stamp(rows, rows // 2, n // 4)
    total = metric.observe(z[test], y[test], removals).stamp(stamp)
    activations = PerRow.of(y=y[test], x=x[test]).stamp(stamp)
    return metric.conclude(total, removals, probes, tasks, activations)


def covered(runs):
    """The share of runs whose interval covers 0, for each value."""
    values = [simulated(seed) for seed in range(runs)]
    names = ("total@1", "total@8", "intended@8", "unintended@1")
    inside = {name: [low <= 0 <= high for low, high in (run[name].ci95 for run in values)] for name in names}
    return {name: float(np.mean(own)) for name, own in inside.items()}


@pytest.mark.slow
def test_features_unrelated_to_the_classes_take_nothing(monkeypatch):
    """Though they are the best of 60 on the fit split. Accuracies fall: they shift all logits of a probe alike."""
    monkeypatch.setattr(directions, "PENALTIES", np.array([0.01, 1.0]))  # fewer, for speed
    shares = covered(200)
    assert every(0.91 <= share <= 0.98 for share in shares.values()), shares
    assert simulated(0)["accuracy_intended@8"].value > 0.05


def test_few_of_these_runs(monkeypatch):
    monkeypatch.setattr(directions, "PENALTIES", np.array([0.1]))
    assert every(share > 0.7 for share in covered(12).values())


def test_control_and_ablation_without_features():
    rows = [texts(two_marks, seed, 0.4, TWO) for seed in (1, 2)]
    results = evaluate_tiny(
        [{"tpp": {"n": (1,)}}], model=OneHot(), saes=[Reader()], rows=rows[0], fit=rows[1],
        controls=["mean", "shuffled_decoder"],
    )  # fmt: skip
    states = {result.cell["subjects"][0]["name"]: result.status for result in results}
    assert states.pop("mean") == "undefined"
    assert len(states) > 1
    assert every(state == "ok" for state in states.values())
