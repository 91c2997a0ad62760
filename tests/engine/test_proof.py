"""The preflight's proof: a model that resumes wrongly at a hook, or gives NaN, stops the run on its first batch."""

from __future__ import annotations

import logging
import re

import pytest
import torch

from saeval import SaevalError, cli
from saeval.base.errors import SuiteError
from saeval.testing import TinyModel, TinyPairs, TinySAE, evaluate_tiny, tiny_tokens
from saeval.testing.claims import every, some

HOOK = "blocks.1.hook_resid_pre"


class Rescaling(TinyModel):
    """Halves the stream between blocks, outside of them, as RWKV does: a resume halves it once more."""

    def resumed(self, batch, captured, hook_name, activations, hooks=()):
        return super().resumed(batch, captured, hook_name, activations / 2, hooks)


class Bypassed(TinyModel):
    """Its hook is not on the way to its output: new activations there change nothing."""

    def resumed(self, batch, captured, hook_name, activations, hooks=()):
        clean = self.capture(batch, [hook_name], False).activations[hook_name]
        return super().resumed(batch, captured, hook_name, clean, hooks)


class Careless(TinyModel):
    """Resumes at the wrong position of short rows alone, such as one that mistakes padding."""

    def resumed(self, batch, captured, hook_name, activations, hooks=()):
        short = (~batch.real).any(1)
        return super().resumed(
            batch, captured, hook_name, torch.where(short[:, None, None], activations.roll(1, 1), activations), hooks
        )


WRONG = {
    Rescaling: r"resuming with the model's own activations changes its final state by 0\.\d+ of its size",
    Bypassed: "noise added to the activations does not change the model's final state",
    Careless: "resuming with the model's own activations changes its final state by",
}


def written(folder):
    return [f for f in folder.rglob("*.json") if len(f.stem) == 24]


@pytest.mark.parametrize("kind", ["causal", "reward"])
@pytest.mark.parametrize("wrong", WRONG)
def test_a_resume_that_is_wrong_stops_the_run_before_anything_is_written(wrong, kind, tmp_path):
    metrics = ["kl", "l0"] if kind == "causal" else ["margin_recovered"]
    rows = tiny_tokens() if kind == "causal" else TinyPairs()
    if wrong is Careless and kind == "reward":
        rows = TinyPairs(pairs=12, length=12)
    with pytest.raises(SuiteError, match=f"preflight: {HOOK} of model 'tiny': {WRONG[wrong]}") as caught:
        evaluate_tiny(metrics, model=wrong(kind=kind), rows=rows, out=tmp_path)
    said = str(caught.value)
    assert len(said.splitlines()) == 1
    assert "skip_failing=True" in said
    assert "preflight='warn'" in said
    assert "--" not in said
    assert not written(tmp_path)


@pytest.mark.parametrize("size", [1, 2, 24])
@pytest.mark.parametrize(
    ("kind", "dtype"), [("causal", torch.float32), ("causal", torch.bfloat16), ("reward", torch.float64)]
)
def test_what_the_proof_found_stands_in_the_provenance(size, kind, dtype):
    model = TinyModel(kind=kind, dtype=dtype)
    rows = tiny_tokens() if kind == "causal" else TinyPairs(24)
    metrics = ["kl", "l0"] if kind == "causal" else ["margin_recovered", "reward_margin"]
    results = evaluate_tiny(metrics, model=model, rows=rows, controls=["identity"], batch_size=size)
    assert not results.failed
    resumed = [r for r in results if r.metric in ("kl", "margin_recovered")]
    assert len(resumed) == 2
    for result in some(resumed):
        ((hook, proof),) = result.provenance["resumes"].items()
        assert hook == HOOK
        assert proof["max_relative_error"] < (1e-2 if dtype == torch.bfloat16 else 1e-5)
        assert 0.1 < proof["change_by_noise"] < 10
        assert proof["dtype"] == str(dtype).removeprefix("torch.")
    assert every("resumes" not in r.provenance for r in results if r.metric in ("l0", "reward_margin"))


def test_each_hook_is_proved_by_one_resume_whatever_is_spliced_there():
    hooks = {f"sae{i}": TinySAE(f"blocks.{i % 2 + 1}.hook_resid_pre", seed=i) for i in range(4)}
    options = {"saes": hooks, "controls": ["identity", "zero"], "batch_size": 24}
    model, unproved = TinyModel(), TinyModel()
    results = evaluate_tiny(["kl", "ce"], model=model, **options)
    evaluate_tiny(["kl", "ce"], model=unproved, preflight="off", **options)
    assert not results.failed
    assert model.passes["resumed"] == unproved.passes["resumed"] + 2
    assert sum(model.passes.values()) == sum(unproved.passes.values()) + 3 == results.forward_passes
    assert {h for r in results for h in r.provenance["resumes"]} == {
        "blocks.1.hook_resid_pre",
        "blocks.2.hook_resid_pre",
    }


def test_a_run_without_a_resume_proves_nothing_and_is_cut():
    model = Rescaling()
    assert not evaluate_tiny(["l0"], model=model, batch_size=24).failed
    assert model.passes == {"clean": 0, "cut": 1, "resumed": 0}


def test_a_stored_run_is_not_proved_again_and_an_interrupted_one_is(tmp_path):
    class Stopped(TinyModel):
        stop = None

        def capture(self, *args, **options):
            if self.passes["clean"] == self.stop:
                raise KeyboardInterrupt
            return super().capture(*args, **options)

    options = {"batch_size": 4, "out": tmp_path, "key": "these"}
    model = Stopped()
    model.stop = 4
    with pytest.raises(KeyboardInterrupt):
        evaluate_tiny(["kl"], model=model, **options)
    with pytest.raises(SaevalError, match="changes its final state"):
        evaluate_tiny(["kl"], model=Rescaling(), **options)
    model = Stopped()
    results = evaluate_tiny(["kl"], model=model, **options)
    streamed = model.passes["clean"] - 1  # without the proof that the model is causal
    assert 0 < streamed < 6  # from the checkpoint on
    assert model.passes["resumed"] == 2 * streamed + 1  # the SAE, the ablation, and the proof
    assert results[0].provenance["resumes"][HOOK]["dtype"] == "float32"
    again = Stopped()
    stored = evaluate_tiny(["kl"], model=again, **options)
    assert sum(again.passes.values()) == 0
    assert stored[0].provenance["resumes"] == results[0].provenance["resumes"]


class WrongAtTwo(TinyModel):
    """Resumes wrongly at one of its hooks."""

    def resumed(self, batch, captured, hook_name, activations, hooks=()):
        return super().resumed(batch, captured, hook_name, activations / (2 if "2" in hook_name else 1), hooks)


def test_what_resumes_at_a_wrong_hook_is_left_out_or_warned_of(caplog):
    saes = {"one": TinySAE(HOOK), "two": TinySAE("blocks.2.hook_resid_pre")}
    options = {"model": WrongAtTwo(), "saes": saes, "controls": ["zero"], "batch_size": 24}
    results = evaluate_tiny(["kl", "l0"], skip_failing=True, **options)
    failed = {(r.metric, r.subject, r.cell["subjects"][0]["hook_name"][7]) for r in results.failed}
    assert failed == {("kl", "two", "2"), ("kl", "zero", "2")}
    for result in some(results.failed):
        assert result.reason.startswith(
            "preflight: blocks.2.hook_resid_pre of model 'tiny': resuming with the model's own"
        )
        assert result.traceback is None
        assert result.provenance["resumes"]["blocks.2.hook_resid_pre"]["max_relative_error"] > 0.01
    caplog.clear()
    with caplog.at_level(logging.WARNING, "saeval"):
        warned = evaluate_tiny(["kl"], preflight="warn", **options)
    assert not warned.failed
    assert "preflight: blocks.2.hook_resid_pre of model 'tiny': resuming" in caplog.text
    assert "blocks.1" not in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING, "saeval"):
        off = evaluate_tiny(["kl"], preflight="off", **options)
    assert not off.failed
    assert not caplog.text
    assert [r.values for r in off] == [r.values for r in warned]


def broken(part):
    model = TinyModel()
    if part == "final states":
        model.embed = torch.where(torch.arange(50)[:, None] == 3, torch.nan, model.embed)
    else:
        model.head_weight = model.head_weight * torch.nan
    return model


@pytest.mark.parametrize("part", ["final states", "logits"])
def test_a_model_that_gives_nan_is_one_sentence(part, caplog):
    with pytest.raises(SuiteError) as caught:
        evaluate_tiny(["ce", "kl"], model=broken(part))
    said = str(caught.value)
    assert said.startswith(f"preflight: the model 'tiny' gives NaN or infinite {part} for ")
    assert said.endswith("of the first batch; are its weights damaged?")
    assert len(said.splitlines()) == 1
    with caplog.at_level(logging.WARNING, "saeval"):
        results = evaluate_tiny(["ce"], model=broken(part), preflight="warn")
    assert f"gives NaN or infinite {part}" in caplog.text
    assert results[0].provenance["preflight"]["model"][0]["check"] == "finite"
    assert "atol" not in str(results[0].reason)


def test_nan_activations_are_the_models_fault_where_its_pass_is_cut():
    (result,) = evaluate_tiny(["l0"], model=broken("final states"), allow=())
    assert result.status == "undefined"
    assert re.fullmatch(r"NaN or infinite values in the activations at .* of [0-9]+ of [0-9]+ tokens", result.reason)
    (finding,) = result.provenance["preflight"]["tinysae"]
    assert re.search(r"the model's activations there are NaN or infinite for [0-9]+ of [0-9]+", finding["message"])
    assert not finding["fatal"]


def test_a_half_precision_model_that_gives_nan_is_to_be_tried_in_float32():
    model = TinyModel(dtype=torch.float16)
    model.embed = model.embed * 6e4
    with pytest.raises(SuiteError, match=r"final states .* its dtype is torch\.float16: try float32"):
        evaluate_tiny(["ce"], model=model)


def test_a_wrong_option_is_one_sentence():
    with pytest.raises(
        SaevalError, match="preflight must be 'stop', 'warn' or 'off', such as preflight='warn'; got 'stpo'"
    ):
        evaluate_tiny(["l0"], preflight="stpo")


def test_check_counts_the_passes_of_a_run(tmp_path, capsys):
    suite = tmp_path / "s.yaml"
    suite.write_text(
        "suite: s\nmodel: testbed\ndata: {use: python-stdlib, context: 16, sequences: 6}\nbatch: 2\n"
        "saes: [testbed/topk-8]\ncontrols: [identity]\nmetrics: [ce, kl, l0]\n"
    )
    assert cli.main(["check", str(suite), "--out", str(tmp_path)]) == 0
    planned = capsys.readouterr().out
    assert (
        "preflight: 1 pass on the first batch, to check that the model is causal, and 1 resumed pass, one per hook"
        in planned
    )
    assert cli.main(["run", str(suite), "--out", str(tmp_path)]) == 0
    # The pass for the mean, the clean pass, three substitutes (the mean ablation too), and the two proofs.
    passes = 3 + 3 + 3 * 3 + 2
    assert f"{passes} forward passes;" in capsys.readouterr().err
    assert f"forward passes in all: {passes}\n" in planned
