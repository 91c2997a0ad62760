"""Damaged checkpoints: never a traceback, never a wrong load, nothing executed."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from damage import DEFAULTED, MEASURED, ODD, answer, tensors_of, write_tensors
from examples import EXAMPLES
from saeval import SaevalError
from saeval.base.errors import Problem

OPTIONAL = {"circuit_tracer-" + kind for kind in ("skip_transcoder", "jumprelu_transcoder", "jumprelu_skip_transcoder")}
"""Examples with tensors that only the tensors tell: without one, the file is another SAE, and as good a file."""
PLAIN = [
    e for e in EXAMPLES
    if "norm" not in e.architecture and e.label not in OPTIONAL and e.architecture not in ("temporal", "matching_pursuit")
]  # fmt: skip
BY_LABEL = {e.label: e for e in PLAIN}
GONE = object()


class Evil:
    """Leaves a mark if it is ever unpickled for real."""

    def __init__(self, mark: str) -> None:
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (self.mark,)


class Written(dict):
    """Examples by label; hypothesis would print every tensor of them."""

    def __repr__(self) -> str:
        return "written"


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Every example once, with the right answer of its loader."""
    made = Written()
    for example in PLAIN:
        folder = tmp_path_factory.mktemp("example") / example.format
        folder.mkdir()
        reference = example.write(folder)
        made[example.label] = (folder, reference, answer(example, reference))
    return made


def damaged_tensors(path: Path, draw: Any) -> None:
    """One tensor missing, too many, renamed, transposed, cut, of integers, or with a value that is no number."""
    tensors = tensors_of(path)
    name = draw(st.sampled_from(sorted(k for k, v in tensors.items() if isinstance(v, torch.Tensor) and v.ndim)))
    tensor = tensors[name]
    kind = draw(st.sampled_from(["drop", "add", "rename", "transpose", "cut", "integers", "nan", "inf", "unsqueeze"]))
    if kind == "drop":
        del tensors[name]
    elif kind == "add":
        tensors["something_else"] = torch.ones(3)
    elif kind == "rename":
        tensors[name + "s"] = tensors.pop(name)
    elif kind == "transpose":
        square = tensor.ndim == 2 and tensor.shape[0] == tensor.shape[1]  # which nothing can tell from its transpose
        tensors[name] = tensor.T if tensor.ndim == 2 and not square else tensor[None]
    elif kind == "cut":
        tensors[name] = tensor.narrow(draw(st.integers(0, tensor.ndim - 1)), 0, 1)
    elif kind == "integers":
        tensors[name] = tensor.to(torch.int32)
    elif kind == "unsqueeze":
        tensors[name] = tensor[..., None]
    else:
        changed = tensor.clone().float()
        changed.view(-1)[draw(st.integers(0, changed.numel() - 1))] = float(kind)
        tensors[name] = changed
    write_tensors(path, tensors)


def damaged_config(path: Path, draw: Any) -> tuple[str, Any, Any]:
    """One value of another kind, or a key gone; returns the key, what it had and what it has now."""
    read, dump = (json.loads, json.dumps) if path.suffix == ".json" else (yaml.safe_load, yaml.safe_dump)
    config = read(path.read_text())
    place = config
    while True:
        key = draw(st.sampled_from(sorted(place)))
        if not isinstance(place[key], dict) or not place[key] or draw(st.booleans()):
            break
        place = place[key]
    gone, before = draw(st.booleans()), place[key]
    if gone:
        del place[key]
    else:
        place[key] = draw(st.sampled_from(ODD))
    path.write_text(dump(config))
    return key, before, place.get(key, GONE)


def damaged_bytes(path: Path, draw: Any) -> None:
    content = path.read_bytes()
    kind = draw(st.sampled_from(["cut", "flip", "noise", "empty"]))
    if kind == "cut":
        content = content[: draw(st.integers(0, len(content) - 1))]
    elif kind == "flip":
        where = draw(st.integers(0, min(len(content), 2000) - 1))
        content = content[:where] + bytes([content[where] ^ draw(st.integers(1, 255))]) + content[where + 1 :]
    else:
        content = draw(st.binary(max_size=200)) if kind == "noise" else b""
    path.write_bytes(content)


@pytest.mark.slow
@settings(max_examples=800, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_checkpoint_is_one_sentence_or_reads_the_same(written, data):
    example = BY_LABEL[data.draw(st.sampled_from(sorted(BY_LABEL)), label="example")]
    folder, reference, (acts, decoded) = written[example.label]
    with tempfile.TemporaryDirectory() as place:
        copy = Path(place) / folder.name
        shutil.copytree(folder, copy)
        moved = {**reference, "path": str(reference["path"]).replace(str(folder), str(copy))}
        files = sorted(p for p in copy.rglob("*") if p.is_file())
        path = data.draw(st.sampled_from(files), label="file")
        how = data.draw(st.sampled_from(["content", "bytes", "gone", "code"]), label="how")
        mark, key, before, value = Path(place) / "executed", "", None, None
        if how == "gone":
            path.unlink()
        elif how == "bytes":
            damaged_bytes(path, data.draw)
        elif how == "code":
            torch.save({"weight": Evil(str(mark))}, path)
        elif path.suffix in (".json", ".yaml"):
            key, before, value = damaged_config(path, data.draw)
        else:
            damaged_tensors(path, data.draw)
        told = ""
        try:
            found = answer(example, moved)
        except SaevalError as error:
            told = str(Problem(str(error)))
        event(f"{how}: {'refused' if told else 'read'}")
        if told:
            assert "\n" not in told
            assert str(copy) in told, "the sentence names no file"
        else:
            same = torch.equal(found[0], acts) and torch.allclose(found[1], decoded, atol=1e-5)
            # A byte of a weight may have changed; nothing can know that.
            defaulted = value is GONE and key in DEFAULTED
            measured = key in MEASURED and isinstance(value, int | float) and value > 0
            # A switch set the other way is another SAE, and as good a config.
            switched = isinstance(before, bool) and isinstance(value, bool)
            right = same or how == "bytes" or defaulted or measured or switched
            assert right, f"a wrong load ({how}, {path.name}, {key}: {value})"
        assert not mark.exists(), "the checkpoint's code was executed"
