"""Weights that are read with another normalisation than they were trained with are found out."""

from __future__ import annotations

import copy

import pytest
import torch
from safetensors.torch import load_file, save_file

import saeval
import saeval_testbed
from saeval import SaevalError, cli
from saeval.engine.examination import examine
from saeval.interfaces.live_objects import LiveSAE
from saeval.testing.claims import every, none
from saeval_formats.dense import DenseSAE, TopK
from saeval_formats.saelens import SAELens

SAES = saeval_testbed.WEIGHTS / "saes"
HOOK = "blocks.2.hook_resid_pre"


def dense(name):
    return SAELens().load({"path": str(SAES / name)}, "cpu", torch.float32)


def openai(folder, sae):
    """A TopK as openai/sparse_autoencoder saves one: its library reads every TopK with layer norm."""
    path = folder / "2.pt"
    state = {
        "pre_bias": sae.b_dec, "latent_bias": sae.b_enc, "encoder.weight": sae.W_enc.T.contiguous(),
        "decoder.weight": sae.W_dec.T.contiguous(), "activation": "TopK",
        "activation_state_dict": {"k": sae.activation.k, "postact_fn": "ReLU"},
    }  # fmt: skip
    torch.save(state, path)
    return path


def scaled(folder, factor, name="relu-3"):
    """As trained on inputs `factor` times as large, which is left out here."""
    weights = {k: v.float() for k, v in load_file(SAES / name / "sae_weights.safetensors").items()}
    new = {"W_enc": weights["W_enc"] / factor, "W_dec": weights["W_dec"] * factor, "b_dec": weights["b_dec"] * factor}
    save_file({**weights, **new}, folder / "sae_weights.safetensors")
    (folder / "cfg.json").write_bytes((SAES / name / "cfg.json").read_bytes())
    return folder


def doctor(path, capsys, code=1):
    assert cli.main(["doctor", str(path), "--model", "testbed", "--hook", HOOK]) == code
    return capsys.readouterr().out


def test_a_topk_that_was_trained_without_layer_norm_but_is_read_with_it(tmp_path, capsys):
    said = doctor(openai(tmp_path, dense("topk-16")), capsys)
    assert said.count("PROBLEM") == 1
    assert "PROBLEM (normalisation): explains 0.91" in said
    assert "of the variance without input normalisation" in said


@pytest.mark.parametrize("factor", [0.5, 0.67, 1.5, 2, 20])
def test_an_input_scale_that_is_not_folded_in_is_found_and_named(factor, tmp_path, capsys):
    # At a scale that is larger by so little, a strong penalty gains as much.
    word, code = ("warning", 0) if factor == 1.5 else ("PROBLEM", 1)
    said = doctor(scaled(tmp_path, factor), capsys, code)
    assert said.count("PROBLEM") == code
    problem = said.split(f"{word} (normalisation): ")[1]
    found = float(problem.split("inputs scaled by ")[1].split(",")[0].split()[0])
    assert found == pytest.approx(factor, rel=0.15)
    assert float(problem.split("explains ")[1].split()[0]) == pytest.approx(0.93, abs=0.02)


def test_a_run_stops_for_it(tmp_path):
    suite = {
        "suite": "s", "model": "testbed", "data": {"use": "python-stdlib", "context": 32, "sequences": 16},
        "saes": [{"use": "openai", "path": str(openai(tmp_path, dense("topk-16"))), "hook_name": HOOK, "name": "x"}],
        "metrics": ["l0"],
    }  # fmt: skip
    with pytest.raises(SaevalError, match=r"preflight: x: explains .* without input normalisation"):
        saeval.run(suite, out=tmp_path)


def test_other_readings_share_the_weights_and_leave_the_sae_alone():
    sae = dense("topk-16")
    before = copy.copy(sae.__dict__)
    readings = sae.other_readings()
    assert set(readings) == {
        "with layer norm of its input", "with each input scaled to norm √d_in", "with b_dec not taken from its input",
    }  # fmt: skip
    assert sae.__dict__ == before
    assert every(reading.W_enc is sae.W_enc for reading in readings.values())
    x = torch.randn(1, 5, 128)
    assert every(not torch.equal(r.decode(r.encode(x), x), sae.decode(sae.encode(x), x)) for r in readings.values())


def test_a_transcoder_is_read_otherwise_at_its_input_alone():
    one = DenseSAE("h", torch.eye(4), None, torch.eye(4), torch.zeros(4), TopK(2), transcoder=True)
    assert none("b_dec" in name for name in one.other_readings())


@pytest.mark.parametrize(
    "name", sorted(file.parent.name for file in saeval_testbed.WEIGHTS.glob("reward_saes/*/cfg.json"))
)
def test_the_saes_of_the_reward_model_are_not_accused(name, capsys):
    assert cli.main(["doctor", f"testbed-reward/{name}"]) == 0
    assert "no problems found" in capsys.readouterr().out


class Shrunken(torch.nn.Module):
    """An orthonormal dictionary whose features pay for being on, as an L1 penalty makes them: loaded as it was trained."""

    d_in = d_sae = 64

    def __init__(self, bias):
        super().__init__()
        half = torch.linalg.qr(torch.randn(32, 32, generator=torch.Generator().manual_seed(0)))[0]
        self.W_dec = torch.cat([half, -half])
        self.bias = bias

    def encode(self, x):
        return torch.relu(x @ self.W_dec.T - self.bias)

    def decode(self, acts):
        return acts @ self.W_dec


@pytest.mark.parametrize("bias", [0.15, 0.2, 0.4])
def test_the_shrinkage_of_a_penalty_is_not_taken_for_a_wrong_scale(bias):
    generator = torch.Generator().manual_seed(1)
    codes = torch.randn(1, 256, 32, generator=generator) * (torch.rand(1, 256, 32, generator=generator) < 0.1)
    x = codes @ Shrunken(0).W_dec[:32]
    sae = LiveSAE(Shrunken(bias), "blocks.1.hook_resid_pre")
    found = examine(sae, {}, x, x, torch.ones(1, 256, dtype=torch.bool))
    assert 0.6 < found.measured["explained_variance"] < 0.99
    assert [f.message for f in found.fatal] == []
