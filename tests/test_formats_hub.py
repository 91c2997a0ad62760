"""Checkpoints on a hub: what was downloaded before is found offline, what was not is one sentence."""

from __future__ import annotations

import shutil
import time

import pytest

import saeval_testbed
from saeval import SaevalError
from saeval_formats.dictionary_learning import DictionaryLearning
from saeval_formats.reference import LocalLoader

SAES = saeval_testbed.WEIGHTS / "saes"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """The hub's cache with one repository, in the layout that huggingface_hub writes, and no network."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    repo = tmp_path / "models--org--saes"
    commit = "0" * 39 + "1"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text(commit)
    for name in ("relu-1", "relu-2", "topk-8"):
        shutil.copytree(SAES / name, repo / "snapshots" / commit / "layer_2" / name)
    return repo / "snapshots" / commit


class Local(DictionaryLearning):
    """Any format of files: expanding is the same for all."""

    name = "local"


def expand(**reference):
    loader: LocalLoader = Local()
    return loader.expand(reference)


def test_a_path_in_a_repository_is_found_where_it_lies(hub):
    assert expand(repo="org/saes", path="layer_2/relu-1") == {"": {"path": str(hub / "layer_2/relu-1")}}
    found = expand(repo="org/saes", path="layer_*/relu-*", hook_name="blocks.{1}.hook_resid_pre")
    assert list(found) == ["2/1", "2/2"]
    assert found["2/2"] == {"path": str(hub / "layer_2/relu-2"), "hook_name": "blocks.2.hook_resid_pre"}


@pytest.mark.parametrize(
    ("reference", "said"),
    [
        ({"repo": "org/other", "path": "x"}, "was not downloaded before and this run is offline"),
        ({"repo": "org/saes", "path": "x*"}, "nothing matches"),
        ({"repo": "no such name!", "path": "x"}, "is no name of a hub repository"),
        ({"repo": "org/saes", "path": "../x"}, "must lie within it"),
        ({"repo": "org/saes", "path": "/etc"}, "must lie within it"),
        ({"repo": 3, "path": "x"}, "'repo' of a hub checkpoint is text, found 3"),
        ({"revision": "main", "path": "x"}, "'repo' of a hub checkpoint is text, found None"),
    ],
)
def test_what_cannot_be_had_is_one_sentence_at_once(hub, reference, said):
    started = time.monotonic()
    with pytest.raises(SaevalError) as raised:
        expand(**reference)
    assert said in str(raised.value)
    assert time.monotonic() - started < 5
