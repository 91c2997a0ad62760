"""Shared fixtures. The token and hash caches of tests are their own, and no test draws from a seed of its own making."""

from __future__ import annotations

import json
import os

import pytest
import torch
from hypothesis import settings
from safetensors.torch import save_file

# The same examples at every run: a failure in CI is one that the change brought. `make fuzz` looks for new ones.
settings.register_profile("ci", derandomize=True, deadline=None, database=None)
settings.register_profile("fuzz", derandomize=False, deadline=None, database=None, print_blob=True)
settings.load_profile("ci")
torch.set_num_threads(1)  # for tensors as small as those of tests, threads only wait for each other


def pytest_collection_modifyitems(items):
    """Files with slow tests first: a worker that begins the longest last keeps the other waiting."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(autouse=True)
def _seeded():
    """Whichever tests ran before, in whichever worker."""
    torch.manual_seed(0)


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory):
    """One for all workers of pytest-xdist, so that the same rows are tokenised once."""
    base = tmp_path_factory.getbasetemp()
    os.environ["SAEVAL_CACHE"] = str((base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "cache")


@pytest.fixture(scope="session", autouse=True)
def _unsynced():
    """Writes need not reach the disk: no test cuts the power, and each sync takes milliseconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", lambda handle: None)
        yield


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    """A cache of this test alone."""
    monkeypatch.setenv("SAEVAL_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def waits(monkeypatch):
    """The seconds that anything wanted to sleep for, which nothing does; a busy machine's clock would prove nothing."""
    wanted = []
    monkeypatch.setattr("time.sleep", wanted.append)
    return wanted


@pytest.fixture
def saelens_folder(tmp_path):
    """Writes a random SAE as SAELens does; returns its folder."""

    def write(d_in=128, d_sae=64, seed=0, hook_name="blocks.2.hook_resid_pre", name=None):
        generator = torch.Generator().manual_seed(seed)
        folder = tmp_path / (name or f"sae-{d_in}-{d_sae}-{seed}")
        folder.mkdir(exist_ok=True)
        decoder = torch.randn(d_sae, d_in, generator=generator)
        decoder /= decoder.norm(dim=1, keepdim=True)
        weights = {
            "W_enc": decoder.T.contiguous(),
            "b_enc": torch.zeros(d_sae),
            "W_dec": decoder,
            "b_dec": torch.zeros(d_in),
        }
        save_file(weights, folder / "sae_weights.safetensors")
        config = {
            "architecture": "standard",
            "d_in": d_in,
            "d_sae": d_sae,
            "dtype": "float32",
            "device": "cpu",
            "apply_b_dec_to_input": True,
            "normalize_activations": "none",
            "reshape_activations": "none",
            "metadata": {"hook_name": hook_name},
        }
        (folder / "cfg.json").write_text(json.dumps(config))
        return folder

    return write
