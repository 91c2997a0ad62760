"""The dictionary_learning loader against that library's classes, their formulas written out here."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from checkpoints import D, K, N, activations, assert_same, assert_same_in_a_suite, suite
from dictionary_learning_files import FLOATS, config_of, formula_of, saved, state_of
from saeval.base.errors import SaevalError
from saeval.testing.claims import some
from saeval_formats.dictionary_learning import DictionaryLearning


def info(path: Path, **reference):
    return DictionaryLearning().info({"path": str(path), **reference})


@pytest.mark.parametrize("name", FLOATS)
def test_equals_the_library(tmp_path, name):
    folder = saved(tmp_path / "trainer_0", name)
    assert_same(DictionaryLearning(), {"path": str(folder)}, formula_of(name, state_of(name)))


@pytest.mark.parametrize("name", FLOATS)
def test_in_a_suite(tmp_path, name):
    entry = {"use": "dictionary_learning", "path": str(saved(tmp_path / "trainer_0", name))}
    assert_same_in_a_suite(tmp_path, entry, formula_of(name, state_of(name)), "transformer.h.1")


@pytest.mark.parametrize("name", FLOATS)
def test_a_file_alone_needs_its_class(tmp_path, name):
    torch.save(state_of(name), tmp_path / "sae.pt")
    with pytest.raises(SaevalError, match=rf"add 'class:', one of AutoEncoder, .*; its tensors are those of .*{name}"):
        info(tmp_path / "sae.pt")
    reference = {"path": str(tmp_path / "sae.pt"), "class": name}
    assert_same(DictionaryLearning(), reference, formula_of(name, state_of(name)))
    assert DictionaryLearning().info(reference).hook_name is None


def test_the_classes_of_one_layout_differ(tmp_path):
    """The same file as AutoEncoderTopK and as BatchTopKSAE is two SAEs."""
    one, two = (saved(tmp_path / name, name) for name in ("AutoEncoderTopK", "BatchTopKSAE"))
    acts = [DictionaryLearning().load({"path": str(p)}).encode(activations()).feature_acts for p in (one, two)]
    assert ((acts[0] > 0) != (acts[1] > 0)).any()
    assert info(one).sha256 != info(two).sha256
    assert [info(p).architecture for p in (one, two)] == ["topk", "batchtopk"]


def test_the_reference_overrules_the_class_of_the_config(tmp_path):
    """Trainers write their usual class, whichever dict_class they were given."""
    folder = saved(tmp_path, "AutoEncoder", state_of("AutoEncoderNew"))
    with pytest.raises(SaevalError, match=r"'bias' is missing.*check 'dict_class' of"):
        info(folder)
    reference = {"path": str(folder), "class": "AutoEncoderNew"}
    assert_same(DictionaryLearning(), reference, formula_of("AutoEncoderNew", state_of("AutoEncoderNew")))


def test_checkpoints_of_a_run(tmp_path):
    """`checkpoints/ae_<step>.pt` are described by the trainer's config."""
    folder = saved(tmp_path / "trainer_0", "BatchTopKSAE")
    (folder / "checkpoints").mkdir()
    for step in (900, 10000):
        torch.save(state_of("BatchTopKSAE", seed=step), folder / "checkpoints" / f"ae_{step}.pt")
    found = DictionaryLearning().expand({"path": f"{folder}/checkpoints/ae_*.pt"})
    assert list(found) == ["900", "10000"]
    for step, reference in some(found.items()):
        state = state_of("BatchTopKSAE", seed=int(step))
        assert_same(DictionaryLearning(), reference, formula_of("BatchTopKSAE", state))
        assert DictionaryLearning().info(reference).hook_name == "blocks.1.hook_resid_post"


def test_facts(tmp_path):
    found = info(saved(tmp_path, "BatchTopKSAE"))
    assert (found.hook_name, found.d_in, found.d_out, found.d_sae) == ("blocks.1.hook_resid_post", D, D, N)
    expected = {"model_name": "tiny/model", "context_size": 16, "l0": K, "layer": 1, "dict_class": "BatchTopKSAE"}
    assert expected.items() <= found.facts.items()
    assert "k" not in found.facts  # of a token: a batch's top k is that in the mean alone
    assert info(saved(tmp_path / "topk", "AutoEncoderTopK")).facts["k"] == K


@pytest.mark.parametrize(
    ("changes", "hook"),
    [
        ({}, "blocks.1.hook_resid_post"),
        ({"submodule_name": "resid_out_layer1"}, "blocks.1.hook_resid_post"),
        ({"submodule_name": "attn_out_layer_1"}, "blocks.1.hook_attn_out"),
        ({"submodule_name": "mlp_out_layer_1"}, "blocks.1.hook_mlp_out"),
        ({"submodule_name": "mlp_out_layer_1", "lm_name": "google/gemma-2-2b"}, None),  # its hook is after a norm
        ({"submodule_name": "resid_post_layer_1", "lm_name": "google/gemma-2-2b"}, "blocks.1.hook_resid_post"),
        ({"submodule_name": "mlp_layer_1"}, None),
        ({"submodule_name": "resid_post_layer_2"}, None),  # not the layer that the config says
        ({"submodule_name": None}, None),
    ],
)
def test_hooks(tmp_path, changes, hook):
    folder = saved(tmp_path, "AutoEncoder", **changes)
    assert info(folder).hook_name == hook
    assert info(folder, hook_name="mine").hook_name == "mine"


def test_inputs_of_a_module_are_no_known_hook(tmp_path):
    config = config_of("AutoEncoder")
    config["buffer"]["io"] = "in"
    assert info(saved(tmp_path, "AutoEncoder", config=config)).hook_name is None


def test_a_suite_asks_for_a_hook_that_nobody_told(tmp_path):
    folder = saved(tmp_path / "sae", "AutoEncoder", submodule_name=None)
    with pytest.raises(SaevalError, match="the checkpoint does not say its hook; add 'hook_name"):
        suite(tmp_path, [{"use": "dictionary_learning", "path": str(folder)}])


def test_older_top_k_files_leave_k_to_the_config(tmp_path):
    state = state_of("AutoEncoderTopK")
    older = {key: tensor for key, tensor in state.items() if key not in ("k", "threshold")}
    folder = saved(tmp_path, "AutoEncoderTopK", older)
    assert_same(DictionaryLearning(), {"path": str(folder)}, formula_of("AutoEncoderTopK", state))
    first = info(folder).sha256
    saved(tmp_path, "AutoEncoderTopK", older, k=K - 1)
    assert info(folder).sha256 != first
    (folder / "config.json").unlink()
    with pytest.raises(SaevalError, match=r"no 'k' in the file or in config.json; AutoEncoderTopK needs"):
        info(folder, **{"class": "AutoEncoderTopK"})


def test_reward_model_files(tmp_path):
    """One gated file a layer, no config, at the output of a block of a GPT-J sequence classifier."""
    for layer in (1, 2):
        torch.save(state_of("GatedAutoEncoder", seed=layer), tmp_path / f"ae_layer{layer}.pt")
    one = {"use": "dictionary_learning", "path": str(tmp_path / "ae_layer2.pt"), "class": "GatedAutoEncoder"}
    formula = formula_of("GatedAutoEncoder", state_of("GatedAutoEncoder", seed=2))
    entry = {**one, "hook_name": "transformer.h.2"}
    assert_same_in_a_suite(tmp_path, entry, formula, "transformer.h.2", family="gptj", kind="reward")

    every = {**one, "path": str(tmp_path / "ae_layer*.pt"), "hook_name": "transformer.h.{}", "name": "rm"}
    results = suite(tmp_path, [every], family="gptj", metrics=["l0"])
    hooks = {r.subject: r.cell["subjects"][0]["hook_name"] for r in results}
    assert hooks == {"rm/1": "blocks.1.hook_resid_post", "rm/2": "blocks.2.hook_resid_post"}
    assert not results.failed


def drop(key):
    return lambda state: state.pop(key)


@pytest.mark.parametrize(
    ("name", "change", "sentence"),
    [
        ("AutoEncoder", lambda s: s.update({"encoder.weight": s["encoder.weight"].T}), r"'encoder.weight' is transposed: found \[32, 80\], expected \[80, 32\]; save it as encoder.weight \[d_sae, d_in\]"),
        ("JumpReluAutoEncoder", lambda s: s.update(W_dec=s["W_dec"].T), r"'W_dec' is transposed"),
        ("GatedAutoEncoder", drop("r_mag"), r"'r_mag' is missing"),
        ("GatedAutoEncoder", lambda s: s.update(bias=torch.zeros(D)), r"unexpected tensor 'bias' \[32\]"),
        ("AutoEncoderNew", lambda s: s.update({"decoder.bias": torch.zeros(D - 1)}), r"'decoder.bias' is \[31\], expected \[32\]; check 'activation_dim' and 'dict_size' of"),
        ("AutoEncoder", lambda s: s.update(bias=torch.zeros(D, dtype=torch.int)), r"'bias' is torch.int32, expected a floating"),
        ("AutoEncoder", lambda s: s.update(bias=[0.0]), r"expected a tensor in 'bias', found list"),
        ("AutoEncoder", lambda s: s["bias"].fill_(float("nan")), r"'bias' holds 32 NaN or infinite values of 32"),
        ("BatchTopKSAE", lambda s: s["threshold"].fill_(-1), r"'threshold' is -1: training ended before it was set"),
        ("MatryoshkaBatchTopKSAE", lambda s: s["threshold"].fill_(-1), r"'threshold' is -1"),
        ("BatchTopKSAE", drop("threshold"), r"'threshold' is missing"),
        ("BatchTopKSAE", lambda s: s.update(threshold=torch.ones(N)), r"'threshold' is \[80\], expected \[\]"),
        ("BatchTopKSAE", lambda s: s["k"].fill_(3), r"'k' is 3, but 6 in .*config.json"),
        ("AutoEncoderTopK", lambda s: s.update(k=torch.tensor(2.5)), r"expected one whole number in 'k', found torch.float32"),
        ("MatryoshkaBatchTopKSAE", lambda s: s["group_sizes"].fill_(1), r"'group_sizes' add up to 2, expected 80"),
        ("MatryoshkaBatchTopKSAE", drop("group_sizes"), r"'group_sizes' is missing"),
    ],
)  # fmt: skip
def test_wrong_weights(tmp_path, name, change, sentence):
    state = state_of(name)
    change(state)
    folder = saved(tmp_path, name, state)
    with pytest.raises(SaevalError, match=sentence) as raised:
        DictionaryLearning().load({"path": str(folder)})
    assert str(folder / "ae.pt") in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        (config_of("AutoEncoder", dict_class="CrossCoder"), r"config.json: trainer.dict_class 'CrossCoder' is not supported; supported: AutoEncoder, "),
        (config_of("AutoEncoder", dict_class=["AutoEncoder"]), r"is not supported; supported"),
        (config_of("AutoEncoder", dict_size=N + 1), r"'encoder.weight' is \[80, 32\], expected \[81, 32\]; check 'activation_dim' and 'dict_size'"),
        (config_of("AutoEncoder", activation_dim="32"), r"expected a positive whole number in 'trainer.activation_dim', found '32'"),
        (config_of("AutoEncoderTopK", k=0), r"expected a positive whole number in 'trainer.k', found 0"),
        ({"trainer": [1]}, r"expected an object in 'trainer', found \[1\]"),
        ({"buffer": {}}, r"no 'trainer.dict_class' in .*config.json; add 'class:'.*those of AutoEncoder"),
        ({"trainer": {"dict_class": "AutoEncoder"}, "buffer": 3}, r"expected an object in 'buffer', found 3"),
    ],
)  # fmt: skip
def test_wrong_configs(tmp_path, config, sentence):
    name = "AutoEncoderTopK" if config.get("trainer") and "k" in config["trainer"] else "AutoEncoder"
    folder = saved(tmp_path, name, config=config)
    with pytest.raises(SaevalError, match=sentence):
        info(folder)


def test_k_beyond_the_features(tmp_path):
    state = state_of("AutoEncoderTopK") | {"k": torch.tensor(N + 1)}
    with pytest.raises(SaevalError, match=r"'trainer.k' is 81, more than the 80 features"):
        info(saved(tmp_path, "AutoEncoderTopK", state, k=N + 1))


def test_interrupted_runs(tmp_path):
    state = {"step": 1200, "ae": state_of("BatchTopKSAE"), "optimizer": {"state": {}}, "config": {}, "norm_factor": 3.1}
    with pytest.raises(SaevalError, match=r"ae.pt: a checkpoint of an unfinished run \(step 1200\)"):
        info(saved(tmp_path, "BatchTopKSAE", state))


def test_wrong_references(tmp_path):
    with pytest.raises(SaevalError, match=r"unknown parameter 'clas' of SAE format '\w+'; did you mean 'class'\?"):
        info(tmp_path, clas="AutoEncoder")
    with pytest.raises(SaevalError, match="dictionary_learning: 'class': 'Autoencoder' is not supported"):
        info(saved(tmp_path, "AutoEncoder"), **{"class": "Autoencoder"})
    with pytest.raises(SaevalError, match=r"needs the parameter 'path', the folder with ae.pt and config.json"):
        DictionaryLearning().info({})
    with pytest.raises(SaevalError, match=r"absent: no such file"):
        info(tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    with pytest.raises(SaevalError, match=r"empty/ae.pt: no such file"):
        info(tmp_path / "empty")
