"""`hooks:` of a suite: controls and metrics at hooks where no SAE stands."""

from __future__ import annotations

from dataclasses import replace

import pytest

from saeval import Mean, Metric, SaevalError, Scalar, evaluate
from saeval.base.run_options import RunOptions
from saeval.plan.plan import plan
from saeval.registry.discovery import Plugins
from saeval.registry.registry import Registry
from saeval.suite.schema import validate
from saeval.suite.yaml_marks import Marks
from saeval.testing import TinyModel, TinySAE, evaluate_tiny, tiny_tokens
from saeval.testing.claims import every, some
from saeval_models.hooked import HookedModel
from saeval_reports.tables import markdown

SITES = ["blocks.*.hook_resid_pre", "blocks.*.hook_attn_out", "blocks.*.hook_mlp_out"]
DATA = {"use": "python-stdlib", "context": 16, "sequences": 4}
TEXTS = {"texts": ["def one():\n    return 1\n" * 2, "import os\nprint(os.path)\n" * 2], "context": 8, "sequences": 2}
CURVE = {"perturbation_curve": {"cosines": [0.5], "norm_ratio": 1, "draws": 1}}


def by_hook(results, kind="hook", metric="perturbation_curve", name=None):
    """The values of the subjects of a kind, by hook."""
    subjects = [(r, r.cell["subjects"][0]) for r in results if r.metric == metric]
    return {s["hook_name"]: r.values for r, s in subjects if s["kind"] == kind and name in (None, s["name"])}


def test_every_layer_and_three_sites_share_one_clean_pass_a_batch(monkeypatch):
    clean, capture = [], HookedModel.capture

    def counted(self, batch, hooks, final, *rest, **options):
        clean.append(final)
        return capture(self, batch, hooks, final, *rest, **options)

    monkeypatch.setattr(HookedModel, "capture", counted)
    found = evaluate(
        model="testbed", hooks=SITES, controls=["identity"], data=TEXTS, metrics=[CURVE], batch_size=1, preflight="off"
    )
    at_hooks = by_hook(found)
    assert len(at_hooks) == 12
    assert clean == [True, True]  # 2 batches
    # Two points; the identity, and noise matched to it.
    assert found.forward_passes == 2 + 2 * 12 * (2 + 2)
    identity = by_hook(found, "control", name="identity")
    for hook_name, values in some(at_hooks.items()):
        assert values["kl"]["y"][0] > 0
        for quantity in ("kl", "delta_ce"):  # at c = 1 and r = 1: the identity, bit for bit
            assert values[quantity]["y"][1] == identity[hook_name][f"{quantity}_sae"]["value"] == 0
            assert values[quantity] == identity[hook_name][quantity]


def test_a_curve_equals_the_one_beside_an_sae_and_costs_nothing_there():
    alone, beside, sae_only = TinyModel(), TinyModel(), TinyModel()
    rows = tiny_tokens(rows=20)
    hooks = ["blocks.[12].hook_resid_pre"]
    without = evaluate_tiny([CURVE], model=alone, rows=rows, saes=[], hooks=hooks)
    both = evaluate_tiny([CURVE], model=beside, rows=rows, hooks=["blocks.1.hook_resid_pre"])
    evaluate_tiny([CURVE], model=sae_only, rows=rows)
    assert beside.passes == sae_only.passes
    here, near = by_hook(both)["blocks.1.hook_resid_pre"], by_hook(both, "sae")["blocks.1.hook_resid_pre"]
    for name in ("kl", "delta_ce", "kl_floor", "delta_ce_floor"):
        assert by_hook(without)["blocks.1.hook_resid_pre"][name] == here[name] == near[name]
    assert sorted(here) == ["delta_ce", "delta_ce_floor", "kl", "kl_floor"]
    (first,) = {r.key for r in without if r.cell["subjects"][0]["hook_name"].startswith("blocks.1")}
    assert first in {r.key for r in both}


class HookNorm(Metric):
    """Mean norm of the activations."""

    name, version = "hook_norm", 1

    def observe(self, activations, mask):
        return Mean.of(activations.norm(dim=-1), mask)

    def conclude(self, total, d_in, subject_name="nobody"):
        return {"norm": Scalar(total.value), "named": Scalar(float(len(subject_name))), "d_in": Scalar(float(d_in))}


class Loss(Metric):
    """Loss of the model: nothing about a hook."""

    name, version = "loss", 1

    def observe(self, clean_scores, mask):
        return Mean.of(clean_scores.nll, mask)

    def conclude(self, total):
        return Scalar(total.value)


def test_metrics_that_need_no_sae_run_at_hooks_and_the_others_do_not():
    found = evaluate_tiny(["hook_norm", "loss", "kl", "l0"], HookNorm, Loss, hooks=["blocks.0.*"], controls=["zero"])
    kinds = {(r.metric, r.cell["subjects"][0]["kind"], r.cell["subjects"][0]["hook_name"][7]) for r in found}
    assert {metric for metric, kind, _ in kinds if kind == "hook"} == {"hook_norm"}
    assert {layer for metric, kind, layer in kinds if kind == "control"} == {"0", "1"}
    (at_hook,) = by_hook(found, metric="hook_norm").values()
    assert at_hook["named"]["value"] == len("nobody")
    assert at_hook["d_in"]["value"] == 16
    assert by_hook(found, "sae", "hook_norm")["blocks.1.hook_resid_pre"]["named"]["value"] == len("tinysae")


def planned(**suite):
    body = {"suite": "s", "model": "testbed", "data": DATA, "metrics": ["ce"], "controls": ["mean"], **suite}
    return plan(validate(body, Marks("s")), Registry(Plugins()), RunOptions())


def test_a_control_has_one_key_whether_an_sae_stands_at_its_hook_or_not():
    beside = planned(saes=["testbed/relu-1"])
    (hook_name,) = {s.hook_name for s in beside.subjects}
    alone, both = planned(hooks=[hook_name]), planned(saes=["testbed/relu-1"], hooks=[hook_name])
    assert {c.key for c in alone.cells} < {c.key for c in beside.cells}
    assert [c.key for c in both.cells] == [c.key for c in beside.cells]


def test_patterns_are_placed_once_per_tensor_in_the_models_order():
    made = planned(hooks=["blocks.1.hook_resid_pre", "blocks.[01].hook_resid_p*", "blocks.0.hook_resid_post"])
    shown = [s.shown_hook for s in made.subjects if s.kind == "hook"]
    assert shown == ["blocks.0.hook_resid_pre", "blocks.0.hook_resid_post", "blocks.1.hook_resid_post"]
    assert len({s.hook_name for s in made.subjects}) == 3
    assert every(s.shown_hook in shown for s in made.subjects)


def test_a_second_run_reads_what_the_first_stored(tmp_path):
    options = {"saes": [], "hooks": ["blocks.*"], "controls": ["zero"], "out": tmp_path, "key": "k"}
    first = evaluate_tiny([CURVE], **options)
    again = evaluate_tiny([CURVE], **options)
    assert first.forward_passes > 0 == again.forward_passes
    assert [r.key for r in first] == [r.key for r in again]


def test_precision_of_an_saes_value_does_not_wait_for_hooks():
    rows = tiny_tokens(rows=400, documents=300)
    found = evaluate_tiny([CURVE], rows=rows, hooks=["blocks.1.*"], precision={"perturbation_curve.kl_sae": 10})
    assert every(r.sample["stopped_adaptively"] for r in found)


def test_data_without_a_model_have_no_hooks():
    with pytest.raises(SaevalError, match="'hooks' are those of a model; add 'model:'"):
        planned(model=None, hooks=["blocks.*"])


def test_a_pattern_that_is_no_text_is_refused():
    with pytest.raises(SaevalError, match="hooks is a list of names and patterns"):
        evaluate_tiny([CURVE], saes=[TinySAE()], hooks="blocks.*")


def test_a_table_shows_a_hook_only_if_a_column_has_its_value():
    found = evaluate_tiny(["kl", CURVE], hooks=["blocks.0.*"], saes=[], controls=["zero"])
    (board,) = found.boards()
    assert {row.kind for row in board.rows} == {"hook", "control"}
    assert "blocks.0.hook_resid_pre*" not in markdown([board])
    board.columns = [replace(c, headline=c.name == "perturbation_curve.kl_floor") for c in board.columns]
    assert "*blocks.0.hook_resid_pre*" in markdown([board])
