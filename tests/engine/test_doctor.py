"""The preflight: SAEs that were read wrongly are found out, trained ones are not accused."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

import saeval
import saeval_testbed
from saeval import SaevalError, cli
from saeval.base.run_options import RunOptions
from saeval.cli.doctor import Doctor
from saeval.engine.examination import examine
from saeval.engine.preflight import same_model
from saeval.interfaces.live_objects import LiveSAE
from saeval.plan.plan import plan
from saeval.registry.registry import Registry
from saeval.suite.schema import validate
from saeval.suite.yaml_marks import Marks
from saeval.testing import (
    TinyModel,
    TinyPairs,
    TinySAE,
    evaluate,
    evaluate_tiny,
    register_rows,
    tiny_plugins,
    tiny_tokens,
)  # fmt: skip

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
    assert said.splitlines()[0].startswith(f"{folder} is read as {{use: ")
    assert f"PROBLEM ({check})" in said
    assert said.count("PROBLEM") == 1
    if check == "hook":
        assert "blocks.2.hook_resid_pre" in said.split("PROBLEM")[1]
        assert "warning (hook): declares the hook 'blocks.2.hook_resid_pre'" in said


def test_the_doctor_accuses_no_trained_sae(capsys):
    assert cli.main(["doctor", "testbed/*"]) == 0
    said = capsys.readouterr().out
    assert "PROBLEM" not in said
    assert said.count("no problems found") == said.count("measured on") >= 11


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
    assert problem.startswith(f"{tmp_path / 's.yaml'}:6:5: preflight: mine: ")
    assert "--allow mine" in problem
    assert "Traceback" not in said
    assert not list((tmp_path / "out").rglob("[0-9a-f]*.json"))

    assert cli.main([*run, "--allow", "mine"]) == 0
    assert "- preflight: mine: " in capsys.readouterr().out
    results = [json.loads(f.read_text()) for f in (tmp_path / "out" / "s").glob("[0-9a-f]*.json")]
    by_name = {r["cell"]["subjects"][0]["name"]: r for r in results}
    assert by_name["mine"]["provenance"]["preflight"]["mine"][0]["fatal"]
    assert "preflight" not in by_name["testbed/topk-8"]["provenance"]


class Off(TinySAE):
    """Far from everything it is shown."""

    def decode(self, feature_acts):
        return super().decode(feature_acts) + 100


def test_the_preflight_costs_one_resume_a_hook():
    model, data = TinyModel(), register_rows("preflight", tiny_tokens(rows=20))
    options = {"data": data, "metrics": ["l0", "ce"], "plugins": tiny_plugins(), "batch_size": 10}
    with pytest.raises(SaevalError, match=r"preflight: off: .*trained on these activations"):
        evaluate(model=model, saes=[Off()], **options)
    assert model.passes == {"clean": 2, "cut": 0, "resumed": 1}  # before the pass for the mean
    evaluate(model=model, saes=[Off()], **options, allow=["of*"])
    assert model.passes == {"clean": 2 + 2 + 2, "cut": 2 - 1, "resumed": 1 + 1 + 2 * 2}


class Neighbourly(TinySAE):
    """Features that depend on the tokens beside them, as a batch-wise top-k does."""

    def encode(self, x):
        acts = super().encode(x)
        return acts * (acts >= acts.flatten(1).quantile(0.7, dim=1)[:, None, None])


def test_features_that_depend_on_other_tokens_are_found_out():
    data = register_rows("neighbourly", tiny_tokens())
    with pytest.raises(SaevalError, match="change with the tokens beside it"):
        evaluate(model=TinyModel(), saes=[Neighbourly()], data=data, metrics=["l0"], plugins=tiny_plugins())


class Shifting(TinySAE):
    """Features less those of the token before: it means to read earlier tokens, and takes whole rows only."""

    rows = 8

    def encode(self, x):
        if x.shape[1] != self.rows:
            raise RuntimeError(f"rows of {x.shape[1]} tokens")
        acts = super().encode(x)
        return (acts - 0.1 * acts.roll(1, dims=1)).relu()


def test_an_sae_that_reads_earlier_tokens_is_shown_whole_rows():
    data = register_rows("shifting", tiny_tokens())
    length = tiny_tokens().batch(range(1), "cpu").mask.shape[1]
    options = {"model": TinyModel(), "data": data, "metrics": ["l0"], "plugins": tiny_plugins()}
    sae = Shifting()
    sae.rows = length
    with pytest.raises(SaevalError, match=r"shifting: could not be examined: RuntimeError: rows of .* tokens"):
        evaluate(saes=[sae], **options)
    sae.reads_earlier = True
    sae.b_dec = sae.b_dec + 100  # judged all the same
    with pytest.raises(SaevalError, match=r"shifting: explains -.* of the variance"):
        evaluate(saes=[sae], **options)
    (result,) = evaluate(saes=[sae], **options, allow=["*"])
    assert result.status == "ok"
    assert {f["check"]: f["fatal"] for f in result.provenance["preflight"]["shifting"]} == {"l0": False, "model": True}


class Broken(TinySAE):
    def encode(self, x):
        raise RuntimeError("planted")


class Picky(Off):
    """Wrong as can be, and not to be shown a single token."""

    def encode(self, x):
        if x.shape[1] == 1:
            raise RuntimeError("planted")
        return super().encode(x)


def test_an_sae_that_could_not_be_examined_is_not_believed():
    with pytest.raises(
        SaevalError, match=r"preflight: picky: could not be examined: RuntimeError: planted .*allow=\['picky'\]"
    ):
        evaluate_tiny(["l0"], saes=[Picky()], allow=())
    (result,) = evaluate_tiny(["l0"], saes=[Picky()], allow=["picky"])
    assert result.status == "ok"
    assert "could not be examined" in result.provenance["preflight"]["picky"][0]["message"]


def test_an_sae_that_fails_by_itself_costs_its_own_cells_alone():
    plain = {"allowed": TinySAE(), "broken": Broken()}
    results = evaluate_tiny(["l0"], saes=plain, allow=["allowed"])
    assert [r.status for r in results] == ["ok", "failed"]
    assert results[1].reason == "RuntimeError: planted"
    (finding,) = results[1].provenance["preflight"]["broken"]
    assert not finding["fatal"]
    assert finding["message"] == "could not be examined: RuntimeError: planted"


class Basis:
    """relu(±W(x - mean)): all of x along the rows of W."""

    def __init__(self, W, mean):
        self.W_dec, self.b_dec = torch.cat([W, -W]), mean
        self.W_enc = self.W_dec.T

    def encode(self, x):
        return torch.relu((x - self.b_dec) @ self.W_enc)

    def decode(self, acts):
        return acts @ self.W_dec + self.b_dec


def cloud(rows=8, length=64, d=32):
    """Activations of very different variances along axes that are none of the basis."""
    generator = torch.Generator().manual_seed(0)
    turn = torch.linalg.qr(torch.randn(d, d, generator=generator))[0]
    return torch.randn(rows, length, d, generator=generator) * torch.linspace(3, 0.1, d) @ turn + 1


def look(sae, x, **declared):
    mask = torch.ones(x.shape[:2], dtype=torch.bool)
    return examine(LiveSAE(sae, "h"), declared, x, x, mask)


def axes(x):
    flat = x.flatten(0, 1)
    return torch.linalg.eigh(torch.cov(flat.T))[1].T, flat.mean(0)


def test_a_basis_that_loses_nothing_is_not_called_foreign():
    x = cloud()
    W, mean = axes(x)
    turned = torch.linalg.qr(torch.randn(32, 32, generator=torch.Generator().manual_seed(1)))[0]
    for basis in (W, turned, torch.eye(32)):
        one = look(Basis(basis, mean), x)
        assert one.measured["explained_variance"] > 0.999
        assert not one.findings
    half = look(Basis(turned[:16], mean), x)  # half of the variance, in a basis of its own
    assert [f.check for f in half.findings] == ["model"]


def test_a_few_massive_tokens_decide_nothing():
    x = cloud()
    W, mean = axes(x)
    sae = Basis(W[-16:], mean)
    plain = look(sae, x)
    massive = x.clone()
    massive[::2, 0] = 30 * x.norm(dim=-1).mean() * W[0]
    one = look(sae, massive)
    assert not plain.findings
    assert not one.findings
    assert one.measured["explained_variance"] == pytest.approx(plain.measured["explained_variance"], abs=0.02)
    assert one.tokens + one.outlying == plain.tokens == 256
    assert 0 < one.outlying <= 4
    assert "explained_variance_with_outlying" not in plain.measured
    with_them = one.measured["explained_variance_with_outlying"]
    assert abs(with_them - one.measured["explained_variance"]) > 0.1


def test_the_tokens_looked_at_are_spread_over_the_batch():
    x = cloud(rows=40)
    W, mean = axes(x)
    x[20:] += 8 * W[0]  # what the first rows do not hold
    one = look(Basis(W[1:], mean), x)
    flat = x.flatten(0, 1)
    rest = flat - mean
    left_out = (rest @ W[0]).square().sum() / (flat - flat.mean(0)).square().sum()
    assert one.measured["explained_variance"] == pytest.approx(float(1 - left_out), abs=0.05)


def test_an_sae_trained_end_to_end_need_not_reconstruct():
    x = cloud()
    W, mean = axes(x)
    wrong = Basis(W[:4], mean + 5)
    (fatal,), (told,) = look(wrong, x).findings, look(wrong, x, end_to_end=True).findings
    assert fatal.fatal
    assert not told.fatal
    assert told.message == f"{fatal.message}; it was trained end to end, and need not reconstruct"
    assert look(wrong, x, end_to_end=True, k=3).fatal  # sparsity is another matter


class Rounding(Basis):
    """Off by a rounding of its dtype where it is shown one token alone."""

    def __init__(self, W, mean, dtype):
        super().__init__(W.to(dtype), mean.to(dtype))

    def encode(self, x):
        acts = super().encode(x)
        return acts * (1 + torch.finfo(torch.bfloat16).eps / 2) if x.shape[1] == 1 else acts


def test_rounding_is_no_dependence_between_tokens():
    x = cloud()
    assert not look(Rounding(*axes(x), torch.bfloat16), x).findings
    assert [f.check for f in look(Rounding(*axes(x), torch.float32), x).findings] == ["independence"]


def test_a_batch_top_k_fires_k_features_in_the_mean_alone(tmp_path, capsys):
    """The testbed's BatchTopK SAE as dictionary_learning saves one; some of its tokens have more than k features."""
    w = {key: value.float() for key, value in load_file(SAES / "batchtopk" / "sae_weights.safetensors").items()}
    state = {
        "encoder.weight": w["W_enc"].T.contiguous(), "encoder.bias": w["b_enc"], "b_dec": w["b_dec"],
        "decoder.weight": w["W_dec"].T.contiguous(), "k": torch.tensor(16), "threshold": w["threshold"].mean(),
    }  # fmt: skip
    torch.save(state, tmp_path / "ae.pt")
    sizes = {"activation_dim": 128, "dict_size": 1024, "k": 16}
    (tmp_path / "config.json").write_text(json.dumps({"trainer": {"dict_class": "BatchTopKSAE", **sizes}}))
    assert cli.main(["doctor", str(tmp_path), "--model", "testbed", "--hook", HOOK]) == 0
    assert "architecture batchtopk, l0 16" in capsys.readouterr().out


def test_the_doctor_looks_at_one_side_of_pairs():
    registry = Registry(tiny_plugins())
    body = {"suite": "s", "data": register_rows("doctor/pairs", TinyPairs()), "saes": ["x"], "metrics": ["none"]}
    suite = validate(body, Marks("s"), {"mine": LiveSAE(Off(), name="mine")})
    suite.body.saes, suite.body.metrics, suite.live_model = [], [], TinyModel(kind="reward")
    text, well = Doctor(registry, RunOptions()).report(plan(suite, registry, RunOptions()))
    assert not well
    chosen = TinyPairs().batch(range(10), "cpu").sides[0]
    assert f"measured on {int(chosen.mask.sum())} tokens: " in text


def test_the_doctor_says_how_many_tokens_it_looked_at(capsys):
    assert cli.main(["doctor", "testbed/relu-3"]) == 0
    assert "measured on 256 tokens: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("declared", "name", "same"),
    [
        ("gpt2-small", "openai-community/gpt2", True),
        ("google/gemma-3-1b-pt", "gemma-3-1b", True),
        ("tiny-stories-1M", "roneneldan/TinyStories-1M", True),
        ("meta-llama/Meta-Llama-3-8B", "llama-3-8b", True),
        ("pythia-70m", "EleutherAI/pythia-70m-deduped", False),
        ("gpt2", "distilgpt2", False),
        ("gpt2", "gpt2-xl", False),
        ("gemma-2-2b", "google/gemma-2-2b-it", False),
    ],
)
def test_names_of_models_are_compared_word_by_word(declared, name, same):
    assert same_model(declared, name) is same
    assert same_model(name, declared) is same


def disagreeing(copied):
    folder = copied("relu-3", metadata={"hook_name": HOOK, "context_size": 16, "model_name": "distil-testbed"})
    return {
        "suite": "told", "model": "testbed", "data": {"use": "python-stdlib", "context": 32, "sequences": 4},
        "saes": ["testbed/topk-8", {"use": "saelens", "path": str(folder), "name": "mine"}], "metrics": ["l0"],
    }  # fmt: skip


def test_disagreements_are_kept_with_the_results(copied, tmp_path):
    suite = disagreeing(copied)
    results = saeval.run(suite, out=tmp_path)
    found = {r.subject: r.provenance.get("preflight") for r in results}
    assert found["testbed/topk-8"] is None
    assert [(f["check"], f["fatal"]) for f in found["mine"]["mine"]] == [("context", False), ("model", False)]
    board = results.leaderboard()
    assert "mine: was trained on contexts of 16 tokens, the suite's have 32" in board
    assert "mine: was trained on the model 'distil-testbed', the suite's is 'testbed'" in board


def test_disagreements_are_told_before_the_run(copied, tmp_path, capsys, monkeypatch):
    suite = disagreeing(copied)
    (tmp_path / "told.yaml").write_text(json.dumps(suite))

    def execute(*_, **__):
        assert "warning: mine was trained on contexts of 16 tokens" in capsys.readouterr().err
        raise SaevalError("stopped")

    monkeypatch.setattr("saeval.cli.verbs.execute_all", execute)
    assert cli.main(["run", str(tmp_path / "told.yaml"), "--out", str(tmp_path)]) == 2
    assert "stopped" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("reference", "said"),
    [
        (["nope"], "is no suite, registered SAE or path"),
        (["testbed/relu-33"], "did you mean 'testbed/relu-3'"),
        ([str(SAES / "relu-1")], "doctor: no model; give --model NAME"),
        ([str(SAES)], "doctor: no model; give --model NAME"),  # a folder of SAEs means all of them
        ([__file__], "no format reads"),
        (["{use: saelens"], "is no suite, registered SAE or path|expected a name, or an entry"),
        (["testbed/relu-1", "--hook", HOOK], "has a hook already"),
        (["quickstart", "--model", "testbed"], "doctor: --model: the suite 'quickstart' sets it already"),
        (["quickstart", "--data", "python-stdlib"], "doctor: --data: the suite"),
        (["quickstart", "--hook", HOOK], "doctor: --hook: the suite"),
        (["x" * 5000], "cannot be accessed"),
        (["testbed/relu-1", "--model", "testbedd"], "did you mean 'testbed'"),
    ],
)
def test_a_wrong_command_is_one_sentence(reference, said, capsys):
    assert cli.main(["doctor", *reference]) == 2
    told = capsys.readouterr().err
    assert any(part in told for part in said.split("|")), told
    assert "Traceback" not in told
