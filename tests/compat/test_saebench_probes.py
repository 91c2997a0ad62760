"""SAEBench's TPP and SCR: its own functions on the same activations and draws, and values by hand."""

from __future__ import annotations

import types
from itertools import pairwise

import numpy as np
import pytest
import torch

from peer_modules import TorchDraws, saebench_modules
from saeval.plugin import Undefined
from saeval.testing import TinyModel, evaluate_tiny, tiny_tokens
from saeval.testing.claims import some
from saeval.text.annotations import Annotations
from saeval.text.tokens import TokenDataset
from saeval_compat.saebench_probes import KeyedDraws, Training
from saeval_compat.saebench_removals import changes, padded_acts, removals, silent_acts
from saeval_compat.saebench_scr import PROBES, SAEBenchSCR, SCRSetup, saebench_scr_removals, scr_values
from saeval_compat.saebench_tpp import SAEBenchTPP, class_rows, saebench_tpp_removals, tpp_setup, tpp_values
from saeval_concepts.tasks import Task
from saeval_concepts.texts import pooled
from saeval_concepts.written import GroupSums, written_acts
from saeval_formats.dense import DenseSAE, ReLU

D, WIDTH, LENGTH, EPOCHS = 6, 14, 9, 3
KEYS = ("professor / nurse", "male / female", "male_professor / female_nurse")
"""SAEBench's names of the probes, in our order."""
OTHERS = ("nurse_data_only", "female_data_only", "female_nurse_data_only")


@pytest.fixture(scope="module")
def theirs():
    """SAEBench's modules of this evaluation and of its probes."""
    main, training = saebench_modules(
        "sae_bench.evals.scr_and_tpp.main", "sae_bench.evals.sparse_probing.probe_training"
    )
    return types.SimpleNamespace(main=main, training=training)


class TheirSAE:
    """An SAE with the methods that SAEBench calls."""

    def __init__(self, sae):
        self.W_dec, self._sae = sae.W_dec, sae

    def encode(self, x):
        return self._sae.encode(x).feature_acts

    def decode(self, acts):
        return acts @ self._sae.W_dec + self._sae.b_dec


def dictionary():
    """An SAE whose features are active on zeros, so that padding counts."""
    draw = torch.Generator().manual_seed(0)
    W_enc, b_enc, W_dec, b_dec = (
        torch.randn(*shape, generator=draw) for shape in [(D, WIDTH), (WIDTH,), (WIDTH, D), (D,)]
    )
    return DenseSAE("h", W_enc, b_enc + 0.3, W_dec, b_dec, ReLU())


def activations(groups, seed):
    """Texts of each group with padding of zeros, of which each group has another mean: `[texts, length, d]` each."""
    draw = np.random.default_rng(seed)
    made = []
    for mean in groups:
        x = draw.normal(size=(24, LENGTH, D)) + np.asarray(mean)
        for text, length in zip(x, draw.integers(3, LENGTH + 1, len(x)), strict=True):
            text[length:] = 0
        made.append(torch.from_numpy(x).float())
    return made


def pooled_texts(sae, x):
    """Pooled activations, features, and features with the padding that SAEBench leaves in."""
    inside = x.abs().sum(-1) > 0
    acts = written_acts(sae, sae.encode(x), x, inside, np.zeros(x.shape[:2], np.uint64), sae.W_dec)
    z = pooled(acts, inside, "mean")
    return pooled(x, inside, "mean").numpy(), z, padded_acts(z, silent_acts(sae, sae.W_dec), inside, LENGTH)


def rows_of(groups):
    edges = np.cumsum([0, *(len(group) for group in groups)])
    return [np.arange(low, high) for low, high in pairwise(edges)]


MEANS = np.eye(3, D)[:, :D] * 1.2


@pytest.mark.slow
def test_tpp_is_saebenchs_own(theirs):
    """Probes, effects, removals and accuracies, with the same numbers drawn from the same seed."""
    sae, n = dictionary(), (2, 5, WIDTH)
    fit, test = activations(MEANS, 1), activations(MEANS, 2)
    names = ["a", "b", "c"]
    train_acts, test_acts = (dict(zip(names, part, strict=True)) for part in (fit, test))
    meaned = [
        {name: torch.from_numpy(pooled_texts(sae, x)[0]) for name, x in part.items()}
        for part in (train_acts, test_acts)
    ]
    torch.manual_seed(7)
    probes, _ = theirs.training.train_probe_on_activations(
        *meaned, use_sklearn=False, batch_size=16, epochs=EPOCHS, lr=1e-3, early_stopping_patience=20, l1_penalty=1e-3
    )
    torch.set_grad_enabled(False)
    clean = theirs.main.get_probe_test_accuracy(probes, names, meaned[1], 500, False)
    effects = theirs.main.get_all_node_effects_for_one_sae(TheirSAE(sae), probes, names, False, train_acts, 10)
    ablated = theirs.main.perform_feature_ablations(
        probes, TheirSAE(sae), 10, test_acts, effects, list(n), names, 500, False
    )
    torch.set_grad_enabled(True)
    expected, _ = theirs.main.create_tpp_plotting_dict(ablated, clean)

    x, z, _ = pooled_texts(sae, torch.cat(fit))
    held, _, padded = pooled_texts(sae, torch.cat(test))
    torch.manual_seed(7)
    setup = tpp_setup(x, held, rows_of(fit), rows_of(test), len(n), TorchDraws(), Training(EPOCHS))
    member = [
        np.isin(np.arange(len(x)), rows[side == answer]) for answer in (True, False) for rows, side in setup.effects
    ]
    chosen = saebench_tpp_removals(GroupSums.of(z, np.array(member)), setup, sae.W_dec, n)
    change = np.stack([changes(own, padded) for own in chosen], axis=1)
    found = tpp_values(setup, held, change, n)
    assert found.keys() == expected.keys()
    assert [found[name] for name in some(list(expected))] == pytest.approx(list(expected.values()), abs=1e-6)
    assert len(set(expected.values())) > 4, "the numbers differ, so that equality says something"


def scr_texts(seed):
    """Texts of the answers no-no, no-yes, yes-no, yes-yes, and those of each side of each probe."""
    parts = activations([[-1, -1, 0, 0, 0, 0], [-1, 1, 0, 0, 0, 0], [1, -1, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0]], seed)
    no_no, no_yes, yes_no, yes_yes = rows_of(parts)
    both = {
        "first": (np.concatenate([yes_yes, yes_no]), np.concatenate([no_yes, no_no])),
        "second": (np.concatenate([yes_yes, no_yes]), np.concatenate([yes_no, no_no])),
        "biased": (yes_yes, no_no),
    }
    return torch.cat(parts), both


@pytest.mark.slow
def test_scr_is_saebenchs_own(theirs):
    sae, n = dictionary(), (1, 3, 5)
    (x, fit), (held, test) = scr_texts(1), scr_texts(2)
    x_mean, z, _ = pooled_texts(sae, x)
    held_mean, _, padded = pooled_texts(sae, held)
    torch.manual_seed(3)
    trained, weights = {}, []
    for key, other, name in zip(KEYS, OTHERS, PROBES, strict=True):
        data = [
            {key: torch.from_numpy(means[sides[name][0]]), other: torch.from_numpy(means[sides[name][1]])}
            for means, sides in ((x_mean, fit), (held_mean, test))
        ]
        probe, _ = theirs.training.train_probe_gpu(
            *theirs.training.prepare_probe_data(data[0], key, True),
            *theirs.training.prepare_probe_data(data[1], key, True),
            dim=D, batch_size=16, epochs=EPOCHS, lr=1e-3, l1_penalty=1e-3,
        )  # fmt: skip
        trained[key] = probe
        weights.append((probe.net.weight.detach()[0].numpy(), float(probe.net.bias.detach())))
    cut = [
        {name: full[sides[own][side]] for own, pair in zip(PROBES, zip(KEYS, OTHERS, strict=True), strict=True)
         for side, name in enumerate(pair)}
        for full, sides in ((x, fit), (held, test))
    ]  # fmt: skip
    meaned = {name: torch.from_numpy(pooled_texts(sae, part)[0]) for name, part in cut[1].items()}
    torch.set_grad_enabled(False)
    clean = theirs.main.get_probe_test_accuracy(trained, list(KEYS), meaned, 500, True)
    effects = theirs.main.get_all_node_effects_for_one_sae(TheirSAE(sae), trained, list(KEYS), True, cut[0], 10)
    ablated = theirs.main.perform_feature_ablations(
        trained, TheirSAE(sae), 10, cut[1], effects, list(n), list(KEYS), 500, True
    )
    torch.set_grad_enabled(True)
    expected = theirs.main.get_scr_plotting_dict(ablated, clean)

    setup = SCRSetup(weights, fit, test)
    member = [np.isin(np.arange(len(x)), fit[name][side]) for side in (0, 1) for name in ("first", "second")]
    chosen = saebench_scr_removals(GroupSums.of(z, np.array(member)), setup, sae.W_dec, n)
    change = np.stack([changes(own, padded)[..., 0] for own in chosen], axis=1)
    found = scr_values(setup, held_mean, change, n)
    assert found.keys() == expected.keys()
    assert [found[name] for name in some(list(expected))] == pytest.approx(list(expected.values()), abs=1e-6)


@pytest.mark.slow
def test_a_probe_is_trained_as_saebenchs(theirs):
    draw = np.random.default_rng(0)
    x, held = (draw.normal(size=(count, D)).astype(np.float32) for count in (70, 40))
    y, answers = x[:, 0] + draw.normal(size=70) > 0, held[:, 0] > 0
    torch.manual_seed(1)
    probe, _ = theirs.training.train_probe_gpu(
        torch.from_numpy(x), torch.from_numpy(y.astype(np.int32)), torch.from_numpy(held),
        torch.from_numpy(answers.astype(np.int32)), dim=D, batch_size=16, epochs=6, lr=1e-3, l1_penalty=1e-3,
    )  # fmt: skip
    torch.manual_seed(1)
    w, c, _ = Training(6).probe(x, held, (np.arange(70), y), (np.arange(40), answers), TorchDraws())
    assert w == pytest.approx(probe.net.weight.detach()[0].numpy(), abs=1e-6)
    assert c == pytest.approx(float(probe.net.bias.detach()), abs=1e-6)


def test_the_largest_of_all_effects_are_removed():
    """Of four effects that are not 0, four features are taken: the two positive ones, then two of effect 0."""
    effects = np.array([0.0, -1.0, 2.0, 0.0, 1.0, -3.0])
    one, two, ten = removals(effects, (1, 2, 10), np.ones((6, 1)))
    assert [sorted(own.features.tolist()) for own in (one, two, ten)] == [[2], [2, 4], [0, 2, 3, 4]]


def test_padding_is_divided_by_the_tokens():
    inside = torch.tensor([[True, True, False, False]])
    acts = padded_acts(torch.tensor([[1.0, 2.0]]), torch.tensor([4.0, 0.0]), inside, 10)
    assert acts.tolist() == [[1 + 4 * 8 / 2, 2]]
    with pytest.raises(Undefined, match="a text has 2 tokens; 'context_length' is 1"):
        padded_acts(torch.zeros(1, 2), torch.zeros(2), inside, 1)


def test_classes_that_do_not_exclude_each_other():
    labels = np.array([[1, 1], [0, 1]], dtype=np.int8)
    tasks = [Task(name, name, "1") for name in "ab"]
    with pytest.raises(Undefined, match="a text is in two"):
        class_rows(labels, np.arange(2), tasks, 100, 0)


def test_draws_follow_from_the_seed():
    first, again, other = KeyedDraws(0), KeyedDraws(0), KeyedDraws(1)
    one, two = first.permutation(50), first.permutation(50)
    assert sorted(one) == list(range(50))
    assert (one != two).any()
    assert (again.permutation(50) == one).all()
    assert (other.permutation(50) != one).any()
    assert first.layer(9)[0].abs().max() <= 1 / 3


def labelled():
    """Rows of three classes in one column, and of two labels in two others."""
    rows = tiny_tokens(rows=72)
    number = np.arange(len(rows))
    labels = {"kind": np.array(["a", "b", "c"])[number % 3], "p": (number // 3 % 2).astype(str)}
    labels["q"] = (number // 6 % 2).astype(str)
    nothing = np.zeros(len(rows), np.uint64)
    bits = np.zeros(rows.tokens.shape, np.uint64)
    annotations = Annotations(labels, nothing.astype(bool), [], nothing, bits)
    return TokenDataset(rows.tokens, rows.documents, rows.clusters, [0], annotations=annotations)


def test_both_in_a_suite():
    metrics = [
        {"saebench_tpp": {"tasks": ("kind=*",), "n": (2, 500), "epochs": 2}},
        {"saebench_scr": {"tasks": ("p", "q"), "n": (2, 500), "epochs": 2}},
    ]
    model = TinyModel()
    results = evaluate_tiny(metrics, rows=labelled(), fit=labelled(), model=model)
    for result, metric in zip(results, (SAEBenchTPP, SAEBenchSCR), strict=True):
        assert set(result.values) == set(metric(n=(2, 500)).value_names)
    (tpp, scr) = (result.values for result in results)
    assert -1 <= tpp["tpp_threshold_2_total_metric"]["value"] <= 1
    assert "N is above the number of features" in tpp["tpp_threshold_500_total_metric"]["reason"]
    assert scr["scr_dir1_threshold_2"]["value"] is not None
    assert model.passes["resumed"] == model.passes["clean"] == 0
