"""Files of weights whose parts are damaged, or that name files elsewhere: one sentence, before anything is streamed."""

from __future__ import annotations

import json
import os
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from saeval import SaevalError, cli
from saeval.testing.architectures import tiny_folder, tiny_model
from saeval.testing.claims import some
from saeval_formats.tensors import Header
from saeval_models import HuggingFace


def flipped(path, member):
    """Flip a bit of a member's content."""
    with zipfile.ZipFile(path) as archive:
        content = archive.read(member)
    whole = bytearray(path.read_bytes())
    at = bytes(whole).index(content[: min(len(content), 4096)])
    whole[at + len(content) // 2] ^= 1
    path.write_bytes(whole)


def members(path, suffix=""):
    with zipfile.ZipFile(path) as archive:
        found = [one.filename for one in archive.infolist() if one.file_size >= 16 and suffix in one.filename]
    return some(found)


def resized(path, member, change):
    """Write the archive again with another length of a member, and a checksum that is right for it."""
    with zipfile.ZipFile(path) as archive:
        content = {one.filename: archive.read(one) for one in archive.infolist()}
    content[member] = change(content[member])
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, data in content.items():
            archive.writestr(name, data)


def test_a_tensor_that_is_not_what_was_written_is_refused_where_the_file_is_described(loader):
    calls, state, path = loader
    torch.save(state, path)
    for call in some(calls):
        call()
    member = next(iter(members(path, "/data/")))
    flipped(path, member)
    for call in some(calls):
        with pytest.raises(SaevalError, match=rf"damaged \(the checksum of '{member}' in it is wrong\); copy it again"):
            call()


@pytest.mark.parametrize("change", [lambda data: data[:-4], lambda data: data + bytes(4), lambda data: b""])
def test_a_tensor_of_another_length_is_refused(loader, change):
    calls, state, path = loader
    torch.save(state, path)
    resized(path, next(iter(members(path, "/data/"))), change)
    for call in some(calls):
        with pytest.raises(SaevalError, match="copy it again") as caught:
            call()
        assert str(path) in str(caught.value)
        assert len(str(caught.value).splitlines()) == 1


def test_an_array_of_an_npz_that_is_damaged_is_refused_where_its_header_is_read(tmp_path):
    path = tmp_path / "params.npz"
    np.savez(path, W_enc=np.arange(4096.0), b=np.ones(3))
    assert Header.of_npz(path).shapes == {"W_enc": (4096,), "b": (3,)}
    flipped(path, "W_enc.npy")
    with pytest.raises(SaevalError, match=r"params\.npz: damaged \(the checksum of 'W_enc\.npy' in it is wrong\)"):
        Header.of_npz(path)


def pickled(folder, state=None):
    (folder / "model.safetensors").unlink()
    torch.save(tiny_model("gpt2").state_dict() if state is None else state, folder / "pytorch_model.bin")
    return folder


class Evil:
    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return os.mkdir, (self.trace,)


def checked(tmp_path, folder, saelens_folder, capsys):
    """The exit code of `check` on a folder, and what it says."""
    sae = saelens_folder(d_in=32, hook_name="blocks.1.hook_resid_pre")
    (tmp_path / "a.txt").write_text(" ".join(f"w{1 + i % 96}" for i in range(60)))
    (tmp_path / "s.yaml").write_text(
        f"suite: s\nmodel: {{use: huggingface, path: {folder}}}\nsaes: [{{use: saelens, path: {sae}}}]\n"
        f"metrics: [l0]\ndata: {{use: text, path: {tmp_path / 'a.txt'}, context: 8, sequences: 1}}\n"
    )
    capsys.readouterr()
    return cli.main(["check", str(tmp_path / "s.yaml")]), capsys.readouterr().err.strip()


def test_check_refuses_a_pickle_that_would_run_code(tmp_path, saelens_folder, capsys):
    folder = tiny_folder(tmp_path / "model")
    pickled(folder, {"transformer.wte.weight": Evil(str(tmp_path / "ran"))})
    code, said = checked(tmp_path, folder, saelens_folder, capsys)
    assert code == 2
    assert "pickle with more than tensors, which is not run" in said
    assert len(said.splitlines()) == 1
    assert not (tmp_path / "ran").exists()


def test_check_refuses_weights_that_are_damaged_or_of_another_config(tmp_path, saelens_folder, capsys):
    folder = pickled(tiny_folder(tmp_path / "model"))
    assert checked(tmp_path, folder, saelens_folder, capsys)[0] == 0
    file = folder / "pytorch_model.bin"
    flipped(file, next(iter(members(file, "/data/"))))
    code, said = checked(tmp_path, folder, saelens_folder, capsys)
    assert code == 2
    assert f"{file}: damaged (the checksum of " in said
    other = tiny_folder(tmp_path / "other")
    weights = load_file(other / "model.safetensors")
    weights.pop("transformer.h.1.mlp.c_fc.weight")
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    code, said = checked(tmp_path, other, saelens_folder, capsys)
    assert code == 2
    assert "lack transformer.h.1.mlp.c_fc.weight" in said


@pytest.mark.parametrize("name", ["../outside.safetensors", "/etc/hostname", "..", "a/b.safetensors", "a\\b.safetensors", "", 3])  # fmt: skip
def test_an_index_names_files_of_its_own_folder_alone(tmp_path, name):
    folder = tiny_folder(tmp_path / "model")
    (folder / "model.safetensors").rename(tmp_path / "outside.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"transformer.wte.weight": name}}))
    with pytest.raises(SaevalError, match=r"which is not a file in its folder; save the model again$"):
        HuggingFace().spec({"path": str(folder)})


def test_a_config_does_not_choose_the_file_of_weights(tmp_path):
    folder = tiny_folder(tmp_path / "model")
    (folder / "other.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    raw = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**raw, "transformers_weights": "other.safetensors"}))
    with pytest.raises(SaevalError, match=r"names its weights \('transformers_weights'\); remove that key"):
        HuggingFace().spec({"path": str(folder)}).identity()
