"""One entry, several SAEs: globs in `path`, what they matched in names and hooks."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from checkpoints import suite
from dictionary_learning_files import saved, state_of
from saeval.base.errors import SaevalError
from saeval_formats.dictionary_learning import DictionaryLearning
from saeval_formats.reference import matched


@pytest.fixture
def tree(tmp_path):
    """Files at these places below `tmp_path`."""

    def make(*places: str) -> Path:
        for place in places:
            (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / place).write_text("")
        return tmp_path

    return make


def expanded(root: Path, path: str, **reference):
    found = matched({"path": str(root / path), **reference}, "some_format")
    return {name: (Path(one["path"]).relative_to(root).as_posix(), one.get("hook_name")) for name, one in found.items()}


def test_names_are_what_the_globs_matched(tree):
    root = tree("rm/ae_layer2.pt", "rm/ae_layer12.pt", "rm/ae_layer8.pt", "rm/other.pt")
    expected = {"2": ("rm/ae_layer2.pt", None), "8": ("rm/ae_layer8.pt", None), "12": ("rm/ae_layer12.pt", None)}
    assert expanded(root, "rm/ae_layer*.pt") == expected
    assert list(expanded(root, "rm/ae_layer*.pt")) == ["2", "8", "12"]  # by number
    assert list(expanded(root, "rm/ae_layer?.pt")) == ["2", "8"]
    assert list(expanded(root, "rm/ae_layer[!2]*.pt")) == ["1/2", "8/"]
    assert list(expanded(root, "rm/ae_layer[0-5].pt")) == ["2"]


def test_several_globs(tree):
    root = tree("runs/a/trainer_0/ae.pt", "runs/a/trainer_10/ae.pt", "runs/b/trainer_2/ae.pt")
    found = expanded(root, "runs/*/trainer_*", hook_name="{1}.{2}")
    assert found == {
        "a/0": ("runs/a/trainer_0", "a.0"),
        "a/10": ("runs/a/trainer_10", "a.10"),
        "b/2": ("runs/b/trainer_2", "b.2"),
    }


@pytest.mark.parametrize(
    ("template", "hook"),
    [
        ("blocks.{}.hook_resid_post", "blocks.x.hook_resid_post"),
        ("{}-{}", "x-3"),
        ("{2}", "3"),
        ("{2}{2}{1}", "33x"),
        ("plain", "plain"),
        (None, None),
    ],
)
def test_hook_templates(tree, template, hook):
    root = tree("x/layer_3.pt")
    assert expanded(root, "*/layer_*.pt", hook_name=template) == {"x/3": ("x/layer_3.pt", hook)}


def test_without_globs_an_entry_is_itself(tree):
    root = tree("odd[1].pt")
    for path in ("some.pt", "odd[1].pt"):  # a path that exists is no glob
        assert expanded(root, path, hook_name="h") == {"": (path, "h")}
    assert matched({"hook_name": "h"}, "some_format") == {"": {"hook_name": "h"}}


def test_mistakes(tree):
    root = tree("layer_3.pt")
    with pytest.raises(SaevalError, match=r"some_format: nothing matches 'path: .*/other_\*.pt'"):
        expanded(root, "other_*.pt")
    with pytest.raises(SaevalError, match=r"'hook_name: h.\{2\}' refers to glob 2 of 'path', which has 1"):
        expanded(root, "layer_*.pt", hook_name="h.{2}")
    with pytest.raises(SaevalError, match=r"refers to glob 2 of 'path'"):
        expanded(root, "layer_*.pt", hook_name="{}{}")
    with pytest.raises(SaevalError, match=r"refers to glob 0 of 'path'"):
        expanded(root, "layer_*.pt", hook_name="{0}")
    with pytest.raises(SaevalError, match=r"'hook_name: h.\{\}' has '\{\}', but 'path' has no glob"):
        expanded(root, "layer_3.pt", hook_name="h.{}")


def subjects(results) -> dict[str, str]:
    return {r.subject: r.cell["subjects"][0]["hook_name"] for r in results}


def test_names_in_a_suite(tmp_path):
    """Without `name:` they are called after the last part of the path before its globs."""
    for run in ("one", "two"):
        saved(
            tmp_path / "runs" / run / "trainer_0", "AutoEncoder", state_of("AutoEncoder", seed=len(run) + ord(run[0]))
        )
    entry = {"use": "dictionary_learning", "path": str(tmp_path / "runs/*/trainer_0")}
    results = suite(tmp_path, [entry], metrics=["l0"])
    assert subjects(results) == dict.fromkeys(("runs/one", "runs/two"), "blocks.1.hook_resid_post")
    named = suite(tmp_path, [{**entry, "name": "mine", "hook_name": "transformer.h.0"}], metrics=["l0"])
    assert subjects(named) == dict.fromkeys(("mine/one", "mine/two"), "blocks.0.hook_resid_post")
    alone = suite(tmp_path, [{**entry, "path": str(tmp_path / "runs/one/trainer_0")}], metrics=["l0"])
    assert list(subjects(alone)) == ["trainer_0"]
    odd = saved(tmp_path / "odd[1]", "AutoEncoder")
    assert list(subjects(suite(tmp_path, [{**entry, "path": str(odd)}], metrics=["l0"]))) == ["odd[1]"]


def test_one_that_is_wrong_is_named(tmp_path):
    saved(tmp_path / "runs" / "trainer_0", "AutoEncoder")
    (tmp_path / "runs" / "trainer_1").mkdir()
    found = DictionaryLearning().expand({"path": str(tmp_path / "runs" / "trainer_*")})
    assert list(found) == ["0", "1"]
    with pytest.raises(SaevalError, match=r"trainer_1/ae.pt: no such file"):
        suite(tmp_path, [{"use": "dictionary_learning", "path": str(tmp_path / "runs" / "trainer_*")}])


def test_an_sae_is_the_same_by_glob_and_by_name(tmp_path):
    """What an entry is called, and whether by glob, is no part of the key of its numbers."""
    torch.save(state_of("AutoEncoder"), tmp_path / "layer_1.pt")
    entry = {"use": "dictionary_learning", "class": "AutoEncoder"}
    globbed = {**entry, "path": str(tmp_path / "layer_*.pt"), "hook_name": "blocks.{}.hook_resid_post"}
    alone = {**entry, "path": str(tmp_path / "layer_1.pt"), "hook_name": "transformer.h.1"}
    keys = [suite(tmp_path, [e], metrics=["l0"])[0].cell["subjects"][0]["key"] for e in (globbed, alone)]
    assert keys[0] == keys[1]
