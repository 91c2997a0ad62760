"""Names and patterns of names: a name that is there is meant by that name, whatever signs it has."""

from __future__ import annotations

import pytest

import saeval
from saeval.api import prepare
from saeval.base.names import names_matching, names_matching_any
from saeval.base.run_options import RunOptions
from saeval.engine.preflight import warnings
from saeval.registry.discovery import Plugins
from saeval.registry.registry import Registry
from saeval.testing.claims import every
from saeval_data.files import matching as files_matching
from saeval_formats.folders import chosen
from saeval_formats.reference import matched
from saeval_stability.group import labelled

NAME = "a[lr=1e-4]"


def test_a_name_wins_over_a_pattern():
    names = ["a1", "a[1]", "b", NAME]
    assert names_matching("a[1]", names) == ["a[1]"]
    assert names_matching("a[12]", names) == ["a1"]
    assert names_matching("a*", names) == ["a1", "a[1]", NAME]
    assert names_matching("*[lr=1e-4]", names[2:]) == [NAME]  # matches nothing else, so the brackets are brackets
    assert names_matching("c", names) == []
    assert names_matching_any(["b", "a[1]", NAME], names) == ["a[1]", "b", NAME]


def test_kinds_and_sites_are_given_by_name_or_by_pattern():
    assert labelled(["a[1]", "a1", "b"], {"x": ["a[1]"], "y": ["*"]}) == ["x", "y", "y"]
    assert chosen(["a[1]"], ["a1", "a[1]"], "none: no SAE", "sites") == ["a[1]"]


@pytest.fixture
def suite(saelens_folder):
    paths = [str(saelens_folder(d_sae=32, seed=seed, name=name)) for seed, name in enumerate((NAME, "a1", "a[1]"))]
    return {
        "suite": "s", "model": {"use": "testbed"}, "data": {"use": "python-stdlib", "context": 16, "sequences": 4},
        "saes": [{"use": "saelens", "path": path} for path in paths], "metrics": ["l0"],
        "controls": [{"use": "shuffled_features", "of": NAME}], "groups": {"one": ["a[1]"], "two": [NAME, "a1"]},
    }  # fmt: skip


def test_of_groups_and_allow_mean_an_sae_by_its_name(suite):
    suite["metrics"].append({"seed_stability": {"over": "two"}})
    made = prepare(suite, Registry(Plugins()), RunOptions(allow=(NAME,)))
    (control,) = (s for s in made.subjects if s.kind == "control")
    assert control.parent.name == NAME
    group, twin = (cell for cell in made.cells if cell.entry.over == "two")
    assert [s.name for s in group.subjects] == [NAME, "a1"]
    assert [s.parent.name for s in twin.subjects] == [NAME, "a1"]
    assert warnings(made) == []  # it allows nothing in vain


def test_one_sae_that_is_allowed_by_its_name_lets_no_other_pass(suite, tmp_path):
    for key in ("controls", "groups"):
        del suite[key]
    suite["saes"] = suite["saes"][1:]
    with pytest.raises(saeval.SaevalError) as raised:
        saeval.run(suite, out=tmp_path, allow=["a[1]"])  # random decoders: the preflight refuses both
    assert "a1: " in str(raised.value)
    assert "a[1]: " not in str(raised.value)


def test_paths_may_have_brackets_beside_their_globs(tmp_path):
    folder = tmp_path / NAME
    folder.mkdir()
    for name in ("x.txt", "y.txt"):
        (folder / name).write_text("text")
    assert [file.name for file in files_matching(str(folder / "*.txt"), "text")] == ["x.txt", "y.txt"]
    found = matched({"path": str(folder / "*.txt"), "hook_name": "{}"}, "saelens")
    assert list(found) == ["x", "y"]
    assert every(
        one["hook_name"] == part and (folder / f"{part}.txt").samefile(one["path"]) for part, one in found.items()
    )
