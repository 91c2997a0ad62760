"""What a model's config says is found once and kept, until something that it depends on changes."""

from __future__ import annotations

import json
import shutil

import pytest

from saeval.cli import main
from saeval.testing.claims import some
from saeval_models.huggingface import PretrainedSpec
from saeval_testbed import WEIGHTS


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A copy of the testbed's model and a suite that has it, with a cache of their own."""
    monkeypatch.setenv("SAEVAL_CACHE", str(tmp_path / "cache"))
    shutil.copytree(WEIGHTS / "model", tmp_path / "model")
    text = f"""
suite: small
model: {{use: huggingface, path: {tmp_path / "model"}}}
data: {{texts: ["def one():\\n  return 1\\n", "import os\\nprint(os)\\n", "for x in y:\\n  x()\\n"], context: 8}}
saes: [testbed/relu-5]
metrics: [l0]
"""
    (tmp_path / "suite.yaml").write_text(text, encoding="utf-8")
    return tmp_path


def test_a_model_is_built_without_values_once_and_again_where_its_entry_or_its_config_changed(
    folder, monkeypatch, capsys
):
    built, found = [], PretrainedSpec._outlined
    monkeypatch.setattr(PretrainedSpec, "_outlined", lambda spec: built.append(spec) or found(spec))

    def checked():
        assert main(["check", str(folder / "suite.yaml"), "--out", str(folder / "out")]) == 0
        lines = [line for line in capsys.readouterr().out.splitlines() if "time:" not in line]
        return len(built), lines

    first = checked()
    assert first[0] == 1
    assert checked() == first
    for damage in ("", "[" * 100_000, '{"made": {"hooks": {}, "twins": {}, "parameters": 1}, "sha256": "0"}'):
        for entry in some((folder / "cache" / "models").glob("*.json")):
            entry.write_text(damage, encoding="utf-8")
        before = len(built)
        assert checked() == (before + 1, first[1])
    config = json.loads((folder / "model" / "config.json").read_text(encoding="utf-8"))
    (folder / "model" / "config.json").write_text(
        json.dumps({**config, "n_head": config["n_head"] // 2}), encoding="utf-8"
    )
    before = len(built)
    assert checked()[0] == before + 1
