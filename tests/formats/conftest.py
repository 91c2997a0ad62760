"""Fixtures of the tests of formats."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from huggingface_hub import constants

from saelens_files import COMMIT
from torch_files import LOADERS


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """Makes folders of repositories in a cache of the hub; no network is asked for."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)

    def folder(repo: str, path: str, commit: str = COMMIT) -> Path:
        root = tmp_path / "hub" / f"models--{repo.replace('/', '--')}"
        (root / "refs").mkdir(parents=True, exist_ok=True)
        (root / "refs" / "main").write_text(commit)
        found = root / "snapshots" / commit / path
        found.mkdir(parents=True, exist_ok=True)
        return found

    return folder


@pytest.fixture(params=LOADERS)
def loader(request, tmp_path):
    """A loader's calls on one file, and the state dict that it would take."""
    cls, extra, state = LOADERS[request.param]
    reference = {"path": str(tmp_path / "sae.pt"), **extra}
    calls = [lambda: cls().info(reference), lambda: cls().load(reference, "cpu", torch.float32)]
    return calls, state(), tmp_path / "sae.pt"
