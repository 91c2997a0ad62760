"""Damaged, edited and foreign files of a results folder: known as such, shown as such, computed again."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest

from edited_files import changed
from saeval import Metric, Scalar, cli
from saeval.base.sealed_json import sealed
from saeval.results.leaderboard import boards
from saeval.results.store import Store
from saeval.testing import TinyModel, TinySAE, evaluate_tiny, tiny_tokens
from saeval.testing.claims import every, none, some

SAES = {name: TinySAE(seed=seed) for seed, name in enumerate("abc")}
METRICS = ["l0", "reconstruction", "ce", "kl"]
OPTIONS = {"rows": tiny_tokens(rows=60, documents=30), "saes": SAES, "key": "these", "batch_size": 20}


def run(out, metrics=METRICS, model=None, **options):
    return evaluate_tiny(list(metrics), model=model or TinyModel(), out=out, **{**OPTIONS, **options})


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("finished")
    return out, run(out)


@pytest.fixture
def folder(finished, tmp_path):
    shutil.copytree(finished[0], tmp_path, dirs_exist_ok=True)
    return tmp_path / "evaluate"


def files(folder, result):
    return folder / f"{result.key}.json", folder / f"{result.key}.npz"


def edited(file, change):
    """The JSON with a change, and a checksum that fits it: what is left to find is its shape."""
    record = json.loads(file.read_text())
    record.pop("checksum", None)
    change(record)
    file.write_bytes(sealed(record))


def value(record):
    return next(iter(record["values"].values()))


def flipped(file, at):
    content = bytearray(file.read_bytes())
    content[at] ^= 1
    file.write_bytes(content)


def replaced(file, old, new):
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))


def without_arrays(npz):
    with np.load(npz, allow_pickle=False) as file:
        kept = {name: file[name] for name in file.files[1:]}
    np.savez(npz, **kept)


def compressed_unknown(npz):
    """One bit of the archive's directory, which makes zipfile raise NotImplementedError."""
    content = bytearray(npz.read_bytes())
    content[content.rindex(b"PK\x01\x02") + 10] ^= 0x20
    npz.write_bytes(content)
    with pytest.raises(NotImplementedError), np.load(npz, allow_pickle=False) as archive:
        {name: archive[name] for name in archive.files}


def nested(file):
    file.write_text("[" * 100_000)


DAMAGES = {
    "npz lost": lambda json_, npz, other: npz.unlink(),
    "npz of another cell": lambda json_, npz, other: shutil.copy(other[1], npz),
    "npz without arrays": lambda json_, npz, other: without_arrays(npz),
    "npz bit": lambda json_, npz, other: compressed_unknown(npz),
    "json of another cell": lambda json_, npz, other: (shutil.copy(other[0], json_), shutil.copy(other[1], npz)),
    "edited value": lambda json_, npz, other: replaced(json_, '"value": ', '"value": 1'),
    "nan": lambda json_, npz, other: replaced(json_, '"n": ', '"n": NaN, "m": '),
    "nested": lambda json_, npz, other: nested(json_),
    "null": lambda json_, npz, other: json_.write_text("null"),
    "status": lambda json_, npz, other: edited(json_, lambda r: r.update(status="great")),
    "type": lambda json_, npz, other: edited(json_, lambda r: value(r).update(stderr="large")),
    "no unit": lambda json_, npz, other: edited(json_, lambda r: value(r).pop("unit")),
}  # fmt: skip


@pytest.fixture
def damaged(folder, finished):
    """Every cell of the run damaged in a way of its own; the results by the name of their damage."""
    _, results = finished
    assert len(results) == len(DAMAGES)
    spare = [Path(shutil.copy(file, folder.parent)) for file in files(folder, results[-1])]
    other = [Path(shutil.copy(file, folder.parent)) for file in files(folder, results[0])]
    damaged = dict(zip(DAMAGES, results, strict=True))
    for name, damage in some(DAMAGES.items()):
        damage(*files(folder, damaged[name]), spare if damaged[name].key not in spare[0].name else other)
    return damaged


def test_every_damage_is_shown_and_nothing_of_it_is_believed(folder, damaged, capsys):
    assert cli.main(["show", str(folder)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(DAMAGES)
    assert every("  damaged: " in line for line in lines), lines
    for name, result in some(damaged.items()):
        assert cli.main(["show", str(folder), result.key[:12]]) == 0, name
        shown = capsys.readouterr().out
        assert f"damaged, {result.key}" in shown
        assert "computed with" not in shown
    (board,) = boards([folder])
    assert every(entry.value is None and entry.status == "damaged" for r in board.rows for entry in r.entries.values())
    assert any("12 of 12 results are damaged" in note for note in board.notes)


def test_damaged_cells_are_computed_again_with_one_line(folder, damaged, finished, caplog):
    again = run(folder.parent)
    (warning,) = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert "\n" not in warning
    assert "damaged results, which a run computes again" in warning
    assert "and 8 more" in warning
    assert damaged["npz lost"].key in warning
    assert [r.values for r in again] == [r.values for r in finished[1]]
    assert none(Store(folder).read(r.key).status == "damaged" for r in again)
    caplog.clear()
    assert run(folder.parent).forward_passes == 0
    assert not caplog.records


def test_equal_results_are_equal_files(finished, tmp_path):
    run(tmp_path)
    arrays = list(finished[0].glob("evaluate/*.npz"))
    assert len(arrays) >= 9
    for file in some(arrays):
        assert (tmp_path / "evaluate" / file.name).read_bytes() == file.read_bytes()


def test_no_flipped_bit_is_believed(folder, finished):
    """Of a JSON file, those that change what it says; one in its white space changes nothing."""
    store, result = Store(folder), finished[1][0]
    record, arrays = files(folder, result)
    for file in (record, arrays):
        whole = file.read_bytes()
        kept = 0
        for at in range(0, len(whole), max(1, len(whole) // 60)):
            flipped(file, at)
            found = store.read(result.key, arrays=True)
            if found.status not in ("damaged", "missing"):
                kept += 1
                assert found.values == result.values
            file.write_bytes(whole)
        assert kept < (30 if file is record else 1)
    assert store.read(result.key).status == "ok"


@pytest.mark.parametrize("verb", ["leaderboard", "compare", "report"])
def test_verbs_that_only_read_say_what_is_damaged(folder, finished, capsys, verb):
    lost = next(r for r in finished[1] if r.metric == "ce" and r.subject == "b")
    files(folder, lost)[1].unlink()
    words = {
        "leaderboard": [str(folder)],
        "compare": [str(folder), "a", "b"],
        "report": [str(folder)],
    }[verb]
    assert cli.main([verb, *words]) == 0
    captured = capsys.readouterr()
    said = captured.err if verb == "report" else captured.out
    assert f"{lost.key}.npz" in said
    assert "damaged" in said
    if verb == "leaderboard":
        assert "DAMAGED" in said
        assert "1 of 12 results is damaged and left out, also from ranks" in said
    assert not list(folder.glob("*.npz.*"))
    assert not files(folder, lost)[1].exists()  # only `run` repairs


def test_pages_made_without_a_damaged_result_say_so(folder, finished):
    from saeval.results.pages import write_pages
    from saeval.results.report import Report

    results = list(finished[1])
    results[0].status, status = "damaged", results[0].status
    try:
        (page,), failed = write_pages([Report("r", pages=lambda results: {"a.md": "hello"})], results, folder / "pages")
    finally:
        results[0].status = status
    assert not failed
    assert page.read_text().startswith("**1 of 12 results is damaged and left out")


def test_results_of_an_earlier_version_are_computed_again_and_said_to_be(folder, finished, caplog, capsys):
    old = finished[1][0]
    file, _ = files(folder, old)
    record = json.loads(file.read_text())
    file.write_text(json.dumps({k: v for k, v in record.items() if k not in ("checksum", "arrays")} | {"schema": 1}))
    assert cli.main(["show", str(folder)]) == 0
    assert "not computed: " + file.name in capsys.readouterr().out
    again = run(folder.parent)
    assert [r.getMessage() for r in caplog.records] == [
        f"{folder}: 1 results of another version of saeval, which a run computes again"
    ]
    assert [r.values for r in again] == [r.values for r in finished[1]]


MANIFESTS = {
    "null": "null",
    "a list": "[]",
    "nothing": "{}",
    "nested": "[" * 100_000,
    "nan": '{"schema": NaN}',
    "another schema": lambda m: m.update(schema=99),
    "no schema": lambda m: m.pop("schema"),
    "no cells": lambda m: m.pop("cells"),
    "cells": lambda m: m.update(cells=[1]),
    "a key elsewhere": lambda m: m["cells"]["key"].__setitem__(0, "../x"),
    "subjects": lambda m: m["cells"]["subjects"].__setitem__(0, "a"),
    "a subject that is not listed": lambda m: m["cells"]["subjects"].__setitem__(0, [99]),
    "a kind that is not listed": lambda m: m["cells"]["kind"].__setitem__(0, 99),
    "fewer keys": lambda m: m["cells"]["key"].pop(),
    "no subjects": lambda m: m.pop("subjects"),
    "no metric": lambda m: m["kinds"][0].pop("metric"),
    "limit": lambda m: m.update(limit="few"),
    "layout": lambda m: m.update(leaderboard={"columns": 5}),
}


@pytest.mark.parametrize("shape", MANIFESTS)
def test_a_manifest_of_another_shape_is_one_sentence(folder, capsys, shape):
    file, wrong = folder / "manifest.json", MANIFESTS[shape]
    if isinstance(wrong, str):
        file.write_text(wrong)
    else:
        manifest = json.loads(file.read_text())
        del manifest["checksum"]
        wrong(manifest)
        file.write_bytes(sealed(manifest))
    for words in (["leaderboard", str(folder)], ["show", str(folder)], ["compare", str(folder), "a", "b"]):
        assert cli.main(words) == 2, words
        captured = capsys.readouterr()
        (line,) = captured.err.splitlines()
        assert str(file) in line
        assert line.endswith("run the suite again")


def test_a_run_writes_a_damaged_manifest_again(folder, finished):
    (folder / "manifest.json").write_text("[]")
    assert run(folder.parent).forward_passes == 0
    assert len(Store(folder).manifest()["cells"]) == len(DAMAGES)


def test_a_file_that_holds_no_result_is_one_sentence(folder, tmp_path, capsys):
    for text in some(["null", "{}", "[" * 100_000, '{"schema": 2, "checksum": "x"}']):
        (tmp_path / "x.json").write_text(text)
        assert cli.main(["show", str(tmp_path / "x.json")]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "no result of saeval in x.json" in line


class Odd(Metric):
    """Concludes what could be written and never read again."""

    name, version = "odd", 1

    def conclude(self, W_dec):
        return Scalar(1.0, unit=5)


def test_a_value_that_could_not_be_read_again_fails_alone(tmp_path):
    odd, l0 = evaluate_tiny(["odd", "l0"], Odd, rows=tiny_tokens(rows=4), out=tmp_path, key="these")
    assert (odd.status, l0.status) == ("failed", "ok")
    assert odd.reason == "TypeError: a value cannot be stored: 'odd.unit': input should be a valid string, got 5"


def test_folds_carry_a_checksum_and_their_name(tmp_path, caplog):
    first = run(tmp_path, ["ce", "reconstruction"])
    fold, *_ = sorted((tmp_path / "evaluate" / "folds").glob("*.npz"))
    whole = fold.read_bytes()
    store = Store(tmp_path / "evaluate")
    assert store.fold(fold.stem) is not None
    shutil.copy(fold, fold.with_stem("0" * 24))
    assert store.fold("0" * 24) is None
    fold.with_stem("0" * 24).unlink()
    for file in (tmp_path / "evaluate").glob("*.json"):
        file.unlink()
    changed(fold)
    caplog.clear()
    again = run(tmp_path, ["ce", "reconstruction"])
    assert [r.getMessage() for r in caplog.records] == [
        f"{fold}: damaged (its content does not match its checksum); it is computed again"
    ]
    assert [r.values for r in first] == [r.values for r in again]
    assert fold.read_bytes() == whole


def test_a_table_without_notes_says_on_standard_error_what_is_left_out(tmp_path, capsys):
    results = evaluate_tiny(["l0"], saes={"a": TinySAE()}, out=tmp_path, key="these", name="s")
    (cell,) = results
    file = tmp_path / "s" / f"{cell.key}.json"
    file.write_text(file.read_text()[:-20])
    for form in ("csv", "json"):
        assert cli.main(["leaderboard", str(tmp_path / "s"), "--format", form]) == 0
        assert "1 of 1 results is damaged and left out" in capsys.readouterr().err


def test_a_folder_without_any_value_does_not_say_that_the_ranking_has_no_direction(tmp_path, capsys):
    suite = tmp_path / "s.yaml"
    suite.write_text(
        "suite: s\nmodel: {use: testbed}\ndata: {use: python-stdlib, context: 16, sequences: 4}\n"
        "saes: [testbed/topk-8]\nmetrics: [reconstruction]\nleaderboard: {rank_by: reconstruction.mse}\n"
    )
    assert cli.main(["run", str(suite), "--out", str(tmp_path)]) == 0
    for file in some(file for file in (tmp_path / "s").glob("*.json") if file.name != "manifest.json"):
        file.unlink()
    capsys.readouterr()
    assert cli.main(["leaderboard", str(tmp_path / "s")]) == 0
    told = capsys.readouterr().out
    assert "no better direction" not in told
    assert "1 of 1 cells of 's' are not computed yet" in told


def test_an_edited_manifest_puts_no_number_under_another_name(folder, capsys):
    file = folder / "manifest.json"
    own = file.read_text()
    manifest = json.loads(own)
    l0 = [place for place, kind in enumerate(manifest["kinds"]) if kind["metric"] == "l0"]
    keys, kinds = manifest["cells"]["key"], manifest["cells"]["kind"]
    first, second = [place for place, kind in enumerate(kinds) if kind in l0][:2]
    keys[first], keys[second] = keys[second], keys[first]
    file.write_text(json.dumps(manifest))
    assert cli.main(["leaderboard", str(folder)]) == 2
    assert "its content does not match its checksum" in capsys.readouterr().err
