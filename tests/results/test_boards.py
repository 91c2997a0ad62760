"""What boards and their notes say: whose they are, what their ranks mean, which numbers every format has."""

from __future__ import annotations

import csv
import importlib
import io
import json
import shutil

import numpy as np
import pytest

import saeval
from saeval import cli
from saeval.base.formatting import interval, number, with_error
from saeval.results import section_files
from saeval.results.leaderboard import boards, from_results
from saeval.results.store import Store
from saeval.testing.claims import some
from saeval_reports import comparisons, tables
from scored_results import NOISE, scored

SMALL = NOISE + np.array([0.001, 0.001, -0.001, -0.001])


def legend(*results):
    return tables.markdown(from_results([one for some in results for one in some], "t", {"rank_by": "ce.delta_ce"}))


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """Runs `first` and `third` over the same rows, `second` over others; each with a layout of its own."""
    folder = tmp_path_factory.mktemp("results")
    for name, sae, sequences, column in (
        ("first", "relu-5", 6, "l0.l0"), ("second", "relu-5", 4, "ce.delta_ce"), ("third", "topk-8", 6, "l0.l0"),
    ):  # fmt: skip
        suite = {
            "suite": name, "model": {"use": "testbed"}, "saes": [f"testbed/{sae}"], "metrics": ["l0", "ce"],
            "data": {"use": "python-stdlib", "context": 16, "sequences": sequences},
            "leaderboard": {"columns": [column], "rank_by": column},
        }  # fmt: skip
        assert not saeval.run(suite, out=folder).failed
    return folder


def test_each_board_has_the_title_and_the_layout_of_its_own_suite(out, capsys):
    both = [str(out / name) for name in ("first", "second")]
    found = boards(both)
    assert [board.title for board in found] == ["first", "second"]
    assert [[c.name for c in board.shown] for board in found] == [["l0.l0"], ["ce.delta_ce"]]
    assert cli.main(["leaderboard", *both, "--format", "json"]) == 0
    assert [row["suite"] for row in json.loads(capsys.readouterr().out)] == ["first", "second"]
    assert cli.main(["leaderboard", *both]) == 0
    text = capsys.readouterr().out
    assert [line for line in text.splitlines() if line.startswith("## ")] == ["## first", "## second"]


def test_what_a_run_lacks_stands_on_its_own_board_alone(out, tmp_path):
    for name in ("first", "second"):
        shutil.copytree(out / name, tmp_path / name)
    cells = Store(tmp_path / "second").manifest()["cells"]
    (tmp_path / "second" / f"{cells[0]['key']}.json").unlink()
    first, second = boards([tmp_path / "first", tmp_path / "second"])
    assert not [note for note in first.notes if "not computed yet" in note]
    assert [note for note in second.notes if "1 of 2 cells of 'second' are not computed yet" in note]


def test_a_merged_board_names_both(out):
    (board,) = boards([out / "first", out / "third"])
    assert board.title == "first + third"
    assert {row.name for row in board.rows} == {"testbed/relu-5", "testbed/topk-8"}
    merged, other = boards([out / "first", out / "second", out / "third"])
    assert [merged.title, other.title] == ["first + third", "second"]


def test_csv_and_json_have_every_value_where_the_suite_names_columns(out, capsys):
    folder = str(out / "second")
    assert cli.main(["leaderboard", folder]) == 0
    text = capsys.readouterr().out
    assert "ce.recovered" not in text
    assert "8 more values: see --format csv or json" in text
    assert cli.main(["leaderboard", folder, "--format", "csv"]) == 0
    (row,) = csv.DictReader(io.StringIO(capsys.readouterr().out))
    assert cli.main(["leaderboard", folder, "--format", "json"]) == 0
    (record,) = json.loads(capsys.readouterr().out)
    for name in ("ce.ce_sae", "ce.ce_clean", "l0.l0", "l0.l0_p95"):
        assert float(row[name]) == pytest.approx(record[name])


def test_a_first_row_of_a_much_higher_l0_is_noted():
    note = "- a, first in ce.delta_ce, has 9 times the L0 of b (144 against 16 features per token)"
    assert note in legend(scored("a", 0.1, 144.0), scored("b", 0.5, 16.0), scored("c", 0.9, 16.0))
    assert "times the L0" not in legend(scored("a", 0.1, 20.0), scored("b", 0.5, 16.0))
    assert "times the L0" not in legend(scored("a", 0.1), scored("b", 0.5))
    elsewhere = legend(scored("a", 0.1, 144.0), scored("b", 0.5, 16.0, hook="g"), scored("c", 0.9, 100.0))
    assert "times the L0" not in elsewhere  # L0 is compared at one hook


def test_ranks_over_hooks_at_which_little_and_much_can_be_lost_are_noted():
    def mean(loss, hook):
        results = scored("mean", loss, hook=hook)
        for one in results:
            one.cell["subjects"][0] |= {"kind": "control", "control": "mean"}
        return results

    saes = [scored("a", 0.1), scored("b", 0.2, hook="g")]
    note = "- ce.delta_ce is ranked over hooks that differ in how much can be lost (the control mean has 0.3 at h and 6 at g)"
    assert note in legend(*saes, mean(0.3, "h"), mean(6.0, "g"))
    assert "can be lost" not in legend(*saes, mean(5.0, "h"), mean(6.0, "g"))
    assert "can be lost" not in legend(*saes)
    assert "can be lost" not in legend(saes[0], mean(0.3, "h"), mean(6.0, "g"))


def test_a_higher_l0_is_noted_at_each_hook_that_has_ranks_of_its_own():
    places = [(hook, place) for hook in "hg" for place in (0, 9)]
    made = [scored(f"{hook}{place}", float(place), 144.0 / (1 + place), hook=hook) for hook, place in places]
    for loss, _ in some(made):
        loss.values["delta_ce"]["comparable"] = "hook"
    notes = legend(*made)
    for hook in some("hg"):
        assert f"- {hook}0, first in ce.delta_ce at {hook}, has 10 times the L0 of {hook}9" in notes


def test_the_legend_explains_a_rank_that_stands_in_the_table():
    twelve = np.tile(NOISE, 3)
    sure = legend(*(scored(name, x, influence=twelve) for name, x in (("a", 0.1), ("b", 0.5), ("c", 0.9))))
    assert "2–4" not in sure
    assert "every two of these SAEs differ significantly" in sure
    small = np.tile(SMALL, 3)
    ties = legend(
        *(scored(name, x, influence=twelve) for name, x in (("a", 0.1), ("b", 0.5), ("d", 0.9), ("e", 1.9))),
        scored("c", 0.5001, influence=small),
    )
    assert "a rank of 2–3 in ce.delta_ce means any place from 2 to 3: paired tests" in ties
    assert "| 2–3 " in ties
    assert "a rank of" not in legend(scored("a", 0.1))


@pytest.mark.parametrize(
    ("value", "stderr", "text"),
    [
        (-1e-10, 1.2e-8, "(0.0 ± 1.2)e-08"),
        (3.42e-8, 1.2e-9, "(3.42 ± 0.12)e-08"),
        (-0.0001, 0.02, "0.000 ± 0.020"),
        (-0.0, None, "0"),
        (-0.0, 0.0, "0 ± 0"),
        (1.0, 3e-10, "1 ± 0"),
        (-1.3e-15, 3.5e-10, "0 ± 0"),
        (0.28912, 0.0111, "0.289 ± 0.011"),
        (12345.6, 234.0, "12346 ± 234"),
        (float("nan"), None, "–"),
    ],
)
def test_one_formatter_without_a_negative_zero(value, stderr, text):
    assert with_error(value, stderr) == text


def test_ends_of_an_interval_have_no_negative_zero():
    assert interval((-0.0001, 0.04), 0.02) == "0.000 to 0.040"
    assert interval((-0.0, 1.0), None) == "0 to 1"
    assert number(-0.0) == "0"


def page(plugin):
    return importlib.import_module(f"saeval_{plugin}.pages")  # the package's own `pages` is a function


def test_no_writer_prints_a_negative_zero():
    record = {"value": -1e-5, "stderr": 0.01}
    results = [*scored("a", -1e-5, error=0.01), *scored("b", -0.0)]
    made = from_results(results, "t", {})
    texts = [
        tables.markdown(made), tables.csv(made), tables.as_json(made), section_files.cell(-0.0),
        page("perturbation")._shown(record),
    ]  # fmt: skip
    for text in some(texts):
        assert "0" in text
        assert "-0 " not in f"{text} "
        assert "-0.0" not in text.replace("-0.00001", "")
    assert comparisons.number(made[0].rows[0].entries["ce.delta_ce"]) == "0.000 ± 0.010"
