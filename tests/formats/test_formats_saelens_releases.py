"""Releases of SAELens' registry, out of a cache of the hub that the test writes; nothing asks a network."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import sae_lens
import torch
from huggingface_hub import constants
from safetensors.torch import save_file

import saeval
from saelens_files import COMMIT, D_IN, D_SAE, FLAT, HOOK, K, activations, assert_same, edit_weights, random_sae, saved
from saeval.base.errors import SaevalError, SuiteError
from saeval_formats.saelens import SAELens

JB, JB_REPO = "gpt2-small-res-jb", "jbloom/GPT2-Small-SAEs-Reformatted"


def flat(folder: Path, **changes) -> None:
    (folder / "cfg.json").write_text(json.dumps({**FLAT, "activation_fn_str": "relu", "hook_name": HOOK, **changes}))


def same(reference) -> None:
    ours = SAELens().load(reference, "cpu", torch.float32)
    assert_same(ours, sae_lens.SAE.from_pretrained(reference["release"], reference["id"]), activations())


def no_sparsity(folder: Path) -> None:
    """That the repository has no such file, as the hub's client notes it."""
    snapshot = next(parent for parent in folder.parents if parent.parent.name == "snapshots")
    note = snapshot.parents[1] / ".no_exist" / COMMIT / folder.relative_to(snapshot) / "sparsity.safetensors"
    note.parent.mkdir(parents=True, exist_ok=True)
    note.touch()


@pytest.mark.parametrize("kind", ["standard", "gated", "topk", "jumprelu"])
def test_a_repository(hub, kind):
    folder = hub("user/mine", "deep/sae")
    saved(random_sae(kind), folder)
    no_sparsity(folder)
    reference = {"release": "user/mine", "id": "deep/sae"}
    same(reference)
    info = SAELens().info(reference)
    assert (info.architecture, info.hook_name, info.d_in, info.d_sae) == (kind, HOOK, D_IN, D_SAE)
    assert info.facts["revision"] == COMMIT


def test_a_release(hub):
    folder = hub(JB_REPO, "blocks.8.hook_resid_pre")
    saved(random_sae("standard"), folder)
    flat(folder)
    no_sparsity(folder)
    reference = {"release": JB, "id": "blocks.8.hook_resid_pre"}
    same(reference)
    assert SAELens().info(reference).facts["neuronpedia_id"] == "gpt2-small/8-res-jb"
    folded = SAELens().load({**reference, "fold_W_dec_norm": True}, "cpu", torch.float32)
    assert_same(folded, sae_lens.SAE.from_pretrained(*reference.values(), fold_W_dec_norm=True), activations())
    edit_weights(folder, lambda tensors: tensors["b_enc"].fill_(float("inf")))
    SAELens().info(reference)  # weights are not looked at
    with pytest.raises(SaevalError, match="'b_enc' holds 40 NaN or infinite values of 40"):
        SAELens().load(reference)
    edit_weights(folder, lambda tensors: tensors.update(b_enc=torch.zeros(3)))
    with pytest.raises(SaevalError, match=rf"{JB}/blocks.8.hook_resid_pre at 0123456789ab could not be read"):
        SAELens().load(reference)


def test_identity(hub):
    """The commit makes it, and whatever changes the numbers."""
    reference = {"release": "user/mine", "id": "sae"}
    saved(random_sae("topk-rescaled"), hub("user/mine", "sae"))
    found = [SAELens().info(reference).sha256, SAELens().info({**reference, "fold_W_dec_norm": True}).sha256]
    saved(random_sae("topk-rescaled"), hub("user/mine", "sae", "f" * 40))
    found.append(SAELens().info(reference).sha256)
    assert len(set(found)) == 3


def test_llama_scope(hub):
    """The publisher's formula and the registry's factor, as the library reads and folds them."""
    release, one = "llama_scope_lxr_8x", "l7r_8x"
    folder = hub("fnlp/Llama3_1-8B-Base-LXR-8x", "Llama3_1-8B-Base-L7R-8x")
    (folder / "checkpoints").mkdir()
    factor = sae_lens.loading.pretrained_saes_directory.get_norm_scaling_factor(release, one)
    said = {"d_model": D_IN, "d_sae": D_SAE, "hook_point_in": HOOK, "jump_relu_threshold": 0.3}
    norms = {"in": math.sqrt(D_IN) / factor, "out": math.sqrt(D_IN) / factor}
    (folder / "hyperparams.json").write_text(json.dumps({**said, "dataset_average_activation_norm": norms}))
    theirs = random_sae("standard")
    tensors = {
        "encoder.weight": theirs.W_enc.T, "encoder.bias": theirs.b_enc,
        "decoder.weight": theirs.W_dec.T, "decoder.bias": theirs.b_dec,
    }  # fmt: skip
    save_file({n: t.detach().contiguous() for n, t in tensors.items()}, folder / "checkpoints" / "final.safetensors")
    reference = {"release": release, "id": one}
    same(reference)
    assert SAELens().info(reference).facts["activation_scale"] == f"{factor} (folded)"


def test_dictionary_learning(hub):
    entry = next(
        found
        for found in sae_lens.loading.pretrained_saes_directory.get_pretrained_saes_directory().values()
        if found.conversion_func == "dictionary_learning_1"
    )
    one, path = next(iter(entry.saes_map.items()))
    folder = hub(entry.repo_id, path)
    trainer = {
        "dict_class": "AutoEncoderTopK", "k": K, "activation_dim": D_IN, "dict_size": D_SAE, "layer": 3,
        "lm_name": "user/tiny",
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps({"trainer": trainer, "buffer": {"ctx_len": 16}}))
    theirs = random_sae("topk")
    tensors = {
        "encoder.weight": theirs.W_enc.T, "encoder.bias": theirs.b_enc, "decoder.weight": theirs.W_dec.T,
        "b_dec": theirs.b_dec,
    }  # fmt: skip
    torch.save({name: tensor.detach() for name, tensor in tensors.items()}, folder / "ae.pt")
    reference = {"release": entry.release, "id": one}
    same(reference)
    assert SAELens().info(reference).hook_name == "blocks.3.hook_resid_post"


class Payload:
    """A pickle that leaves a trace where it is executed."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self):
        return Path.touch, (self.trace,)


@pytest.mark.parametrize("forced", [False, True])
def test_nothing_is_executed(hub, tmp_path, monkeypatch, forced):
    """Some of the library's readers load pickles, which before torch 2.6 would run: here they never do."""
    if forced:
        monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    release, one = "deepseek-r1-distill-llama-8b-qresearch", "blocks.19.hook_resid_post"
    entry = sae_lens.loading.pretrained_saes_directory.get_pretrained_saes_directory()[release]
    folder = hub(entry.repo_id, "unused").parent
    torch.save({"encoder.weight": Payload(tmp_path / "executed")}, folder / entry.saes_map[one])
    with pytest.raises(SaevalError, match="could not be read"):
        SAELens().load({"release": release, "id": one})
    assert not (tmp_path / "executed").exists()


def test_ids_are_globs_over_the_registry():
    """Listed without a cache and without a network."""
    found = SAELens().expand({"use": "saelens", "release": JB, "ids": "blocks.1*.hook_resid_pre"})
    assert list(found) == ["blocks.1.hook_resid_pre", "blocks.10.hook_resid_pre", "blocks.11.hook_resid_pre"]
    assert found["blocks.10.hook_resid_pre"] == {"use": "saelens", "release": JB, "id": "blocks.10.hook_resid_pre"}
    assert len(SAELens().expand({"release": JB, "ids": ["*.0.*", "*.11.*"]})) == 3
    assert SAELens().label({"release": JB, "id": "x"}) == f"{JB}/x"


@pytest.mark.parametrize(
    ("reference", "sentence"),
    [
        (
            {"release": JB, "ids": "blocks.8*.hook_mlp"},
            r"has no SAE that matches 'ids: blocks\.8\*\.hook_mlp'; did you",
        ),
        ({"release": JB, "ids": 3}, "'ids' must be a glob or list of globs, found 3"),
        ({"release": JB}, r"needs 'id' or 'ids', such as blocks\.0\.hook_resid_pre"),
        ({"release": "gpt2-smal-res-jb", "ids": "*"}, "no such release; did you mean 'gpt2-small-res-jb'"),
        ({"release": "user/mine", "ids": "*"}, "the registry does not list this repository; set 'id'"),
    ],
)
def test_wrong_globs(reference, sentence):
    with pytest.raises(SaevalError, match=sentence):
        SAELens().expand(reference)


@pytest.mark.parametrize(
    ("reference", "sentence"),
    [
        ({"release": JB, "id": "blocks.8.hook_resid_pr"}, r"has no SAE .*; did you mean 'blocks\.8\.hook_resid_pre'"),
        ({"release": JB, "id": "blocks.0.hook_resid_pre", "revision": "x"}, "unknown parameter 'revision'"),
        (
            {"release": JB, "id": "blocks.0.hook_resid_pre"},
            rf"repository '{JB_REPO}' is not in the cache .*HF_HUB_OFFLINE",
        ),
    ],
)
def test_wrong_references(hub, reference, sentence):
    with pytest.raises(SaevalError, match=sentence) as raised:
        SAELens().info(reference)
    assert "\n" not in str(raised.value)


def test_what_a_repository_lacks(hub):
    hub("user/mine", "sae")
    with pytest.raises(SaevalError, match="user/mine/sae at 0123456789ab could not be read"):
        SAELens().info({"release": "user/mine", "id": "sae"})


def test_a_hub_that_cannot_be_reached(hub, monkeypatch):
    """What the cache holds is used; what it does not is told at once, in a suite at its place."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", lambda *args, **named: (_ for _ in ()).throw(OSError("no")))
    with pytest.raises(SuiteError, match=r"hub could not be asked \(OSError\)"):
        saeval.evaluate(
            model={"use": "testbed"}, saes=[{"use": "saelens", "release": JB, "ids": "*.8.*"}],
            data={"use": "python-stdlib", "context": 8, "sequences": 4}, metrics=["l0"],
        )  # fmt: skip


def test_releases_that_read_headers_over_http(hub):
    reference = {"release": "gemma-scope-2-1b-pt-res", "id": "layer_13_width_16k_l0_big"}
    hub("google/gemma-scope-2-1b-pt", "resid_post/layer_13_width_16k_l0_big")
    with pytest.raises(SaevalError, match=r"requests its header from the hub even if .*use: gemma_scope"):
        SAELens().info(reference)


def test_layers_of_cross_layer_transcoders_are_refused(hub):
    directory = sae_lens.loading.pretrained_saes_directory.get_pretrained_saes_directory()
    entry = next(found for found in directory.values() if found.conversion_func == "mntss_clt_layer_transcoder")
    with pytest.raises(SaevalError, match="sums its decoders, which reconstructs no activations"):
        SAELens().info({"release": entry.release, "id": next(iter(entry.saes_map))})
