"""sparsify's files against its formulas, written plainly: `sparse_coder.py`, `fused_encoder.py`.

Not against SAELens' reader of them, which transposes W_dec and takes `num_latents: 0` for the number.
"""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

import saeval
from checkpoints import D, K, activations, assert_same, assert_same_in_a_suite, random_tensors
from saeval.base.errors import SaevalError
from saeval.testing.architectures import tiny_folder
from saeval.testing.claims import every
from saeval_formats.sparsify import Sparsify
from sparsify_files import SHAPES, formula, write


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("transcode", [False, True])
def test_equals_the_formula(tmp_path, transcode, skip):
    folder = write(tmp_path / "run" / "h.1.mlp", transcode=transcode, skip_connection=skip)
    assert_same(Sparsify(), {"path": str(folder)}, formula(folder, transcode=transcode))
    info = Sparsify().info({"path": str(folder)})
    assert (info.hook_name, info.input_hook) == ("h.1.mlp", "h.1.mlp:in" if transcode else None)
    assert info.architecture == f"topk{'_skip' if skip else ''}{'_transcoder' if transcode else ''}"
    assert info.facts["k"] == K


def test_groupmax(tmp_path):
    folder = write(tmp_path / "layers.1", activation="groupmax", k=8)
    assert_same(Sparsify(), {"path": str(folder)}, formula(folder, "groupmax"))
    x = activations()
    acts = Sparsify().load({"path": str(folder)}).encode(x).feature_acts
    assert int((acts > 0).sum(-1).max()) <= 8
    assert int((acts.unflatten(-1, (8, -1)) > 0).sum(-1).max()) == 1


def test_num_latents_of_zero(tmp_path):
    folder = write(tmp_path / "layers.1", num_latents=0)
    with pytest.raises(SaevalError, match=r"'encoder.weight' is \[80, 32\], expected \[128, 32\]; check cfg.json"):
        Sparsify().info({"path": str(folder)})
    config = json.loads((folder / "cfg.json").read_text())
    (folder / "cfg.json").write_text(json.dumps({**config, "expansion_factor": 2.5}))
    with pytest.raises(SaevalError, match=r"expected a positive whole number in 'expansion_factor', found 2.5"):
        Sparsify().info({"path": str(folder)})
    shapes = {**SHAPES, "encoder.weight": (2 * D, D), "encoder.bias": (2 * D,), "W_dec": (2 * D, D)}
    save_file(random_tensors(shapes), folder / "sae.safetensors")
    (folder / "cfg.json").write_text(json.dumps({**config, "expansion_factor": 2}))
    assert Sparsify().info({"path": str(folder)}).d_sae == 2 * D


def test_identity(tmp_path):
    first, second = write(tmp_path / "a" / "layers.1"), write(tmp_path / "b" / "layers.1")
    info = lambda folder: Sparsify().info({"path": str(folder)}).sha256  # noqa: E731
    assert info(first) == info(second)
    write(second, k=K - 1)
    assert info(first) != info(second)
    write(second, transcode=True)
    assert info(first) != info(second)


def test_sites_in_a_run(tmp_path):
    """Every hookpoint is an SAE; 2 comes before 10; a run of several seeds has a folder more."""
    for site in ("layers.10", "layers.2", "layers.2.mlp", "layers.3/seed0", "layers.3/seed1"):
        write(tmp_path / "run" / site)
    (tmp_path / "run" / "config.json").write_text(json.dumps({"model": "user/tiny", "ctx_len": 16, "lr": 1}))
    reference = {"path": str(tmp_path / "run"), "sites": "*"}
    found = Sparsify().expand(reference)
    assert list(found) == ["layers.2", "layers.2.mlp", "layers.3/seed0", "layers.3/seed1", "layers.10"]
    assert found["layers.10"] == {"path": str(tmp_path / "run" / "layers.10")}
    assert list(Sparsify().expand({**reference, "sites": ["*.mlp", "layers.10"]})) == ["layers.2.mlp", "layers.10"]
    infos = [Sparsify().info(one) for one in found.values()]
    assert [info.hook_name for info in infos] == ["layers.2", "layers.2.mlp", "layers.3", "layers.3", "layers.10"]
    assert every(info.facts["model_name"] == "user/tiny" and info.facts["context_size"] == 16 for info in infos)
    globs = Sparsify().expand({"path": str(tmp_path / "*"), "sites": "layers.1*"})
    assert list(globs) == ["run/layers.10"]
    with pytest.raises(SaevalError, match=r"no SAE matches 'sites: h\.\*'"):
        Sparsify().expand({**reference, "sites": "h.*"})
    with pytest.raises(SaevalError, match="'sites' needs 'path'"):
        Sparsify().expand({"sites": "h.*"})
    with pytest.raises(SaevalError, match=r"no sae.safetensors; it holds 5 SAEs in folders: add 'sites:"):
        Sparsify().info({"path": str(tmp_path / "run")})


def test_in_a_suite(tmp_path):
    folder = write(tmp_path / "run" / "h.1.mlp")
    entry = {"use": "sparsify", "path": str(folder)}
    assert_same_in_a_suite(tmp_path, entry, formula(folder), "blocks.1.hook_mlp_out")


def test_a_run_in_a_suite(tmp_path):
    """Named by run and hookpoint; hookpoints come to the model's own names."""
    for site in ("h.0", "h.1.mlp"):
        write(tmp_path / "run" / site, transcode="mlp" in site, skip_connection="mlp" in site)
    tiny_folder(tmp_path / "model", "gpt2")
    (tmp_path / "text.txt").write_text(
        "\n\n".join(f"w{i} w{i + 1} w{2 * i} w{3 * i} w5 w6 w7 w8" for i in range(1, 25))
    )
    results = saeval.evaluate(
        model={"use": "huggingface", "path": str(tmp_path / "model")},
        data={"use": "text", "path": str(tmp_path / "text.txt"), "separator": "\n\n", "context": 6, "sequences": 8},
        saes=[{"use": "sparsify", "path": str(tmp_path / "run"), "sites": "h.*"}],
        metrics=["l0", "ce"],
    )
    assert not results.failed, results.failed[0].traceback
    hooks = {r.subject: r.cell["subjects"][0]["hook_name"] for r in results}
    assert hooks == {"run/h.0": "blocks.0.hook_resid_post", "run/h.1.mlp": "blocks.1.hook_mlp_out"}


def transposed(tensors):
    tensors["W_dec"] = tensors["W_dec"].T.contiguous()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            transposed,
            r"'W_dec' is transposed: found \[32, 80\], expected \[80, 32\]; save it as encoder.weight \[d_sae",
        ),
        (lambda t: t.pop("b_dec"), "'b_dec' is missing"),
        (lambda t: t.update(W_skip=torch.zeros(D, D)), r"unexpected tensor 'W_skip' .*check 'skip_connection' of cfg"),
        (lambda t: t["W_dec"].fill_(float("inf")), "'W_dec' holds 2560 NaN or infinite"),
    ],
)
def test_wrong_weights(tmp_path, change, sentence):
    folder = write(tmp_path / "layers.1")
    tensors = load_file(folder / "sae.safetensors")
    change(tensors)
    save_file(tensors, folder / "sae.safetensors")
    with pytest.raises(SaevalError, match=sentence) as raised:
        Sparsify().load({"path": str(folder)})
    assert str(folder / "sae.safetensors") in str(raised.value)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"signed": True, "activation": "groupmax", "k": 8}, "'signed' is for 'activation: topk', found 'groupmax'"),
        ({"signed": 1}, "expected true or false in 'signed', found 1"),
        ({"embed_skip": True}, "'embed_skip' is not supported: it also reads the token embeddings"),
        ({"gram_lookup": True}, "'gram_lookup' is not supported"),
        ({"activation": "relu"}, "activation 'relu' is not supported; supported: topk, groupmax"),
        ({"k": 81}, "'k' is 81, more than the 80 features"),
        ({"k": None}, "expected a positive whole number in 'k', found None"),
        ({"activation": "groupmax", "k": 7}, "80 features cannot be divided into 'k: 7' groups"),
        ({"transcode": "yes"}, "expected true or false in 'transcode', found 'yes'"),
        ({"d_in": 31}, r"'encoder.weight' is \[80, 32\], expected \[80, 31\]"),
    ],
)
def test_wrong_configs(tmp_path, changes, sentence):
    folder = write(tmp_path / "layers.1", **changes)
    with pytest.raises(SaevalError, match=sentence) as raised:
        Sparsify().info({"path": str(folder)})
    assert str(folder) in str(raised.value)


def test_truncated(tmp_path):
    folder = write(tmp_path / "layers.1")
    content = (folder / "sae.safetensors").read_bytes()
    (folder / "sae.safetensors").write_bytes(content[:-7])
    with pytest.raises(SaevalError, match=r"sae.safetensors: truncated or not a safetensors file"):
        Sparsify().info({"path": str(folder)})
    with pytest.raises(SaevalError, match="unknown parameter 'site'"):
        Sparsify().info({"path": str(folder), "site": "x"})


def test_a_folder_of_one_sae(tmp_path):
    write(tmp_path / "run" / "layers.1")
    with pytest.raises(SaevalError, match=r"it holds an SAE in a folder: add 'sites: \"\*\"', or name one"):
        Sparsify().info({"path": tmp_path / "run"})
