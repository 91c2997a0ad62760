"""Two suites of one name and one results folder."""

from __future__ import annotations

import shutil

import pytest
import yaml

from saeval import cli, run
from saeval.base.errors import SuiteError
from saeval.results.store import Store

BODY = {
    "suite": "mine", "model": "testbed", "data": {"use": "python-stdlib", "context": 16, "sequences": 4},
    "saes": ["testbed/relu-3"], "metrics": ["l0"],
}  # fmt: skip


def written(path, **changes):
    path.write_text(yaml.safe_dump({**BODY, **changes}))
    return path


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    folder = tmp_path_factory.mktemp("first")
    run(written(folder / "a.yaml"), out=folder / "out")
    return folder


@pytest.fixture
def folder(first, tmp_path):
    """Results of `a.yaml`, which stands in the folder that `first` is."""
    shutil.copytree(first / "out", tmp_path / "out")
    return tmp_path


def test_another_suite_of_the_name_is_refused_before_anything_runs(first, folder, capsys):
    other = written(folder / "b.yaml", metrics=["density"])
    before = (folder / "out" / "mine" / "manifest.json").read_bytes()
    for words in (["run", str(other)], ["check", str(other)], ["run", str(other), "--limit", "1"]):
        assert cli.main([*words, "--out", str(folder / "out")]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"{other}:")
        assert f"another suite, {first / 'a.yaml'}, is named 'mine' and has its results in" in line
        assert line.endswith("rename one of them, or choose another --out")
    with pytest.raises(SuiteError, match="another suite"):
        run(other, out=folder / "out")
    assert (folder / "out" / "mine" / "manifest.json").read_bytes() == before


def test_two_suites_of_one_name_in_one_command_are_refused(tmp_path, capsys):
    a, b = written(tmp_path / "a.yaml"), written(tmp_path / "b.yaml", metrics=["density"])
    assert cli.main(["run", str(a), str(b), "--out", str(tmp_path / "out")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{b}:")
    assert not (tmp_path / "out").exists()


def test_an_edited_a_copied_and_a_moved_suite_run_without_ceremony(folder):
    a = written(folder / "a.yaml")  # a copy of the one that ran
    assert run(a, out=folder / "out").forward_passes == 0
    written(a, metrics=["l0", "density"])  # edited: the copy is the owner now
    run(a, out=folder / "out")
    assert len(Store(folder / "out" / "mine").manifest()["cells"]) == 2
    a.rename(folder / "moved.yaml")
    written(folder / "moved.yaml", metrics=["density"])
    run(folder / "moved.yaml", out=folder / "out")
    assert len(Store(folder / "out" / "mine").manifest()["cells"]) == 1


def test_suites_given_as_mappings_have_no_file_to_compare(folder):
    run({**BODY, "metrics": ["density"]}, out=folder / "out")
    assert Store(folder / "out" / "mine").manifest()["file"] is None
