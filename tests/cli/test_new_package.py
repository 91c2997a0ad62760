"""`saeval new KIND NAME`: the package that it writes installs, is found by its entry point, and passes its own test."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import tomllib

import pytest

from saeval import cli
from saeval.cli.new_package import KINDS
from saeval.testing.claims import every, some

CHILD = """
import sys
import pytest
*packages, names = sys.argv[1:]
code = pytest.main(["-q", "-p", "no:cacheprovider", "--import-mode=importlib", "-W", "error", *packages])
from saeval.cli import main
sys.exit(code or max(main(["show", name]) for name in names.split()))
"""


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A package of each kind, by kind; the names begin with `my-`."""
    folder = tmp_path_factory.mktemp("new")
    for kind in KINDS:
        assert cli.main(["new", kind, f"my-{kind}", "--to", str(folder / kind)]) == 0
    return folder


def installed(folder, kind):
    """Make a package importable as an editable install does: a folder on the path with the metadata of its project."""
    project = tomllib.loads((folder / kind / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    metadata = folder / kind / f"my_{kind}-{project['version']}.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Name: {project['name']}\nVersion: {project['version']}\n", encoding="utf-8")
    points = "".join(f"{name} = {module}\n" for name, module in project["entry-points"]["saeval"].items())
    (metadata / "entry_points.txt").write_text(f"[saeval]\n{points}", encoding="utf-8")


def test_each_package_is_found_by_its_entry_point_and_passes_its_test(written):
    for kind in KINDS:
        installed(written, kind)
    path = os.pathsep.join(str(written / kind) for kind in KINDS)
    names = " ".join(f"my{'-' if kind == 'suite' else '_'}{kind}" for kind in KINDS)
    command = [sys.executable, "-c", CHILD, *(str(written / kind / "tests") for kind in KINDS), names]
    env = {**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1"}
    child = subprocess.run(command, capture_output=True, text=True, env=env, timeout=600, check=False, cwd=written)
    assert child.returncode == 0, child.stdout + child.stderr
    assert "passed" in child.stdout


def test_the_metric_is_short(written):
    tree = ast.parse((written / "metric" / "my_metric" / "__init__.py").read_text(encoding="utf-8"))
    (metric,) = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    assert metric.end_lineno - metric.lineno < 25


def test_the_packages_declare_versions_of_saeval(written):
    projects = [tomllib.loads((written / kind / "pyproject.toml").read_text(encoding="utf-8")) for kind in some(KINDS)]
    assert every(project["project"]["dependencies"] == ["saeval>=0.1,<0.2"] for project in projects)


@pytest.mark.parametrize(
    ("kind", "name", "said"),
    [
        ("metric", "My Metric", "'My Metric' cannot be the name of a metric and of its Python module; use lower-case"),
        ("metric", "class", "'class' cannot be the name of a metric"),
        ("metric", "../ce", "'../ce' cannot be the name of a metric"),
        ("metric", "ce", "there is a metric 'ce' already (saeval:fidelity"),
        ("suite", "null-world", "there is a suite 'null-world' already (saeval:suites"),
        ("control", "torch", "there is a Python module 'torch' already, which the package would hide"),
    ],
)
def test_a_bad_name_is_one_sentence(kind, name, said, tmp_path, capsys):
    assert cli.main(["new", kind, name, "--to", str(tmp_path / "new")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(said)
    assert not (tmp_path / "new").exists()


def test_an_existing_folder_is_refused(tmp_path, capsys):
    assert cli.main(["new", "metric", "my-own", "--to", str(tmp_path)]) == 2
    assert capsys.readouterr().err == f"{tmp_path} exists; choose another name, or another folder with --to\n"
