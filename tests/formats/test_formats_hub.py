"""Checkpoints on a hub: what was downloaded before is found offline, what was not is one sentence."""

from __future__ import annotations

import shutil

import pytest
from huggingface_hub.utils import filter_repo_objects

import saeval_testbed
from saeval import SaevalError
from saeval.registry.discovery import Plugins
from saeval.registry.registry import Registry
from saeval_formats.dictionary_learning import DictionaryLearning
from saeval_formats.reference import LocalLoader
from saeval_formats.saelens import SAELens

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
    folders = SAELens().expand({"repo": "org/saes", "path": "layer_2", "sites": "relu-*"})
    assert {site: one["path"] for site, one in folders.items()} == {
        name: str(hub / "layer_2" / name) for name in ("relu-1", "relu-2")
    }
    found = expand(repo="org/saes", path="layer_*/relu-*", hook_name="blocks.{1}.hook_resid_pre")
    assert list(found) == ["2/1", "2/2"]
    assert found["2/2"] == {"path": str(hub / "layer_2/relu-2"), "hook_name": "blocks.2.hook_resid_pre"}


HELD = (
    "README.md", "e2e_layer_2.pt", "e2e_layer_2.yaml", "other_layer_2.yaml", "final_config.yaml", "config.json",
    "run/config.json", "run/trainer_0/ae.pt", "run/trainer_0/config.json", "run/trainer_0/checkpoints/ae_9.pt",
    "sp/config.json", "sp/layers.3/cfg.json", "sp/layers.3/sae.safetensors", "sp/layers.4/sae.safetensors",
    "sp/layers.4/seed1/sae.safetensors", "gs/layer_9/config.json", "gs/layer_9/params.safetensors",
)  # fmt: skip


@pytest.mark.parametrize(
    ("use", "path", "needed"),
    [
        ("apollo", "e2e_layer_*.pt", {"e2e_layer_2.pt", "e2e_layer_2.yaml", "final_config.yaml"}),
        ("dictionary_learning", "run/trainer_0/ae.pt", {"run/trainer_0/ae.pt", "run/trainer_0/config.json"}),
        ("dictionary_learning", "run/trainer_*/checkpoints/ae_9.pt", {"run/trainer_0/checkpoints/ae_9.pt", "run/trainer_0/config.json"}),
        ("sparsify", "sp/layers.3", {"sp/layers.3/cfg.json", "sp/layers.3/sae.safetensors", "sp/config.json"}),
        ("sparsify", "sp/layers.4/seed*", {"sp/layers.4/seed1/sae.safetensors", "sp/config.json"}),
        ("gemma_scope", "gs/layer_9/params.safetensors", {"gs/layer_9/params.safetensors", "gs/layer_9/config.json"}),
        ("openai", "e2e_layer_2.pt", {"e2e_layer_2.pt"}),
    ],
)  # fmt: skip
def test_what_is_read_beside_a_file_is_downloaded_too(monkeypatch, tmp_path, use, path, needed):
    def snapshot_download(repo, revision, allow_patterns):
        for name in filter_repo_objects(HELD, allow_patterns=allow_patterns):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).touch()
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    found = Registry(Plugins()).loaders[use]().expand({"repo": "org/saes", "path": path})
    assert len(found) == 1
    here = {str(file.relative_to(tmp_path)) for file in tmp_path.rglob("*") if file.is_file()}
    assert needed <= here <= needed | {"config.json", "run/config.json"}


@pytest.mark.parametrize(
    ("reference", "said"),
    [
        ({"repo": "org/other", "path": "x"}, "has not been downloaded and this run is offline"),
        ({"repo": "org/saes", "path": "x*"}, "nothing matches"),
        ({"repo": "no such name!", "path": "x"}, "is not a valid repository name"),
        ({"repo": "org/saes", "path": "../x"}, "must be inside it"),
        ({"repo": "org/saes", "path": "/etc"}, "must be inside it"),
        ({"repo": 3, "path": "x"}, "'repo' of a hub checkpoint must be text, found 3"),
        ({"revision": "main", "path": "x"}, "'repo' of a hub checkpoint must be text, found None"),
    ],
)
def test_what_cannot_be_had_is_one_sentence_at_once(hub, reference, said, waits):
    with pytest.raises(SaevalError) as raised:
        expand(**reference)
    assert said in str(raised.value)
    assert sum(waits) < 1
