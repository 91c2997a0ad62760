"""`saeval show`: a stored result for a person, by whatever names it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from saeval import Array, Curve, Metric, Notes, Scalar, Table, cli
from saeval.results.store import Store
from saeval.testing import TinySAE, evaluate_tiny
from saeval.testing.claims import some


class Everything(Metric):
    """One value of each kind."""

    name = "everything"

    def conclude(self, W_dec):
        return {
            "norm": Scalar(3.25, unit="norm of weights", better="lower"),
            "nothing": Scalar.undefined("there is none"),
            "curve": Curve([1.0, 2.0], [0.5, 0.25], "layer", "cosine"),
            "table": Table(["which", "how_many"], [["first", 7], ["second", -0.0]]),
            "foreign": Table(["text"], [["a\nb\x1b[31m" + "x" * 200]]),
            "long": Table(["row"], [[i] for i in range(64)]),
            "array": Array(np.array([1.0, 5.0, np.nan]), unit="tokens"),
            "notes": Notes(["handle with care"]),
        }


class Broken(Metric):
    name = "broken"

    def conclude(self, W_dec):
        raise RuntimeError("planted")


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    saes = {"a": TinySAE(), "b": TinySAE(seed=1)}
    evaluate_tiny(["everything", "l0", "broken"], Everything, Broken, saes=saes, out=folder, name="mine")
    return folder


@pytest.fixture
def here(out, monkeypatch):
    monkeypatch.chdir(out.parent)
    return out


def key(out, metric, sae):
    cells = Store(out / "mine").manifest()["cells"]
    return next(c["key"] for c in cells if c["cell"]["metric"] == metric and c["cell"]["subjects"][0]["name"] == sae)


def shown(capsys, out, *words):
    assert cli.main(["show", *words, "--out", str(out)]) == 0, capsys.readouterr().err
    return capsys.readouterr().out


def test_a_folders_list_names_keys_that_show_takes(here, capsys):
    listed = shown(capsys, here, str(here / "mine")).splitlines()
    assert len(listed) == 6
    for line in some(listed):
        (own,) = {line.split()[0]}
        page = shown(capsys, here, own)
        assert f"key {own};" in page
        assert page == shown(capsys, here, str(here / "mine"), own[:8])
        assert page == shown(capsys, here, str(here / "mine" / f"{own}.json"))


def test_a_result_is_named_by_suite_metric_and_sae(here, capsys):
    page = shown(capsys, here, "mine", "l0", "b")
    assert f"key {key(here, 'l0', 'b')};" in page
    assert page == shown(capsys, here, "mine", "l0.l0", "b@blocks.1.hook_resid_pre")
    both = shown(capsys, here, "mine", "l0").splitlines()
    assert [line.split()[0] for line in both] == [key(here, "l0", name) for name in ("a", "b")]


def test_every_kind_of_value_is_shown(here, capsys):
    page = shown(capsys, here, "mine", "everything", "a")
    lines = [line.split() for line in page.splitlines()]
    assert page.startswith("everything@1 of a at blocks.1.hook_resid_pre: ok\n")
    assert ["norm", "3.25", "norm", "of", "weights", "lower"] in lines
    assert "undefined: there is none (nothing)" in page
    assert "curve: cosine by layer" in page
    assert ["2", "0.25"] in lines
    assert ["first", "7"] in lines
    assert ["second", "0"] in lines  # no negative zero
    assert "... 44 more rows" in page
    (foreign,) = [line for line in page.splitlines() if line.startswith("a⏎b")]
    assert "\x1b" not in page
    assert len(foreign) == 72
    assert "array: an array [3] of float64, tokens" in page
    assert "min 1, median 3, mean 3, max 5" in page
    assert "1 of 3 are not finite" in page
    assert "- handle with care" in page


def test_the_traceback_of_a_failed_cell_is_lines(here, capsys):
    page = shown(capsys, here, "mine", "broken", "a")
    assert "failed, RuntimeError: planted" in page.splitlines()[0]
    assert "\\n" not in page
    assert "Traceback (most recent call last):" in page.splitlines()
    stored = json.loads((here / "mine" / f"{key(here, 'broken', 'a')}.json").read_text())
    assert isinstance(stored["traceback"], list)
    assert len(stored["traceback"]) > 3
    assert stored["traceback"][-1] == "RuntimeError: planted"
    again = Store(here / "mine").read(key(here, "broken", "a"))
    assert again.traceback.splitlines() == stored["traceback"]


def test_a_metric_that_is_named_otherwise_is_found_by_that_name(tmp_path, capsys):
    evaluate_tiny(["l0", {"l0": {"as": "again"}}], out=tmp_path, name="mine")
    first, second = (c["key"] for c in Store(tmp_path / "mine").manifest()["cells"])
    assert "l0@2 of tinysae" in shown(capsys, tmp_path, "mine", "l0")
    assert "l0@2 as 'again' of tinysae" in shown(capsys, tmp_path, "mine", "again")
    assert first == second  # a name is no part of a key


def test_the_stored_record_is_one_option_away(here, capsys):
    own = key(here, "l0", "a")
    assert json.loads(shown(capsys, here, own, "--json"))["key"] == own


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["min"], "did you mean 'mine'?"),
        (["min", "l0"], "no results in 'min'"),
        (["mine", "l1"], "no metric and no key 'l1' among its results; did you mean 'l0'?"),
        (["mine", "l0", "aa"], "no result of 'l0' for 'aa'; did you mean 'a'"),
        (["mine", "l0", "a", "b"], "a folder, a metric and an SAE, got 4 words"),
    ],
)
def test_what_is_not_there_is_one_sentence(here, capsys, words, told):
    assert cli.main(["show", *words, "--out", str(here)]) == 2
    error = capsys.readouterr().err
    assert told in error
    assert len(error.strip().splitlines()) == 1


def test_a_folder_of_suites_names_them(here, capsys):
    for verb in ("show", "leaderboard", "report"):
        assert cli.main([verb, str(here)]) == 2
        assert "its suites: mine; name" in capsys.readouterr().err


def test_every_run_has_a_page(here, capsys):
    assert cli.main(["report", str(here / "mine")]) == 0
    (path,) = capsys.readouterr().out.splitlines()
    assert path == str(here / "mine" / "report" / "index.html")
    assert "<title>mine – saeval</title>" in Path(path).read_text(encoding="utf-8")


def test_all_draws_of_a_control_are_named(tmp_path, capsys):
    control = {"use": "random", "seeds": 3}
    evaluate_tiny(["l0"], saes={"one": TinySAE()}, controls=[control], out=tmp_path)
    assert cli.main(["show", str(tmp_path / "evaluate"), "l0", "random(one)"]) == 0
    told = capsys.readouterr().out
    assert "random(one)#2" in told
    assert len(told.splitlines()) == 3


def test_a_result_says_how_many_documents_it_has(tmp_path, capsys):
    (result,) = evaluate_tiny(["l0"], saes={"one": TinySAE()}, out=tmp_path)
    assert cli.main(["show", str(tmp_path / "evaluate" / f"{result.key}.json")]) == 0
    assert f"{result.cell['data']['documents']} documents" in capsys.readouterr().out
