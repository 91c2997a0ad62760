"""The preflight: SAEs that were read wrongly are found out, trained ones are not accused."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

import saeval_testbed
from saeval import SaevalError, cli
from saeval.testing import TinyModel, TinySAE, evaluate, register_rows, tiny_plugins, tiny_tokens

SAES = saeval_testbed.WEIGHTS / "saes"
HOOK = "blocks.2.hook_resid_pre"


@pytest.fixture
def copied(tmp_path):
    """A testbed SAE with its tensors or its config changed; returns the folder."""

    def copy(name, tensors=None, **config):
        folder = tmp_path / name
        shutil.copytree(SAES / name, folder)
        if tensors:
            weights = {k: v.float() for k, v in load_file(folder / "sae_weights.safetensors").items()}
            save_file({k: v.contiguous() for k, v in tensors(weights).items()}, folder / "sae_weights.safetensors")
        if config:
            raw = json.loads((folder / "cfg.json").read_text())
            (folder / "cfg.json").write_text(json.dumps({**raw, **config}))
        return folder

    return copy


def wrong_hook(copied):
    return copied("relu-3"), "blocks.2.hook_resid_post"


def unfolded(copied):
    """As trained on inputs of mean norm √d: what is left out is the factor (40 / √128, about)."""

    def unfold(weights):
        return {
            **weights,
            "W_enc": weights["W_enc"] * 3.5,
            "W_dec": weights["W_dec"] / 3.5,
            "b_dec": weights["b_dec"] / 3.5,
        }

    return copied("relu-3", unfold), HOOK


def topk_as_relu(copied):
    return copied("topk-16", architecture="standard", k=None), HOOK


def another_model(copied):
    """The same SAE of a model with the same activations in another basis."""
    turn = torch.linalg.qr(torch.randn(128, 128, generator=torch.Generator().manual_seed(3)))[0]

    def turned(weights):
        return {
            **weights,
            "W_enc": turn @ weights["W_enc"],
            "W_dec": weights["W_dec"] @ turn.T,
            "b_dec": weights["b_dec"] @ turn.T,
        }

    return copied("topk-16", turned), HOOK


WRONG = {"hook": wrong_hook, "normalisation": unfolded, "activation": topk_as_relu, "model": another_model}


@pytest.mark.parametrize("check", WRONG)
def test_the_doctor_catches(check, copied, capsys):
    folder, hook_name = WRONG[check](copied)
    assert cli.main(["doctor", str(folder), "--model", "testbed", "--hook", hook_name]) == 1
    said = capsys.readouterr().out
    assert f"PROBLEM ({check})" in said
    assert said.count("PROBLEM") == 1
    if check == "hook":
        assert "blocks.2.hook_resid_pre" in said.split("PROBLEM")[1]
        assert "warning (hook): declares the hook 'blocks.2.hook_resid_pre'" in said


def test_the_doctor_accuses_no_trained_sae(capsys):
    assert cli.main(["doctor", "testbed/*"]) == 0
    said = capsys.readouterr().out
    assert "PROBLEM" not in said
    assert said.count("nothing wrong was found") == said.count("measured on") >= 11


@pytest.mark.parametrize("check", WRONG)
def test_a_run_stops_before_its_numbers_are_believed_unless_the_sae_is_allowed(check, copied, tmp_path, capsys):
    folder, hook_name = WRONG[check](copied)
    (tmp_path / "s.yaml").write_text(
        "suite: s\nmodel: testbed\ndata: {use: python-stdlib, context: 32, sequences: 8}\nsaes:\n"
        f"  - testbed/topk-8\n  - {{use: saelens, path: {folder}, hook_name: {hook_name}, name: mine}}\nmetrics: [l0]\n"
    )
    run = ["run", str(tmp_path / "s.yaml"), "--out", str(tmp_path / "out")]
    assert cli.main(run) == 2
    said = capsys.readouterr().err
    problem = next(line for line in said.splitlines() if "preflight" in line)
    assert problem.startswith(f"{tmp_path / 's.yaml'}:6:5: preflight: mine ")
    assert "--allow mine" in problem
    assert "Traceback" not in said
    assert not list((tmp_path / "out").rglob("[0-9a-f]*.json"))

    assert cli.main([*run, "--allow", "mine"]) == 0
    assert "- preflight: mine " in capsys.readouterr().out
    results = [json.loads(f.read_text()) for f in (tmp_path / "out" / "s").glob("[0-9a-f]*.json")]
    by_name = {r["cell"]["subjects"][0]["name"]: r for r in results}
    assert by_name["mine"]["provenance"]["preflight"]["mine"][0]["fatal"]
    assert "preflight" not in by_name["testbed/topk-8"]["provenance"]


class Off(TinySAE):
    """Far from everything it is shown."""

    def decode(self, feature_acts):
        return super().decode(feature_acts) + 100


def test_the_preflight_costs_no_forward_pass():
    model, data = TinyModel(), register_rows("preflight", tiny_tokens(rows=20))
    options = {"data": data, "metrics": ["l0", "ce"], "plugins": tiny_plugins(), "batch_size": 10}
    with pytest.raises(SaevalError, match=r"preflight: off .*trained on these activations"):
        evaluate(model=model, saes=[Off()], **options)
    assert model.passes == {"clean": 1, "cut": 2, "resumed": 2}
    evaluate(model=model, saes=[Off()], **options, allow=["of*"])
    assert model.passes == {"clean": 1 + 2, "cut": 2 + 2, "resumed": 2 + 2 * 2}


class Neighbourly(TinySAE):
    """Features that depend on the tokens beside them, as a batch-wise top-k does."""

    def encode(self, x):
        acts = super().encode(x)
        return acts * (acts >= acts.flatten(1).quantile(0.7, dim=1)[:, None, None])


def test_features_that_depend_on_other_tokens_are_found_out():
    data = register_rows("neighbourly", tiny_tokens())
    with pytest.raises(SaevalError, match="change with the tokens beside it"):
        evaluate(model=TinyModel(), saes=[Neighbourly()], data=data, metrics=["l0"], plugins=tiny_plugins())


@pytest.mark.parametrize(
    ("reference", "said"),
    [
        (["nope"], "is no suite, registered SAE or path"),
        (["testbed/relu-33"], "did you mean 'testbed/relu-3'"),
        ([str(SAES / "relu-1")], "which model?"),
        ([str(SAES)], "no format reads"),
        (["{use: saelens"], "is no suite, registered SAE or path|expected a name, or an entry"),
        (["testbed/relu-1", "--hook", HOOK], "has its hook already"),
        (["testbed/relu-1", "--model", "testbedd"], "did you mean 'testbed'"),
    ],
)
def test_a_wrong_command_is_one_sentence(reference, said, capsys):
    assert cli.main(["doctor", *reference]) == 2
    told = capsys.readouterr().err
    assert any(part in told for part in said.split("|")), told
    assert "Traceback" not in told
