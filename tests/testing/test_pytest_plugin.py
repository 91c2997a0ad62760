"""The fixtures that installing saeval gives to pytest, and that they cost nothing where they are not used."""

from __future__ import annotations

import subprocess
import sys

from saeval.testing import TinyModel, TinyPairs, TinySAE

CHILD = """
import sys
import pytest
code = pytest.main(["-q", "-p", "no:cacheprovider", sys.argv[1]])
assert "saeval.testing.pytest_plugin" in sys.modules
print([name for name in ("torch", "saeval.api", "saeval.plugin") if name in sys.modules])
sys.exit(code)
"""


def test_the_fixtures_are_what_they_are_named(
    tiny_model, tiny_reward_model, tiny_sae, tiny_rows, tiny_pairs, tiny_labelled_rows
):
    assert (type(tiny_model), type(tiny_sae), type(tiny_pairs)) == (TinyModel, TinySAE, TinyPairs)
    assert (tiny_model.kind, tiny_reward_model.kind) == ("causal", "reward")
    assert len(tiny_rows) == len(tiny_labelled_rows) == 24
    labels = tiny_labelled_rows.batch(range(24), "cpu").supplied["labels"]["half"]
    high = tiny_labelled_rows.batch(range(24), "cpu").tokens.numpy().min(1) >= 25
    assert (labels == "high").tolist() == high.tolist()


def test_a_project_without_saeval_does_not_import_torch(tmp_path):
    (tmp_path / "test_other.py").write_text("def test_it():\n    pass\n", encoding="utf-8")
    command = [sys.executable, "-c", CHILD, str(tmp_path)]
    child = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, cwd=tmp_path)
    assert child.returncode == 0, child.stdout + child.stderr
    assert child.stdout.splitlines()[-1] == "[]"
