"""What makes large boards fast says the same as what is slower: forms, differences, blocks of pairs, kept texts."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given, settings

from filled_folders import fill
from made_entries import at_once, boards, by_single_tests, entry, ordered
from saeval import cli
from saeval.base.sealed_json import sealed, unsealed
from saeval.cli import board_verbs
from saeval.results import all_pairs, file_states, index, npz
from saeval.results.all_pairs import Pairs
from saeval.results.paired_tests import difference
from saeval.results.store import Store
from saeval.testing.claims import some

SCALAR = {"value": 1.0, "stderr": 0.1, "ci95": None, "n": 3, "unit": "", "better": None}
CURVE = {"kind": "curve", "x": [1.0], "y": [2.0], "stderr": [None], "x_unit": "", "unit": "", "better": None}


@pytest.mark.parametrize(
    ("values", "status"),
    [
        ({"loss": SCALAR, "c": CURVE, "t": {"kind": "table", "columns": ["a"], "rows": [[1]]}}, "ok"),
        ({"said": {"kind": "notes", "notes": ["x"]}, "loss": {**SCALAR, "more": [1]}}, "ok"),
        ({"loss": {**SCALAR, "value": "1"}}, "damaged"),
        ({"loss": {**SCALAR, "stderr": -0.1}}, "damaged"),
        ({"loss": {**SCALAR, "documents": 2.5}}, "damaged"),
        ({"loss": {"value": 1.0}}, "damaged"),
        ({"loss": {**SCALAR, "kind": "other"}}, "damaged"),
        ({"c": {**CURVE, "x": [1.0, 2.0]}}, "damaged"),
        ({"t": {"kind": "table", "columns": ["a"], "rows": [[1, 2]]}}, "damaged"),
    ],
)
def test_a_result_is_checked_for_a_leaderboard_as_when_it_is_read(tmp_path, values, status):
    store = Store(fill(tmp_path / "s"))
    record = unsealed((tmp_path / "s" / "l00.json").read_bytes())
    (tmp_path / "s" / "l00.json").write_bytes(sealed({**record, "values": values}))
    read, shown = store.read("l00"), store.opened("l00").result
    assert read.status == shown.status == status
    assert read.reason == shown.reason
    assert shown.values.keys() == read.values.keys()


@given(boards())
@settings(max_examples=60, deadline=None)
def test_differences_to_one_entry_are_those_of_the_single_tests(entries):
    singles = [difference(one, entries[0]) for one in entries]
    for found, single in some(zip(Pairs(entries).differences(0), singles, strict=True)):
        assert (found.value, found.reason) == (single.value, single.reason)
        assert found.stderr == (None if single.stderr is None else pytest.approx(single.stderr, rel=1e-6))
        assert found.ci95 == (None if single.ci95 is None else pytest.approx(single.ci95, rel=1e-6))
        assert (found.support is None) == (single.support is None)
        if single.support is not None and single.stderr:
            assert found.support.documents == single.support.documents
            assert found.support.effective == pytest.approx(single.support.effective)


def test_blocks_that_surely_differ_are_not_computed(monkeypatch):
    monkeypatch.setattr(all_pairs, "_BLOCK", 4)
    rng, computed, own = np.random.default_rng(0), [], Pairs._product
    monkeypatch.setattr(Pairs, "_product", lambda self, a, b: computed.append((a, b)) or own(self, a, b))
    shared = rng.normal(size=30)
    values = np.repeat([1.0, 2.0, 5.0, 9.0], 4) + rng.normal(size=16) / 50
    entries = ordered([entry(value, (shared + rng.normal(size=30) / 5) / 30) for value in values])
    assert at_once(entries) == by_single_tests(entries)
    assert [(a, b) for a, b in computed if a.tolist() != b.tolist()] == [], "only blocks of the diagonal"
    assert len(computed) >= 4


def test_a_kept_text_needs_no_plugin_and_is_made_anew_when_one_changes(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(index, "WORTH", 1)
    monkeypatch.setattr(file_states, "SETTLED", -(10**10))
    folder, plugin = fill(tmp_path / "s"), tmp_path / "mine.py"
    plugin.write_text("x = 1\n")
    words = ["leaderboard", str(folder), "--plugin", str(plugin)]

    def printed():
        assert cli.main(words) == 0
        return capsys.readouterr().out

    expected, asked, own = printed(), [], board_verbs._registry
    monkeypatch.setattr(board_verbs, "_registry", lambda arguments: asked.append(1) or own(arguments))
    assert printed() == expected
    assert not asked
    plugin.write_text("x = 12\n")
    assert printed() == expected
    assert asked
    asked.clear()
    assert printed() == expected
    assert not asked
    assert cli.main(["leaderboard", str(folder)]) == 0
    assert asked, "without the plugin it is another text"


@pytest.mark.parametrize("block", [1, 3])
def test_bounds_decide_no_pair_that_its_own_test_decides_otherwise(monkeypatch, block):
    """Among rows whose values rise evenly, many pairs lie near the threshold."""
    monkeypatch.setattr(all_pairs, "_BLOCK", block)
    rng = np.random.default_rng(1)
    entries = ordered(entry(row * 0.05, rng.normal(size=30) / 30**0.5 / 14) for row in range(40))
    assert at_once(entries) == by_single_tests(entries)


@pytest.mark.parametrize("write", [np.savez, np.savez_compressed])
def test_arrays_of_any_npz_writer_are_read(write):
    written = {"without/ce": np.arange(5.0), "ids": np.array([[3, 1]]), "names": np.array(["a", "b"])}
    file = io.BytesIO()
    write(file, **written)
    loaded = npz.arrays(file.getvalue())
    assert loaded.keys() == written.keys()
    for name in some(written):
        np.testing.assert_array_equal(loaded[name], written[name])
