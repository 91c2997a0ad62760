"""Files of `torch.save` that are damaged, or that ask for more than data: refused by every loader, nothing executed."""

from __future__ import annotations

import pickle
import sys
import types
from pathlib import Path

import pytest
import torch

from checkpoints import suite
from saeval.base.errors import SaevalError
from saeval.testing.claims import every, some
from torch_files import LOADERS


class Touch:
    """A pickle that leaves a trace where it is executed."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self):
        return Path.touch, (self.trace,)


def refused(calls, path: Path, sentence: str) -> None:
    for call in some(calls):
        with pytest.raises(SaevalError, match=sentence) as raised:
            call()
        assert str(path) in str(raised.value)
        assert "\n" not in str(raised.value)


def test_nothing_is_executed(loader, tmp_path):
    calls, state, path = loader
    trace = tmp_path / "executed"
    torch.save({**state, "extra": Touch(trace)}, path)
    torch.load(path, weights_only=False)
    assert trace.exists()  # the payload does work where it is unpickled
    trace.unlink()
    refused(calls, path, "holds more than tensors .*, which could run code from the file")
    path.write_bytes(pickle.dumps({**state, "extra": Touch(trace)}, protocol=2))
    refused(calls, path, "sae.pt: ")
    assert not trace.exists()


def test_files_that_need_a_librarys_classes(loader, monkeypatch):
    """As ai-safety-foundation/sparse_autoencoder saves its SAEs: a pydantic object around the state dict."""
    calls, state, path = loader
    name = "sparse_autoencoder.autoencoder.model"
    for part in ("sparse_autoencoder", "sparse_autoencoder.autoencoder", name):
        monkeypatch.setitem(sys.modules, part, types.ModuleType(part))
    whole = type("SparseAutoencoderState", (), {"__module__": name})
    sys.modules[name].SparseAutoencoderState = whole
    held = whole()
    held.state_dict = state
    torch.save(held, path)
    refused(
        calls,
        path,
        rf"it names {name}.SparseAutoencoderState\), .*; if you trust it, load it yourself and save its state_dict",
    )


def test_tensors_that_are_not_plain(loader):
    calls, state, path = loader
    name = next(key for key, value in state.items() if value.ndim == 2)
    for kind, odd in {"sparse": state[name].to_sparse(), "without values": state[name].to("meta")}.items():
        torch.save({**state, name: odd}, path)
        refused(calls, path, f"expected a plain tensor in '{name}', found one that is {kind}")


def test_damaged_files(loader):
    calls, state, path = loader
    torch.save(state, path)
    content = path.read_bytes()
    for call in calls:
        call()
    for broken in (content[:-200], content[: len(content) // 2], b"", b"not a file of torch"):
        path.write_bytes(broken)
        refused(calls, path, r"truncated or not a torch file|holds more than tensors")
    torch.save(list(state.values()), path)
    refused(calls, path, "expected a dict of tensors, found list")
    path.unlink()
    refused(calls, path, "no such file; check 'path'")


def test_files_of_before_torch_1_6(loader):
    calls, state, path = loader
    torch.save(state, path, _use_new_zipfile_serialization=False)
    for call in calls:
        call()


def test_loaded_weights_are_not_those_on_disk(loader):
    """A file that is overwritten during a run does not change what runs."""
    calls, state, path = loader
    torch.save(state, path)
    sae = calls[1]()
    before = {name: tensor.clone() for name, tensor in sae.weights.items()}
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.write(b"\xff" * size)
    assert every(torch.equal(sae.weights[name], tensor) for name, tensor in before.items())


def test_info_reads_no_weights(loader):
    calls, state, path = loader
    for tensor in state.values():
        if isinstance(tensor, torch.Tensor) and tensor.is_floating_point():
            tensor.fill_(torch.nan)
    torch.save(state, path)
    calls[0]()
    with pytest.raises(SaevalError, match="NaN or infinite values"):
        calls[1]()


@pytest.mark.parametrize("use", LOADERS)
def test_a_width_that_is_not_the_models(tmp_path, use):
    _, extra, state = LOADERS[use]
    torch.save(state(), tmp_path / "sae.pt")
    entry = {"use": use, "path": str(tmp_path / "sae.pt"), "hook_name": "blocks.1.mlp.hook_post", **extra}
    with pytest.raises(
        SaevalError, match=r"the SAE takes 32 inputs, but blocks.1.mlp.hook_post of model .* is 128 wide"
    ):
        suite(tmp_path, [entry])
