"""The complete plugins in docs/plugins.md run as they stand."""

from __future__ import annotations

import re
import types
from pathlib import Path

import numpy as np
import pytest
import torch

from saeval import SaevalError
from saeval.interfaces.documentation import documented_values
from saeval.testing import (
    TinyModel,
    TinySAE,
    check_metric,
    evaluate,
    evaluate_tiny,
    register_rows,
    tiny_plugins,
    tiny_tokens,
)
from saeval.testing.claims import some

PAGE = Path(__file__).parents[2] / "docs" / "plugins.md"


HOOK = "blocks.1.hook_resid_pre"


def example(word, **names):
    """A module of the one block of Python that has a word."""
    (code,) = [block for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S) if word in block]
    module = types.ModuleType("example")
    vars(module).update(names)
    exec(compile(code, "example.py", "exec", dont_inherit=True), vars(module))
    return module


@pytest.fixture
def metric():
    return example("[Errors]").Errors


def test_every_value_has_an_error_and_a_direction(metric):
    (result,) = evaluate_tiny(["errors"], metric)
    assert list(result.values) == ["norm", "share", "norm_p95", "active_p50"]
    for record in some(result.values.values()):
        assert record["stderr"] is not None
        assert record["ci95"][0] <= record["value"] <= record["ci95"][1]
    assert [record["better"] for record in result.values.values()] == ["lower", "lower", "lower", None]
    assert result.values["norm"]["value"] < result.values["norm_p95"]["value"]


def test_it_passes_the_check_of_metrics(metric):
    check_metric(metric)


def test_its_documentation_covers_its_values(metric):
    assert {name for value in documented_values(metric) for name in value.names} == set(metric.value_names)


def test_its_own_test_passes(metric):
    example("def test_half_is_missing", Errors=metric).test_half_is_missing()


@pytest.fixture
def archive(tmp_path):
    """A file of the format `npz`, and the SAE in it: `TinySAE` subtracts b_dec, the format does not."""
    sae = TinySAE()
    sae.b_dec = torch.linspace(-0.5, 0.5, 16)
    weights = {"W_enc": sae.W_enc, "b_enc": sae.b_enc - sae.b_dec @ sae.W_enc, "W_dec": sae.W_dec, "b_dec": sae.b_dec}
    np.savez(tmp_path / "sae.npz", **{name: tensor.numpy() for name, tensor in weights.items()})
    return tmp_path / "sae.npz", sae


def test_the_format_loads_what_was_saved(archive):
    path, sae = archive
    plugins = tiny_plugins()
    plugins.add(example("[Npz]"), "npz")
    entry = {"use": "npz", "path": str(path), "hook_name": HOOK, "name": "file"}
    results = evaluate(
        model=TinyModel(), saes=[entry, (sae, HOOK)], data=register_rows("npz", tiny_tokens()), plugins=plugins,
        metrics=["l0", "reconstruction"], allow=("*",),
    )  # fmt: skip
    names = {result.subject for result in results}
    assert len(names) == 2
    (live,) = names - {"file"}
    for name in ("l0.l0", "reconstruction.mse", "reconstruction.cosine"):
        assert results.value(name, "file")["value"] == pytest.approx(results.value(name, live)["value"], rel=1e-5)
    assert 0 < results.value("l0.l0", "file")["value"] < 32


def test_the_format_refuses_other_files_in_one_sentence(archive):
    path, _ = archive
    loader = example("[Npz]").Npz()
    arrays = dict(np.load(path))
    np.savez(path, **{**arrays, "W_dec": arrays["W_enc"]})
    with pytest.raises(SaevalError, match=r"sae\.npz: W_enc is .* expected \[d_in, d_sae\]"):
        loader.load({"path": str(path)}, "cpu", torch.float32)
    path.write_bytes(b"no archive")
    with pytest.raises(SaevalError, match=r"sae\.npz: cannot be read as \.npz with b_enc, b_dec"):
        loader.info({"path": str(path)})
    with pytest.raises(SaevalError, match="unknown parameter 'hook'"):
        loader.info({"path": str(path), "hook": HOOK})
