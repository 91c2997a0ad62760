"""`KeptPasses`: calls on the same model and rows share what no SAE changes, and no number depends on it."""

from __future__ import annotations

import logging

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from saeval import KeptPasses, Mean, Metric, SaevalError, Scalar
from saeval.testing import TinyModel, TinyPairs, TinySAE, evaluate_tiny, tiny_tokens
from saeval.testing.claims import some

METRICS = ["l0", "reconstruction", "ce", {"ce": {"ablation": "zero", "as": "ce_zero"}}, "kl"]
ROWS = tiny_tokens()


def numbers(results):
    return {
        (r.metric, r.subject, name): (record.get("value"), record.get("stderr"))
        for r in results
        for name, record in r.values.items()
    }


def evaluated(model, seed=0, **options):
    options = {"metrics": METRICS, "rows": ROWS, "controls": ["identity", "mean"], "batch_size": 8, **options}
    return evaluate_tiny(options.pop("metrics"), *options.pop("classes", ()), model=model,
                         saes={"mine": TinySAE(seed=seed)}, **options)  # fmt: skip


@pytest.fixture(scope="module")
def calls():
    """Two SAEs, each evaluated with the passes of the first kept, and without."""
    model, kept = TinyModel(), KeptPasses()
    return [(evaluated(model, seed, kept=kept), evaluated(model, seed)) for seed in (0, 1)]


def test_numbers_are_those_of_a_call_without_it(calls):
    for with_kept, without in some(calls):
        assert numbers(with_kept) == numbers(without)
    assert numbers(calls[0][0]) != numbers(calls[1][0])


def test_a_later_call_runs_the_model_with_the_sae_spliced_in_alone(calls):
    batches = 3
    (first, _), (second, without) = calls
    assert second.forward_passes == batches
    assert second.forward_passes < first.forward_passes / 2
    assert without.forward_passes > 2 * second.forward_passes


def test_pairs_share_their_passes_too():
    model, kept, pairs = TinyModel(kind="reward"), KeptPasses(), TinyPairs()
    options = {"metrics": ["margin_recovered"], "rows": pairs, "controls": []}
    evaluated(model, 0, kept=kept, **options)
    second, fresh = evaluated(model, 1, kept=kept, **options), evaluated(model, 1, **options)
    assert numbers(second) == numbers(fresh)
    assert second.forward_passes < fresh.forward_passes / 2


def gpt2():
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(n_layer=2, n_head=2, n_embd=16, vocab_size=50, n_positions=32)).eval()


def test_a_model_that_was_trained_further_drops_what_was_kept(caplog):
    model, kept = gpt2(), KeptPasses()
    evaluated(model, kept=kept)
    before = evaluated(model, kept=kept)
    with torch.no_grad():
        model.transformer.h[0].mlp.c_fc.weight.mul_(1.5)
    with caplog.at_level(logging.WARNING, "saeval"):
        after = evaluated(model, kept=kept)
    assert "the model has changed since the last call" in caplog.text
    assert numbers(after) == numbers(evaluated(model))
    assert numbers(after) != numbers(before)


def test_other_rows_are_not_those_that_were_kept():
    model, kept, other = TinyModel(), KeptPasses(), tiny_tokens(seed=1)
    evaluated(model, kept=kept)
    assert numbers(evaluated(model, kept=kept, rows=other)) == numbers(evaluated(model, rows=other))


def test_what_does_not_fit_is_computed_again():
    model, kept = TinyModel(), KeptPasses(gib=0)
    evaluated(model, kept=kept)
    second = evaluated(model, 1, kept=kept)
    assert kept.size == 0
    assert second.forward_passes > 3
    assert numbers(second) == numbers(evaluated(model, 1))


class Writes(Metric):
    """A faulty metric, which writes into the activations that all share."""

    name = "writes"

    def observe(self, activations, mask):
        activations.mul_(2)
        return Mean.of(activations.mean(-1), mask)

    def conclude(self, total):
        return Scalar(total.value)


def test_a_metric_that_writes_into_them_changes_no_later_number():
    model, kept = TinyModel(), KeptPasses()
    first = evaluated(model, kept=kept, metrics=["writes", *METRICS], classes=[Writes])
    assert {r.status for r in first if r.metric == "writes"} == {"failed"}
    assert numbers(evaluated(model, 1, kept=kept)) == numbers(evaluated(model, 1))


def test_a_class_that_was_defined_again_is_another_metric():
    def defined(factor):
        class Sized(Metric):
            """A multiple of the mean activation."""

            name = "sized"

            def observe(self, activations, mask):
                return Mean.of(factor * activations.mean(-1), mask)

            def conclude(self, total):
                return Scalar(total.value)

        return Sized

    model, kept = TinyModel(), KeptPasses()
    ones, twos = (evaluated(model, kept=kept, metrics=[defined(factor)], controls=["mean"]) for factor in (1.0, 2.0))
    assert twos.value("sized", "mean")["value"] == pytest.approx(2 * ones.value("sized", "mean")["value"])


def test_results_of_earlier_saes_do_not_pile_up():
    model, kept = TinyModel(), KeptPasses()
    counts = []
    for seed in range(3):
        evaluated(model, seed, kept=kept)
        counts.append(len(list(kept.folder.glob("*/*.json"))))
    assert counts[0] == counts[1] == counts[2] > 0


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"key": "a"}, "evaluate: kept=KeptPasses() is for a loaded model and no key; it got a 'key'"),
        ({"model": "testbed"}, "it got a model that saeval loads"),
        ({"kept": True}, "evaluate: kept is a saeval.KeptPasses(), made once before the calls; got True"),
    ],
)
def test_a_wrong_use_is_one_sentence(options, sentence):
    with pytest.raises(SaevalError) as raised:
        evaluated(options.pop("model", TinyModel()), **{"kept": KeptPasses(), **options})
    assert sentence in str(raised.value)


def test_a_wrong_size_is_one_sentence():
    with pytest.raises(SaevalError, match="gib is a number of 0 or more"):
        KeptPasses(gib=-1)
