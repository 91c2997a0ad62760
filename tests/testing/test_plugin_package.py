"""The example of a package with a plugin, in `examples/plugin`, is found by its entry point and passes its own tests."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "examples" / "plugin"


@pytest.mark.slow
def test_it_passes_its_own_tests(tmp_path):
    folder = shutil.copytree(PACKAGE, tmp_path / "plugin")
    project = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    metadata = folder / "saeval_concentration-0.1.0.dist-info"  # what an installation writes
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Name: {project['name']}\nVersion: {project['version']}\n", encoding="utf-8")
    points = "".join(f"{name} = {module}\n" for name, module in project["entry-points"]["saeval"].items())
    (metadata / "entry_points.txt").write_text(f"[saeval]\n{points}", encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "error", "tests"]
    env = {**os.environ, "PYTHONPATH": str(folder), "HF_HUB_OFFLINE": "1"}
    child = subprocess.run(command, capture_output=True, text=True, env=env, timeout=600, check=False, cwd=folder)
    assert child.returncode == 0, child.stdout + child.stderr
    assert "3 passed" in child.stdout
