"""The index of a results folder: the boards are those that its files give, whatever becomes of the index."""

from __future__ import annotations

import json
import os
import shutil
import sys
from threading import Event

import pytest

from filled_folders import SUBJECTS, fill, scored, subject
from saeval import SaevalError, cli
from saeval.base.sealed_json import sealed
from saeval.results import file_states, index, index_rows, kept_text, leaderboard
from saeval.results.comparison import compare
from saeval.results.leaderboard import boards
from saeval.results.store import Store
from saeval.testing.claims import some
from saeval_reports import tables


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    """Indexes of folders this small, of files written a moment ago."""
    monkeypatch.setattr(index, "WORTH", 1)
    monkeypatch.setattr(file_states, "SETTLED", -(10**10))


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    return fill(tmp_path_factory.mktemp("filled") / "s")


@pytest.fixture
def folder(filled, tmp_path):
    return shutil.copytree(filled, tmp_path / "s")


def shown(folders, **options):
    """All that is said of the boards."""
    found = boards(folders, **options)
    return [tables.markdown(found), tables.as_json(found), [board.left_out for board in found]]


def from_files(folders, **options):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(index, "WORTH", 10**9)
        return shown(folders, **options)


@pytest.fixture
def opened(monkeypatch):
    """The keys of the results whose files are read."""
    keys = []
    own = Store.opened
    monkeypatch.setattr(Store, "opened", lambda store, key, **how: keys.append(key) or own(store, key, **how))
    return keys


def test_a_board_is_the_same_with_the_index_which_opens_no_file_again(folder, opened):
    expected = from_files([folder])
    assert "1 of 19 cells of 's' are not computed yet" in expected[0]
    assert "mind this" in expected[0]
    assert "undefined: nothing fires" in expected[0]
    assert "ce.loss vs random" in expected[0]
    assert shown([folder]) == expected
    assert len(opened) == 19
    opened.clear()
    assert shown([folder]) == expected
    assert shown([folder], every_column=True) == from_files([folder], every_column=True)
    assert opened == []


def test_a_comparison_is_the_same_and_opens_the_arrays_that_are_tested_only(folder, monkeypatch):
    loaded, own = [], Store.arrays
    monkeypatch.setattr(Store, "arrays", lambda store, key, *rest: loaded.append(key) or own(store, key, *rest))

    def compared(worth):
        monkeypatch.setattr(index, "WORTH", worth)
        loaded.clear()
        return compare(boards([folder], every_column=True), "sae-0", "sae-3").records()

    expected = compared(10**9)
    assert expected[0]["p"] is not None
    assert not loaded
    assert compared(1) == expected
    assert compared(1) == expected
    assert {key[:2] for key in loaded} == {"ce"}, "of the column that rows are ranked by"


def rewritten(folder, name, change):
    path = folder / "index" / name
    path.write_bytes(change(path.read_bytes()))


def another(folder, **changes):
    facts = index.unsealed((folder / "index" / "results.json").read_bytes())
    (folder / "index" / "results.json").write_bytes(index.sealed({**facts, **changes}))


DAMAGES = {
    "missing": lambda folder: shutil.rmtree(folder / "index"),
    "no columns": lambda folder: (folder / "index" / "results.parquet").unlink(),
    "no facts": lambda folder: (folder / "index" / "results.json").unlink(),
    "truncated": lambda folder: rewritten(folder, "results.parquet", lambda content: content[:-50]),
    "empty": lambda folder: rewritten(folder, "results.parquet", lambda content: b""),
    "a bit": lambda folder: rewritten(folder, "results.parquet", lambda c: c[:500] + bytes([c[500] ^ 4]) + c[501:]),
    "facts edited": lambda folder: rewritten(folder, "results.json", lambda c: c.replace(b'"form": 4', b'"form": 1')),
    "facts of another kind": lambda folder: rewritten(folder, "results.json", lambda content: b"[]"),
    "another form": lambda folder: another(folder, form=99),
    "another version": lambda folder: another(folder, saeval="0.0.1"),
    "no form": lambda folder: another(folder, parquet=None),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_an_index_that_is_of_no_use_is_made_again(folder, opened, damage, caplog):
    expected = shown([folder])
    DAMAGES[damage](folder)
    opened.clear()
    assert shown([folder]) == expected
    assert len(opened) == 19
    opened.clear()
    assert shown([folder]) == expected
    assert not opened
    assert not caplog.records


def in_place(path, change):
    """Other content of the same length, with the old time."""
    state = path.stat()
    content = change(path.read_bytes())
    assert len(content) == state.st_size
    with path.open("r+b") as file:
        file.write(content)
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))


def again(folder, key):
    store = Store(folder)
    store.write(scored(key, store.read(key).cell, draw=1))


CHANGES = {
    "a result is computed again": lambda folder: again(folder, "ce2"),
    "arrays alone are another's": lambda folder: shutil.copy(folder / "ce1.npz", folder / "ce2.npz"),
    "a result is removed": lambda folder: (folder / "ce2.json").unlink(),
    "its arrays are removed": lambda folder: (folder / "ce2.npz").unlink(),
    "a result comes": lambda folder: shutil.copy(folder / "l02.json", folder / "none.json"),
    "a JSON is damaged in place": lambda folder: in_place(folder / "ce2.json", lambda c: c.replace(b"nats", b"bats")),
    "arrays are damaged in place": lambda folder: in_place(folder / "ce2.npz", lambda c: c[:-300] + c[-300:][::-1]),
    "a JSON is cut off": lambda folder: (folder / "l02.json").write_bytes((folder / "l02.json").read_bytes()[:100]),
    "a result of another version": lambda folder: (folder / "l02.json").write_text('{"schema": 1}'),
    "a folder in its place": lambda folder: ((folder / "l02.json").unlink(), (folder / "l02.json").mkdir()),
    "fewer cells": lambda folder: fill(folder, only=SUBJECTS[1:5]),
    "cells in another order": lambda folder: fill(folder, only=SUBJECTS[::-1]),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_has_changed_is_read_again(folder, opened, change):
    before = shown([folder])
    CHANGES[change](folder)
    expected = from_files([folder])
    assert expected != before
    opened.clear()
    assert shown([folder]) == expected
    few = 1 if "cells" not in change else 19
    assert len(opened) <= few
    opened.clear()
    assert shown([folder]) == expected
    assert not opened


def test_a_file_of_this_moment_is_read_again_since_its_next_change_may_have_the_same_time(folder, opened, monkeypatch):
    monkeypatch.setattr(file_states, "SETTLED", 10**12)
    shown([folder])
    opened.clear()
    shown([folder])
    assert len(opened) == 18, "all that there are"


def test_a_folder_that_cannot_be_written_goes_without(folder):
    expected = from_files([folder])
    (folder / "index").write_text("mine")
    assert shown([folder]) == expected
    assert shown([folder]) == expected
    assert (folder / "index").read_text() == "mine"


def test_several_folders_and_limited_runs(folder, tmp_path, capsys):
    other = fill(tmp_path / "other", draw=2, only=[subject("other-0"), *SUBJECTS[:2]])
    third = fill(tmp_path / "third", fingerprint="e")
    every = [folder, other, third]
    expected = from_files(every)
    assert expected[0].count("## ") == 2
    assert shown(every) == expected
    assert shown(every) == expected
    few = fill(tmp_path / "few", limit=2)
    for _ in range(2):
        with pytest.raises(SaevalError, match="limited to 2 sequences"):
            boards([few])
        assert shown([few], include_limited=True) == from_files([few], include_limited=True)
    both = fill(few)
    (both / "ce2.json").unlink()
    assert shown([both]) == from_files([both])
    assert cli.main(["leaderboard", str(both)]) == 0
    assert capsys.readouterr().out == from_files([both])[0] + "\n"


def test_arrays_that_changed_behind_the_index_are_damaged_as_without_it(folder, monkeypatch):
    """A disk may lose what no time of a file tells."""
    shown([folder])
    found = boards([folder], every_column=True)
    states = index._load(folder / "index", "results")["state"].combine_chunks().values.to_numpy().reshape(-1, 8)
    monkeypatch.setattr(index, "_states", lambda *_: states)
    (folder / "ce2.npz").write_bytes((folder / "ce1.npz").read_bytes())
    expected = from_files([folder])
    assert "damaged" in expected[0]
    assert shown([folder]) == expected
    with pytest.raises(SaevalError, match=r"ce2\.npz: its content does not match the checksum in its JSON; run"):
        compare(found_without_ranks(found), "sae-2", "sae-4")


def ranked_by(folder, column):
    """The same run with another layout."""
    store = Store(folder)
    manifest = store.manifest()
    manifest["leaderboard"]["rank_by"] = column
    store.write_manifest(manifest)


@pytest.mark.parametrize("indexed", [True, False])
def test_a_damaged_array_is_found_by_the_board_that_tests_it(folder, indexed):
    store = Store(folder)
    result = store.read("ce4", arrays=True)
    result.key, result.cell = "l04", store.read("l04").cell
    store.write(result)
    whole, expected = (folder / "l04.npz").read_bytes(), from_files([folder])
    (folder / "l04.npz").write_bytes(whole[:-1] + b"x")
    assert shown([folder]) == expected, "not read, since the rank is by another column"
    ranked_by(folder, "l0.loss")
    if not indexed:
        shutil.rmtree(folder / "index")
    damaged = from_files([folder])
    assert "1 of 19 results is damaged and left out" in damaged[0]
    assert shown([folder]) == damaged
    assert shown([folder]) == damaged
    (folder / "l04.npz").write_bytes(whole)
    repaired = from_files([folder])
    assert "damaged" not in repaired[0]
    assert shown([folder]) == repaired


@pytest.mark.parametrize("form", ["md", "json"])
def test_compare_leaves_out_a_damaged_array_that_no_leaderboard_tests(folder, form, capsys, monkeypatch):
    store = Store(folder)
    for place in "04":
        result = store.read(f"ce{place}", arrays=True)
        result.key, result.cell = f"l0{place}", store.read(f"l0{place}").cell
        store.write(result)
    shown([folder])
    (folder / "l04.npz").write_bytes(b"x")
    monkeypatch.setattr(leaderboard, "boards_of_two", boards_with_index)

    def printed():
        return cli.main(["compare", str(folder), "sae-0", "sae-4", "--format", form]), *capsys.readouterr()

    with_index = printed()
    assert printed() == with_index
    monkeypatch.setattr(index, "WORTH", 10**9)
    assert printed() == with_index
    assert with_index[0] == 0
    assert "its result is damaged" in "".join(with_index[1:])


def boards_with_index(folders, *_, **__):
    """What the verb reads if verdicts need all rows."""
    raise SaevalError("all rows")


def test_results_of_earlier_versions_do_not_name_their_arrays_so_these_are_read(folder):
    file = folder / "ce4.json"
    record = index.unsealed(file.read_bytes())
    assert record.pop("array_names") == ["without/loss", "sizes/loss"]
    ranked_by(folder, "l0.l0")
    expected = from_files([folder])
    file.write_bytes(sealed(record))
    assert shown([folder]) == expected
    (folder / "ce4.npz").unlink()
    assert "1 of 19 results is damaged" in shown([folder])[0]


def keys(folder):
    return [listed["key"] for listed in Store(folder).listed()["cells"]]


def found_without_ranks(found):
    """The boards as they were before anything was read of the two rows."""
    for row in found[0].rows:
        getattr(row.entries, "_made", {}).clear()
    return found


@pytest.mark.parametrize("python", [sys.executable, "/no/such/python", shutil.which("false")])
def test_other_processes_read_their_share_and_what_they_cannot_is_read_here(folder, monkeypatch, opened, python):
    expected = from_files([folder])
    monkeypatch.setattr(index_rows, "_A_PROCESS", 9)
    monkeypatch.setattr(index_rows, "_SHARE", 2)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    real, answered, helped = sys.executable, index_rows._answered, Event()

    def first_answer(*arguments):
        try:
            return answered(*arguments)
        finally:
            helped.set()

    def patient(store, key, **how):
        assert python == "/no/such/python" or helped.wait(30)
        return opened.append(key) or reads(store, key, **how)

    reads = Store.opened
    monkeypatch.setattr(index_rows, "_answered", first_answer)
    monkeypatch.setattr(Store, "opened", patient)
    monkeypatch.setattr(sys, "executable", python)
    assert shown([folder]) == expected
    assert (len(set(opened)) < 19) == (python == real)


def test_two_halves_of_different_writers_are_no_index(folder, tmp_path, opened):
    """Two processes that build it at once may each leave one of the two files."""
    expected = shown([folder])
    other = fill(tmp_path / "other", draw=3)
    shown([other])
    shutil.copy(other / "index" / "results.parquet", folder / "index" / "results.parquet")
    opened.clear()
    assert shown([folder]) == expected
    assert len(opened) == 19


def test_a_small_folder_has_no_index(folder, monkeypatch):
    monkeypatch.setattr(index, "WORTH", 20)
    shown([folder])
    assert not (folder / "index").exists()


def test_what_is_written_is_plain_parquet(folder):
    import pyarrow.parquet as pq

    shown([folder])
    table = pq.read_table(folder / "index" / "results.parquet")
    assert table["key"].to_pylist() == some(keys(folder))
    heads = json.loads(table.schema.metadata[b"heads"])
    assert len(heads) < len(table)


@pytest.mark.parametrize("form", ["md", "csv"])
def test_the_text_of_a_leaderboard_is_kept_until_a_file_changes(folder, capsys, monkeypatch, form):
    def printed():
        assert cli.main(["leaderboard", str(folder), "--format", form]) == 0
        return capsys.readouterr()

    monkeypatch.setattr(index, "WORTH", 10**9)
    expected = printed()
    monkeypatch.setattr(index, "WORTH", 1)
    assert printed() == expected

    def refused(*_, **__):
        raise AssertionError("made anew")

    for name in ("a result is computed again", "arrays are damaged in place", "a result comes"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(leaderboard, "boards_on", refused)
            assert printed() == expected
        kept = shutil.copytree(folder, folder.parent / "kept")
        CHANGES[name](folder)
        assert printed() != expected, name
        assert printed() == printed()
        shutil.rmtree(folder)
        kept.rename(folder)
        expected = printed()
    file = next((folder / "index").glob("text.*"))
    file.write_bytes(file.read_bytes()[:-5])
    assert printed() == expected
    monkeypatch.setattr(kept_text, "code", lambda folders: f"another of {folders}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(leaderboard, "boards_on", refused)
        with pytest.raises(AssertionError, match="made anew"):
            printed()


@pytest.mark.parametrize(
    ("a", "b"), [("sae-0", "sae-3"), ("sae-1@h", "random#0"), ("sae-0", "sae-2 (2)"), ("sae-0", "x")]
)
def test_the_verb_compare_reads_the_two_alone_and_says_the_same(folder, capsys, opened, monkeypatch, a, b):
    def printed():
        return cli.main(["compare", str(folder), a, b]), *capsys.readouterr()

    own, expected = leaderboard.boards_of_two, {}
    for whole in (True, False):
        monkeypatch.setattr(
            leaderboard, "boards_of_two", own if not whole else lambda *_, **__: boards([folder], every_column=True)
        )
        expected[whole] = printed()
    assert expected[False] == expected[True]
    assert (expected[True][0] == 0) == (b in ("sae-3", "random#0"))
    monkeypatch.setattr(leaderboard, "boards", None)
    monkeypatch.setattr(leaderboard, "boards_of_two", own)
    opened.clear()
    if expected[True][0] == 0:
        assert printed() == expected[True]


def test_boards_of_one_name_are_told_apart_by_their_folders(tmp_path):
    """Two runs of one suite on other data, and one of them alone."""
    first, second = (fill(tmp_path / name, fingerprint=name) for name in "ab")
    found = boards([first, second])
    assert [board.title for board in found] == [f"s in {first}", f"s in {second}"]
    assert found[1].apart.startswith(f"not ranked together with s in {first}, from which it differs in ")
    assert [board.title for board in boards([first])] == ["s"]
    assert [board.title for board in boards([first, fill(tmp_path / "c", fingerprint="a", draw=1)])] == ["s"]
