"""The mapping format: any layout against the formula, and the sentences for files that it cannot be."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from checkpoints import D, K, N, activations, assert_same, assert_same_in_a_suite
from mapping_files import SHAPES, TENSORS, VECTORS, canonical, formula, linear, plain, write
from saeval import cli
from saeval.base.errors import SaevalError
from saeval.testing.architectures import tiny_folder
from saeval_formats.mapping import MappingFile

TOPK = {"topk": K}
KINDS = ("relu", "gated", "jumprelu", "batchtopk", "topk", "abstopk", "groupmax")


@pytest.fixture
def reference(tmp_path):
    """A file of four tensors and the entry that names them; arguments replace keys of the entry."""

    def make(name: str = "my.pt", **changes) -> dict:
        path = tmp_path / name
        return {"path": write(path, linear(canonical())), "tensors": TENSORS, "activation": TOPK, **changes}

    return make


@pytest.mark.parametrize("suffix", [".pt", ".safetensors", ".npz"])
def test_a_file_of_each_kind(reference, suffix):
    entry = reference(f"my{suffix}")
    assert_same(MappingFile(), entry, formula(plain()))
    info = MappingFile().info({**entry, "hook_name": "blocks.1.hook_resid_pre"})
    assert (info.architecture, info.hook_name, info.facts) == ("topk", "blocks.1.hook_resid_pre", {"k": K})


@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_any_layout_equals_the_formula(data):
    """Any activation, names, transposes, stacked layers, missing biases and normalisation."""
    kind = data.draw(st.sampled_from(KINDS))
    transcoder = data.draw(st.booleans())
    tensors = canonical(d_out=24 if transcoder else D)
    normalization = data.draw(st.sampled_from(["none", "layer_norm", "constant_norm_rescale", {"scale": 0.4}]))
    if transcoder and isinstance(normalization, dict):
        normalization = "none"
    slots, theta, activation = {"W_enc", "W_dec"}, 0.2, kind
    if kind == "gated":
        slots |= {"b_gate", "r_mag", "b_mag"}
    elif kind in ("jumprelu", "batchtopk"):
        how = data.draw(st.sampled_from(["number", "threshold", "log_threshold", "scalar"]))
        activation = {kind: theta} if how == "number" else kind
        if how != "number":
            theta = torch.tensor(theta) if how == "scalar" else tensors["threshold"]
            slots.add("threshold" if how == "scalar" else how)
            tensors |= {"threshold": theta, "log_threshold": theta.log()}
    elif kind != "relu":
        activation = {kind: 8 if kind == "groupmax" else K}
    optional = ["b_dec", "W_skip", *([] if kind == "gated" else ["b_enc"])]
    slots |= set(data.draw(st.lists(st.sampled_from(optional), unique=True)))
    pre_bias = "b_dec" in slots and not transcoder and data.draw(st.booleans())
    stored, named = {"layer.other": torch.ones(3)}, {}
    for slot in sorted(slots):
        tensor, named[slot] = tensors[slot], f"layer.{slot}_of_mine"
        name = named[slot]
        if tensor.ndim == 2 and data.draw(st.booleans()):
            tensor, named[slot] = tensor.T, f"{named[slot]}.T"
        if data.draw(st.booleans()):
            tensor = torch.stack([torch.full_like(tensor, torch.nan), tensor])
            named[slot] = named[slot].removesuffix(".T") + "[1]" + ".T" * named[slot].endswith(".T")
        stored[name] = tensor
    fold = kind in ("relu", "jumprelu", "gated") and data.draw(st.booleans())
    entry = {"tensors": named, "activation": activation, "normalization": normalization}
    entry |= {"apply_b_dec_to_input": pre_bias, "fold_W_dec_norm": fold}
    with tempfile.TemporaryDirectory() as place:
        suffix = data.draw(st.sampled_from([".pt", ".safetensors", ".npz"]))
        entry["path"] = write(Path(place) / f"my{suffix}", stored)
        entry |= {"input_hook": "blocks.1.hook_resid_mid"} if transcoder else {}
        ours, info = MappingFile().load(entry, "cpu", torch.float32), MappingFile().info(entry)
    options = {"normalization": normalization, "apply_b_dec_to_input": pre_bias, "transcoder": transcoder}
    theirs = formula({slot: tensors[slot] for slot in slots - {"log_threshold"}}, kind, theta, **options)
    x, scale = activations(), torch.ones(N)
    if fold:  # of the rows for the model's own activations
        scale = tensors["W_dec"].norm(dim=1) / (normalization["scale"] if isinstance(normalization, dict) else 1)
    acts, context = theirs.encode(x)
    encoding = ours.encode(x)
    assert (info.d_in, info.d_sae, info.d_out) == (D, N, 24 if transcoder else D)
    assert info.architecture == f"{kind}{'_skip' * ('W_skip' in slots)}{'_transcoder' * transcoder}"
    torch.testing.assert_close(encoding.feature_acts, acts * scale, atol=1e-4, rtol=1e-4)
    expected = theirs.decode(acts, context)
    torch.testing.assert_close(ours.decode(encoding, expected), expected, atol=1e-4, rtol=1e-4)


def test_in_a_suite(tmp_path, reference):
    hook = "blocks.2.hook_mlp_out"
    assert_same_in_a_suite(tmp_path, {"use": "mapping", **reference(hook_name=hook)}, formula(plain()), hook)


def test_the_same_tensor_twice_and_a_literal_name(tmp_path):
    """Tied weights; a name of the file that looks like an operator means that tensor."""
    tied = canonical()["W_enc"]
    path = write(tmp_path / "tied.safetensors", {"W.T": tied})
    entry = {"path": path, "tensors": {"W_enc": "W.T", "W_dec": "W.T.T"}, "activation": TOPK}
    assert_same(MappingFile(), entry, formula({"W_enc": tied, "W_dec": tied.T}))


MATRIX = torch.ones(D, N)


@pytest.mark.parametrize(
    ("stored", "W_enc"),
    [
        ({"enc[0]": MATRIX.T, "enc": torch.zeros(2, N, D)}, "enc[0].T"),
        ({"enc[0]": torch.stack([MATRIX * 0, MATRIX])}, "enc[0][1]"),
        ({"enc.T": MATRIX.T}, "enc.T.T"),
        ({"module.enc": MATRIX}, "module.enc"),
        ({"_orig_mod.enc": MATRIX, "enc": MATRIX * 0}, "_orig_mod.enc"),
    ],
)
@pytest.mark.parametrize("suffix", [".pt", ".safetensors", ".npz"])
def test_names_are_those_in_the_file_whatever_they_end_or_begin_with(tmp_path, stored, W_enc, suffix):
    path, stored = tmp_path / f"my{suffix}", {**stored, "dec": torch.ones(N, D), "step": torch.ones(1)}
    torch.save(stored, path) if suffix == ".pt" else write(path, stored)
    entry = {"path": path, "tensors": {"W_enc": W_enc, "W_dec": "dec"}, "activation": "relu"}
    assert MappingFile().load(entry).W_enc.equal(MATRIX)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_tensors_that_the_entry_does_not_name_may_be_of_any_kind(tmp_path):
    path = tmp_path / "my.pt"
    entry = {"path": path, "tensors": {"W_enc": "enc", "W_dec": "dec"}, "activation": "relu"}
    others = {"sparse": MATRIX.to_sparse(), "empty": MATRIX.to("meta"), "nested": torch.nested.nested_tensor([MATRIX])}
    torch.save({"enc": MATRIX, "dec": MATRIX.T, **others}, path)
    assert MappingFile().info(entry).d_sae == N
    for name, fault in {"sparse": "is sparse, expected a", "empty": "is without values", "nested": "no tensor"}.items():
        with pytest.raises(SaevalError, match=fault):
            MappingFile().info({**entry, "tensors": {"W_enc": name, "W_dec": "dec"}})


def test_dicts_of_a_file_that_give_no_names(tmp_path):
    path = tmp_path / "my.pt"
    entry = {"path": path, "tensors": {"W_enc": "a.b", "W_dec": "dec"}, "activation": "relu"}
    torch.save({"a": {"b": MATRIX}, "a.b": MATRIX * 2, "dec": MATRIX.T}, path)
    with pytest.raises(SaevalError, match=r"my\.pt: two tensors have the name 'a\.b'"):
        MappingFile().info(entry)
    circle: dict = {"dec": MATRIX}
    circle["a"] = circle
    torch.save(circle, path)
    with pytest.raises(SaevalError, match=r"my\.pt: damaged \(its dicts are nested too deeply\)"):
        MappingFile().info(entry)


def test_arrays_of_the_other_byte_order(tmp_path):
    np.savez(tmp_path / "my.npz", enc=MATRIX.numpy().astype(">f4"), dec=MATRIX.numpy().T)
    entry = {"path": tmp_path / "my.npz", "tensors": {"W_enc": "enc", "W_dec": "dec"}, "activation": "relu"}
    assert MappingFile().load(entry).W_enc.equal(MATRIX)


@pytest.mark.parametrize("shape", [(D, 0), (0, N)])
def test_a_dimension_of_zero(tmp_path, shape):
    path = write(tmp_path / "my.safetensors", {"enc": torch.ones(shape), "dec": torch.ones(shape[::-1])})
    with pytest.raises(SaevalError, match=r"my\.safetensors: 'enc' is \[\d+, \d+\], so the SAE has no"):
        MappingFile().info({"path": path, "tensors": {"W_enc": "enc", "W_dec": "dec"}, "activation": "relu"})


def test_identity(reference):
    entries = [
        {}, {"activation": {"topk": 5}}, {"activation": "relu"}, {"apply_b_dec_to_input": True},
        {"normalization": "layer_norm"}, {"normalization": {"scale": 0.5}}, {"normalization": {"scale": 0.4}},
        {"activation": {"jumprelu": 0.1}}, {"activation": {"jumprelu": 0.2}}, {"activation": {"batchtopk": 0.2}},
    ]  # fmt: skip
    digests = {MappingFile().info(reference(**changes)).sha256 for changes in entries}
    assert len(digests) == len(entries)
    assert MappingFile().info(reference()).sha256 in digests


WRITTEN = "{W_enc: enc.weight.T, W_dec: dec.weight.T}"
WITHOUT = {slot: name for slot, name in TENSORS.items() if slot != "W_dec"}


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"tensors": {**TENSORS, "W_enc": "enc.wieght.T"}},
            r"my.pt: no tensor 'enc.wieght' for 'W_enc'; the file has enc.weight \[80, 32\], .*; did you mean 'enc.weight'\?",
        ),
        ({"tensors": {**TENSORS, "W_enc": "x"}}, r"no tensor 'x' for 'W_enc'; the file has enc.weight \[80, 32\]"),
        (
            {"tensors": {**TENSORS, "W_enc": "enc.weight"}},
            r"'enc.weight' is \[80, 32\], but W_enc: enc.weight expects \[d_in, d_sae\] "
            r"\(d_in is 32 in b_dec: dec.bias, d_sae is 80 in b_enc: enc.bias\); write 'W_enc: enc.weight.T'",
        ),
        ({"tensors": {**TENSORS, "W_dec": "dec.weight"}}, r"; write 'W_dec: dec.weight.T'$"),
        ({"tensors": {**TENSORS, "W_dec": "enc.weight.T"}}, r"\[80, 32\], but W_dec: .*; write 'W_dec: enc.weight'$"),
        ({"tensors": {**TENSORS, "b_enc": "enc.weight"}}, r"'enc.weight' is \[80, 32\], but b_enc: enc.weight expects \[d_"),
        ({"tensors": {**TENSORS, "b_enc": "enc.weight[80]"}}, r"is \[80, 32\], so there is no 'enc.weight\[80\]' for 'b_e"),
        ({"tensors": {**TENSORS, "b_enc": "enc.bias[0][0]"}}, r"'enc.bias' is \[80\], so there is no 'enc.bias\[0\]\[0\]'"),
        ({"tensors": {**TENSORS, "W_enk": "x"}}, "mapping: 'tensors' has no place for 'W_enk'; did you mean 'W_enc'"),
        ({"tensors": WITHOUT}, "mapping: 'tensors' lacks 'W_dec', which 'activation: topk' needs"),
        ({"tensors": {**TENSORS, "threshold": "enc.bias"}}, "names 'threshold', which 'activation: topk' does not use"),
        ({"tensors": {"W_enc": 3}}, "'tensors.W_enc'"),
        ({"activation": "jumprelu"}, r"lacks 'threshold', which 'activation: jumprelu' needs, or write \{jumprelu: THR"),
        ({"activation": "gated"}, "lacks 'b_gate', which 'activation: gated' needs"),
        ({"activation": "gelu"}, "mapping: 'activation' has no 'gelu'; did you mean 'relu'"),
        ({"activation": "topk"}, "mapping: expected a positive whole number in 'activation.topk', found None"),
        ({"activation": {"topk": True}}, "expected a positive whole number in 'activation.topk', found True"),
        ({"activation": {"topk": 81}}, "mapping: 'activation.topk' is 81, more than the 80 features"),
        ({"activation": {"groupmax": 7}}, "mapping: 80 features cannot be divided into 'groupmax: 7' groups"),
        ({"activation": {"relu": 1}}, "mapping: 'activation: relu' takes no number"),
        ({"activation": {}}, "mapping: 'activation' needs one of relu, .*, found none"),
        ({"activation": {"topk": 3, "relu": 1}}, "needs one of .*, found topk, relu"),
        ({"activation": {"jumprelu": -0.1}}, "expected a positive number in 'activation.jumprelu' .*, found -0.1"),
        ({"activation": {"batchtopk": 32}}, "'batchtopk' takes the threshold of the features, found 32; k is a mean over"),
        ({"normalization": "batch"}, "'normalization'"),
        ({"normalization": {"scale": 0}}, "expected a positive number in 'normalization.scale' .*, found 0"),
        ({"normalization": {"scale": 0.5}, "input_hook": "x"}, "the scale of a transcoder's inputs does not determine"),
        ({"apply_b_dec_to_input": True, "input_hook": "x"}, "'apply_b_dec_to_input' is not for transcoders"),
        (
            {"apply_b_dec_to_input": True, "tensors": {"W_enc": "enc.weight.T", "W_dec": "dec.weight.T"}},
            "'apply_b_dec_to_input' subtracts b_dec, which 'tensors' does not name; name it, or leave 'apply_b_dec_to",
        ),
        ({"apply_b_dec_to_input": "yes"}, "'apply_b_dec_to_input' of .* expected true or false without quotes, got 'yes'"),
        ({"fold_W_dec_norm": True}, "'fold_W_dec_norm' is not for topk: other features would be active"),
        ({"activation": {"relu": None}}, "takes no number"),
    ],
)  # fmt: skip
def test_wrong_entries(reference, changes, sentence):
    with pytest.raises(SaevalError, match=sentence) as raised:
        MappingFile().info(reference(**changes))
    assert "\n" not in str(raised.value)


def test_values_of_tensors(tmp_path):
    tensors = {**linear(canonical()), "enc.theta": torch.tensor([-1.0])}
    entry = {"path": write(tmp_path / "my.pt", tensors), "tensors": {**TENSORS, "threshold": "enc.theta"}}
    with pytest.raises(SaevalError, match=r"my.pt: the threshold is below 0: it was never set"):
        MappingFile().load({**entry, "activation": "batchtopk"})
    tensors["enc.theta"] = torch.tensor([*[0.0] * (N - 2), 88.0, 89.0])
    entry["path"] = write(tmp_path / "log.npz", tensors)
    logarithm = {**entry, "tensors": {**TENSORS, "log_threshold": "enc.theta"}, "activation": "jumprelu"}
    with pytest.raises(
        SaevalError, match=r"'enc.theta' holds 1 values above 88.72 of 80, the logarithms of infinite th"
    ):
        MappingFile().load(logarithm)
    tensors["enc.bias"][3] = torch.nan
    entry["path"] = write(tmp_path / "my.npz", tensors)
    with pytest.raises(SaevalError, match=r"my.npz: 'enc.bias' holds 1 NaN or infinite values of 80"):
        MappingFile().load({**entry, "activation": "jumprelu"})
    tensors["enc.bias"] = torch.arange(N)
    entry["path"] = write(tmp_path / "my.npz", tensors)
    with pytest.raises(SaevalError, match=r"'enc.bias' is int64, expected a floating-point tensor"):
        MappingFile().info({**entry, "activation": "jumprelu"})
    with pytest.raises(SaevalError, match=r"is a folder, expected a .safetensors, .npz or .pt file"):
        MappingFile().info({**entry, "activation": "jumprelu", "path": str(tmp_path)})


def test_a_wrong_name_stops_before_the_model_is_loaded(tmp_path, reference, capsys):
    """And `doctor` lists the tensors of a file that no format reads."""
    entry = reference("odd.safetensors")
    tiny_folder(tmp_path / "model", "gpt2", "causal")
    (tmp_path / "model" / "model.safetensors").write_bytes(b"")  # loading it would fail
    (tmp_path / "corpus.txt").write_text(" ".join(f"w{1 + i % 90}" for i in range(200)))
    (tmp_path / "suite.yaml").write_text(
        "suite: odd\n"
        f"model: {{use: huggingface, path: {tmp_path / 'model'}}}\n"
        f"data: {{use: text, path: {tmp_path / 'corpus.txt'}, context: 12, sequences: 4}}\n"
        "saes:\n"
        f"  - {{use: mapping, path: {entry['path']}, hook_name: blocks.1.hook_resid_post, activation: {{topk: 6}},\n"
        "     tensors: {W_enc: encoder.weight.T, W_dec: dec.weight.T}}\n"
        "metrics: [l0]\n"
    )
    assert cli.main(["check", str(tmp_path / "suite.yaml")]) == 2
    sentence = capsys.readouterr().err
    assert "odd.safetensors: no tensor 'encoder.weight' for 'W_enc'; the file has dec.bias [32]," in sentence
    model = f"{{use: huggingface, path: {tmp_path / 'model'}}}"
    assert cli.main(["doctor", entry["path"], "--model", model]) == 2
    listed = "dec.bias [32], dec.weight [32, 80], enc.bias [80], enc.weight [80, 32]"
    assert f"which has {listed}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "place"),
    [
        ("tensors: {W_enc: enc.weight.T, W_dec: dec.weight.T, b_dek: dec.bias}", "8:57"),
        ("tensors: {W_enc: enc.weight.T, W_dec: x}", "8:43"),
        ("tensors: {W_enc: enc.weight.T, W_dec: dec.weight}", "8:43"),
        ("tensors: {W_enc: enc.weight.T}", "8:14"),
        ("tensors: {W_enc: enc.weight.T, W_dec: dec.weight.T, r_mag: enc.bias}", "8:57"),
        (f"tensors: {WRITTEN}\n    activation: {{topk: 99}}", "9:24"),
        (f"tensors: {WRITTEN}\n    activation: {{tokp: 9}}", "9:18"),
        (f"tensors: {WRITTEN}\n    normalization: {{scale: -1}}", "9:20"),
        (f"tensors: {WRITTEN}\n    apply_b_dec_to_input: true", "9:27"),
        (f"tensors: {WRITTEN}\n    fold_W_dec_norm: true", "9:22"),
        (f"tensors: {WRITTEN}\n    hook_name: blocks.9.hook_resid_pre", "9:16"),
    ],
)
def test_a_wrong_key_has_its_line_and_column(tmp_path, reference, capsys, line, place):
    entry = {"activation": "{topk: 6}", "hook_name": "blocks.1.hook_resid_post"}
    head = (
        "suite: s\nmodel: testbed\ndata: {use: python-stdlib, context: 8, sequences: 2}\nmetrics: [l0]\n"
        f"saes:\n  - path: {reference()['path']}\n"
    )
    rest = "".join(f"\n    {key}: {value}" for key, value in entry.items() if f"{key}:" not in line)
    (tmp_path / "s.yaml").write_text(f"{head}    use: mapping\n    {line}{rest}\n")
    assert cli.main(["check", str(tmp_path / "s.yaml")]) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith(f"{tmp_path / 's.yaml'}:{place}: "), said


def test_the_shapes_of_every_place():
    assert set(canonical()) == {*SHAPES, *VECTORS, "W_skip"}
