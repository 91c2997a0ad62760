"""Fixtures of the tests of models."""

from __future__ import annotations

import pytest

from saeval.testing.architectures import tiny_folder, tiny_model
from saeval_models.huggingface import HuggingFace


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    """A family's tiny model, saved and loaded by the adapter, beside the same weights in plain transformers."""
    made = {}

    def load(family, kind="causal"):
        if (family, kind) not in made:
            folder = tiny_folder(tmp_path_factory.mktemp(family), family, kind)
            spec = HuggingFace().spec({"path": str(folder)})
            made[family, kind] = spec, spec.load("cpu"), tiny_model(family, kind)
        return made[family, kind]

    return load
