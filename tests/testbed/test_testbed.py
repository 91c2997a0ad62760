"""The testbed: the whole road on a really trained model and really trained SAEs."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest
from torch.nn.modules.module import register_module_forward_hook

import saeval
import saeval_testbed
from saeval.base.run_options import RunOptions
from saeval.plan.plan import plan
from saeval.registry.discovery import Plugins
from saeval.registry.registry import Registry
from saeval.suite.schema import validate
from saeval.suite.yaml_marks import Marks
from saeval.testing import evaluate, register_rows, tiny_plugins
from saeval.testing.claims import numbers, some
from saeval.text.tokens import TokenDataset

DATA = {"use": "python-stdlib", "context": 64, "sequences": 48}
MODEL = {"use": "testbed"}


def value(results, name, subject):
    return results.value(name, subject)["value"]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    suite = {
        "suite": "truths",
        "model": MODEL,
        "data": DATA,
        "saes": ["testbed/relu-*", "testbed/topk-*"],
        "controls": ["identity", "zero", "mean", {"use": "random", "seeds": 2, "of": "testbed/relu-5"}],
        "metrics": ["l0", "density", "reconstruction", "ce", {"ce": {"ablation": "zero", "as": "ce_zero"}}, "kl"],
    }
    found = saeval.run(suite, out=tmp_path_factory.mktemp("out"))
    assert not found.failed, found.failed[0].traceback
    return found


def test_the_truths_hold_on_a_trained_model(results):
    assert value(results, "ce.recovered", "identity") == pytest.approx(1, abs=1e-5)
    assert value(results, "kl.kl_sae", "identity") == pytest.approx(0, abs=1e-6)
    assert value(results, "reconstruction.explained_variance", "identity") == 1
    assert value(results, "ce.recovered", "mean") == 0
    assert value(results, "ce_zero.recovered", "zero") == 0
    assert value(results, "kl.kl_score", "mean") == 0
    assert value(results, "reconstruction.explained_variance", "mean") == pytest.approx(0, abs=1e-6)


def rows_of(order=None, padding=0):
    """The suite's own rows as data that the model is not told the text of, in an order and padding of choice."""
    found = plan(
        validate({"suite": "s", "model": MODEL, "data": DATA, "saes": ["testbed/relu-5"], "metrics": ["l0"]}, Marks("s")),
        Registry(Plugins()), RunOptions(),
    ).streams  # fmt: skip
    rows = found.evaluation
    order = np.arange(24) if order is None else order
    rows = TokenDataset(rows.tokens[order], rows.documents[order], rows.clusters[order], rows.excluded)
    return rows.padded(padding), found.fit


@pytest.mark.slow
def test_batch_size_order_and_padding_change_no_mean_on_a_trained_model():
    shuffled = np.random.default_rng(0).permutation(24)
    runs = [
        ("batch size 32", rows_of(), 32),
        ("batch size 1", rows_of(), 1),
        ("batch size 7", rows_of(), 7),
        ("another order", rows_of(shuffled), 7),
        ("padding", rows_of(padding=9), 7),
    ]
    first = {}
    for label, (rows, fit), size in some(runs):
        found = evaluate(
            model="testbed", saes=["testbed/relu-5", "testbed/topk-16"], data=register_rows(label, rows, fit),
            metrics=["l0", "density", "reconstruction", "ce", {"ce": {"ablation": "zero", "as": "ce_zero"}}, "kl"],
            controls=["identity", "zero", "mean"], batch_size=size, plugins=tiny_plugins(),
        )  # fmt: skip
        assert not found.failed
        for result in some(found):
            for name, record in result.values.items():  # may be empty: they are counted
                if record.get("value") is None:
                    continue
                key = (result.metric, result.subject, name)
                assert record["value"] == pytest.approx(first.setdefault(key, record["value"]), rel=1e-6, abs=1e-6), (
                    f"{key} with {label}"
                )
    assert len(first) > 60


def test_the_ladder_trades_l0_for_loss(results):
    ladder = [f"testbed/relu-{i}" for i in range(1, 7)]
    l0 = [value(results, "l0.l0", name) for name in ladder]
    loss = [value(results, "ce.delta_ce", name) for name in ladder]
    assert l0 == sorted(l0, reverse=True)
    assert loss == sorted(loss)
    topk = [f"testbed/topk-{k}" for k in (8, 16, 32)]
    assert [value(results, "l0.l0", name) for name in topk] == pytest.approx([8, 16, 32], rel=0.02)
    loss = [value(results, "ce.delta_ce", name) for name in topk]
    assert loss == sorted(loss, reverse=True)


def test_training_beats_no_training(results):
    trained, untrained = "testbed/relu-5", "random(testbed/relu-5)"
    assert value(results, "l0.l0", trained) == pytest.approx(value(results, "l0.l0", untrained), rel=0.1)
    assert value(results, "ce.recovered", trained) > value(results, "ce.recovered", untrained) + 0.05


def test_seeds_differ_by_less_than_settings(results):
    seeds = [value(results, "ce.delta_ce", f"testbed/relu-5{s}") for s in ("", "-seed1", "-seed2")]
    neighbour = value(results, "ce.delta_ce", "testbed/relu-4")
    assert len(set(seeds)) == 3
    assert max(seeds) - min(seeds) < abs(seeds[0] - neighbour)


def test_the_model_beats_the_bigram_clearly():
    report = json.loads((saeval_testbed.WEIGHTS / "model" / "report.json").read_text())
    assert report["held_out_ce"] < report["bigram_ce"] - 1 < report["unigram_ce"]


def test_the_recorded_loss_is_the_one_measured_here(results):
    report = json.loads((saeval_testbed.WEIGHTS / "model" / "report.json").read_text())
    clean = value(results, "ce.ce_clean", "identity")
    # Shorter contexts see less, and another Python has other modules.
    assert clean == pytest.approx(report["held_out_ce"], abs=0.5)


@pytest.mark.parametrize("downstream", [[], ["downstream_reconstruction"]])
def test_the_real_model_runs_no_block_more_than_the_count_says(downstream):
    runs = Counter()

    def count(module, args, *_):
        # On the meta device, where hook widths are found, nothing is computed; looks at the model take one short row.
        if type(module).__name__ == "GPT2Block" and not next(module.parameters()).is_meta and len(args[0]) > 1:
            runs[module.attn.layer_idx] += 1

    handle = register_module_forward_hook(count)
    try:
        found = saeval.evaluate(
            model=MODEL,
            saes=["testbed/relu-5", "testbed/topk-8", "testbed/topk-16"],
            data={**DATA, "sequences": 12},
            metrics=[
                *["l0", "density", "reconstruction", "ce", {"ce": {"ablation": "zero", "as": "ce_zero"}}, "kl"],
                *downstream,
            ],
            controls=["identity", "zero", "mean"],
            batch_size=4,
        )
    finally:
        handle.remove()
    batches, substitutes = 3, 3 + 3
    assert found.forward_passes == batches * (1 + 1 + substitutes) + 2  # the proofs of the model and of the hook
    # Blocks 0 and 1 lie before the hook: a clean pass and, for the mean, a cut one. Blocks 2 and 3: clean and resumed,
    # and for the means of later streams the cut pass goes on to the end, as its first batch does for the preflight.
    # The proof that the model is causal is one pass more through all.
    after, before = batches * (1 + substitutes) + (batches if downstream else 1) + 2, 2 * batches + 1
    assert runs == {0: before, 1: before, 2: after, 3: after}


def test_both_adapters_agree():
    runs = [
        saeval.evaluate(
            model={**MODEL, "adapter": adapter},
            saes=["testbed/relu-5"],
            data={**DATA, "sequences": 8},
            metrics=["l0", "reconstruction", "ce", "kl"],
            controls=["mean"],
        )
        for adapter in ("huggingface", "transformer_lens")
    ]
    statuses = [[result.status for result in run] for run in runs]
    assert statuses[0] == statuses[1]
    for name, (record, its) in numbers(*runs):
        if not name.startswith("kl.kl_p"):
            assert its["value"] == pytest.approx(record["value"], abs=2e-4), name


def test_live_objects_give_what_their_files_give():
    from sae_lens import SAE
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = saeval_testbed.WEIGHTS / "model"
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="float32")
    sae = SAE.load_from_disk(str(saeval_testbed.WEIGHTS / "saes" / "relu-5"))
    data, metrics = {**DATA, "sequences": 8}, ["l0", "reconstruction", "ce"]
    live = saeval.evaluate(
        model=model, tokenizer=AutoTokenizer.from_pretrained(folder), saes=[sae], data=data, metrics=metrics
    )
    stored = saeval.evaluate(model=MODEL, saes=["testbed/relu-5"], data=data, metrics=metrics)
    for a, b in some(zip(live, stored, strict=True)):
        assert a.status == b.status == "ok", (a.reason, a.traceback)
    for _, (record, its) in numbers(stored, live):
        assert its["value"] == pytest.approx(record["value"], rel=1e-4, abs=1e-5)
