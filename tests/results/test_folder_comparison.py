"""`saeval compare A B` for two results folders, and the conditions of `--fail-if`."""

from __future__ import annotations

import csv
import io
import json
import re

import numpy as np
import pytest

from filled_folders import SUBJECTS, fill, scored
from saeval import cli
from saeval.base.errors import SaevalError
from saeval.results.conditions import Condition
from saeval.results.folder_comparison import compare_folders
from saeval.results.leaderboard import boards
from saeval.results.paired_tests import holm
from saeval.results.result import Result
from saeval.results.store import Store
from saeval.stats.estimate import Estimate
from saeval.stats.values import Scalar
from saeval.testing.claims import every, some


def moved(folder, by, only=("sae-1",), facts=None, noise=0.001):
    """A copy of the filled folder in which `ce.loss` of some SAEs moved, by nearly as much in each document."""
    fill(folder)
    store = Store(folder)
    manifest = store.manifest()
    for listed in manifest["cells"]:
        name = listed["cell"]["subjects"][0]["name"]
        listed["cell"] = {**listed["cell"], **(facts or {})}
        if (stored := store.read(listed["key"], arrays=True)) is None:
            continue
        values, arrays = stored.values, stored.arrays
        if name in only and "loss" in values:
            old = stored.estimate("loss")
            shift = by + noise * np.random.default_rng(3).normal(size=old.without.size)
            new = Estimate(old.value + by, old.without + shift, old.sizes, old.n)
            values = {**values, "loss": Scalar(new, unit="nats", better="lower").record()}
            arrays = {**arrays, "without/loss": new.without, "sizes/loss": new.sizes}
        store.write(Result(**{**vars(stored), "cell": listed["cell"], "values": values, "arrays": arrays}))
    store.write_manifest(manifest)
    return str(folder)


@pytest.fixture
def first(tmp_path):
    return str(fill(tmp_path / "first"))


def test_equal_folders_have_no_differences(first, tmp_path, capsys):
    assert cli.main(["compare", first, str(fill(tmp_path / "b")), "--fail-if", "ce.loss differs"]) == 0
    captured = capsys.readouterr()
    assert "- both runs have the same model, data, metrics and subjects" in captured.out
    assert re.search(r"Compared: (\d+) pairs of numbers .*not distinguishable in 0, equal in \1\.", captured.out)
    said = "--fail-if 'ce.loss differs': paired by document; all numbers are equal\n--fail-if: no condition holds\n"
    assert captured.err == said


def test_numbers_are_paired_where_the_documents_are_the_same(first, tmp_path):
    compared = compare_folders(first, moved(tmp_path / "b", 0.1))
    assert compared.same_documents
    (value,) = (v for v in compared.values if v.subject == "sae-1" and v.column.name == "ce.loss")
    assert value.difference.value == pytest.approx(-0.1)
    assert value.difference.stderr < 0.01 < value.a.stderr  # the noise of the documents is in both
    assert (value.better, value.sure) == ("a", True)
    assert compared.fields == []


def test_other_documents_are_two_samples_and_the_fields_that_differ_come_first(first, tmp_path, capsys):
    data = {"fingerprint": "e", "use": "x", "limit": None, "context": 64}
    second = moved(tmp_path / "b", 0.1, facts={"data": data})
    compared = compare_folders(first, second)
    assert [field.words for field in compared.fields] == ["data.context (none; 64)"]
    (value,) = (v for v in compared.values if v.subject == "sae-1" and v.column.name == "ce.loss")
    assert value.difference.stderr == pytest.approx(np.hypot(value.a.stderr, value.b.stderr))
    assert not value.paired
    assert cli.main(["compare", first, second]) == 0
    text = capsys.readouterr().out
    assert text.index("data.context (none; 64)") < text.index("| SAE")
    assert "not paired, since the documents differ" in text
    assert cli.main(["compare", first, second, "--fail-if", "ce.loss worse"]) == 0  # unpaired, 0.1 is not found
    assert "--fail-if 'ce.loss worse': not paired, since the documents differ" in capsys.readouterr().err


def test_other_models_are_not_tested(first, tmp_path):
    compared = compare_folders(first, moved(tmp_path / "b", 0.1, facts={"model": {"name": "gpt2", "weights": "w"}}))
    assert {field.name for field in compared.fields} == {"model.name", "model.weights"}
    assert every(
        value.difference.reason == "comparable within a model only, and the models differ" for value in compared.values
    )


def test_another_version_of_a_metric_is_named_and_not_compared(first, tmp_path, capsys):
    second = moved(tmp_path / "b", 0.1)
    store = Store(second)
    manifest = store.manifest()
    for listed in (listed for listed in some(manifest["cells"]) if listed["cell"]["metric"] == "l0"):
        listed["cell"] = {**listed["cell"], "metric_version": 7}
        if (stored := store.read(listed["key"], arrays=True)) is not None:
            store.write(Result(**{**vars(stored), "cell": listed["cell"]}))
    store.write_manifest(manifest)
    assert cli.main(["compare", first, second]) == 0
    text = capsys.readouterr().out
    assert "metrics.l0.metric_version (none; 7)" in text
    assert "l0 is another metric in" in text
    assert {value.column.metric for value in compare_folders(first, second).values} == {"ce"}


@pytest.mark.parametrize(
    ("by", "condition", "code"),
    [
        (0.1, "ce.loss worse", 3),
        (0.1, "ce.loss better", 0),
        (0.1, "ce.loss differs", 3),
        (-0.1, "ce.loss worse", 0),
        (-0.1, "ce.loss better", 3),
        (0.0002, "ce.loss worse", 0),  # worse, but not surely
    ],
)
def test_a_condition_is_decided_by_the_test(by, condition, code, first, tmp_path, capsys):
    second = moved(tmp_path / "b", by, noise=0.001)
    assert cli.main(["compare", first, second, "--fail-if", condition]) == code
    captured = capsys.readouterr()
    assert ("holds for sae-1: " in captured.err) == (code == 3)
    assert captured.out  # the comparison is printed all the same


def test_several_conditions_share_one_correction(first, tmp_path, capsys):
    second = moved(tmp_path / "b", 0.1)
    conditions = ["--fail-if", "ce.loss worse", "--fail-if", "ce.loss better"]
    assert cli.main(["compare", first, second, *conditions, "--format", "json"]) == 3
    captured = capsys.readouterr()
    assert captured.err.count("holds for") == 1
    values = [v for v in json.loads(captured.out)["values"] if v["value"] == "ce.loss"]
    raw = [v["p"] for v in values]
    assert [v["p_holm"] for v in values] == holm(raw)


def test_the_second_of_two_saes_is_judged(first, capsys):
    assert cli.main(["compare", first, "sae-0", "sae-3", "--fail-if", "ce.loss worse"]) == 3  # its loss is higher
    assert "holds for sae-0 against sae-3" in capsys.readouterr().err
    assert cli.main(["compare", first, "sae-3", "sae-0", "--fail-if", "ce.loss worse"]) == 0


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ("ce.los worse", "no value 'ce.los' in these results; did you mean 'ce.loss'?"),
        ("ce.loss wors", "expected VALUE worse|better|differs, such as 'ce.delta_ce worse'"),
        ("ce.loss", "expected VALUE worse|better|differs"),
        ("ce worse", "'ce' has several values; name one of ce.loss, "),
        ("ce.whole worse", "ce.whole has no better direction; use 'ce.whole differs'"),
    ],
)
def test_a_condition_that_names_nothing_is_one_sentence(condition, message, first, tmp_path, capsys):
    assert cli.main(["compare", first, str(fill(tmp_path / "b")), "--fail-if", condition]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"--fail-if '{condition}': ")
    assert message in error


def test_a_condition_that_cannot_be_decided_is_an_error(first, tmp_path, capsys):
    second = moved(tmp_path / "b", 0.1)
    store = Store(second)
    listed = next(c for c in store.manifest()["cells"] if c["key"] == "ce1")
    changed = scored("ce1", listed["cell"], 0)
    changed.values["whole"] = Scalar(9.0).record()
    store.write(changed)
    assert cli.main(["compare", first, second, "--fail-if", "ce.whole differs"]) == 2
    assert "the difference in ce.whole of 'sae-1' cannot be tested" in capsys.readouterr().err
    (tmp_path / "b" / "ce1.json").unlink()
    assert cli.main(["compare", first, second, "--fail-if", "ce.loss worse"]) == 2
    assert "the second run has no ce.loss of 'sae-1'" in capsys.readouterr().err


def test_a_subject_of_one_run_only_is_named_first(first, tmp_path, capsys):
    second = str(fill(tmp_path / "b", only=SUBJECTS[1:]))
    assert cli.main(["compare", first, second, "--format", "csv"]) == 0
    captured = capsys.readouterr()
    assert "configured differently: subjects only in the first: sae-0@h" in captured.err
    assert "sae-0" not in {row["name"] for row in csv.DictReader(io.StringIO(captured.out))}


def test_a_summary_counts_what_the_records_say(first, tmp_path, capsys):
    second = moved(tmp_path / "b", 0.1, only=("sae-1", "sae-2"))
    assert cli.main(["compare", first, second, "--format", "json"]) == 0
    record = json.loads(capsys.readouterr().out)
    outcomes = [value["outcome"] for value in record["values"]]
    assert {outcome: outcomes.count(outcome) for outcome in record["outcomes"]} == record["outcomes"]
    assert (record["outcomes"]["worse"], record["outcomes"]["better"]) == (2, 0)
    assert cli.main(["compare", first, second]) == 0
    text = capsys.readouterr().out
    assert f"Compared: {len(outcomes)} pairs of numbers (6 SAEs and 1 control × 4 values)." in text
    assert "The second run is better in 0, worse in 2, " in text


def test_metrics_and_numbers_of_one_run_only_are_counted_and_named_once(first, tmp_path, capsys):
    second, store = str(fill(tmp_path / "b")), Store(tmp_path / "b")
    manifest = store.manifest()
    kept = [listed for listed in manifest["cells"] if listed["cell"]["metric"] == "ce"]
    store.write_manifest({**manifest, "cells": kept})
    assert cli.main(["compare", first, second]) == 0
    text = capsys.readouterr().out
    assert "- metrics only in the first: l0\n" in text
    count = sum(column == "l0.l0" for row in boards([first])[0].rows for column, e in row.entries.items() if e.value)
    assert f"Only in the first: {count} numbers." in text
    assert "Only in the second" not in text
    assert "lacks" not in text  # the metric says it
    assert cli.main(["compare", second, first]) == 0
    assert "- metrics only in the second: l0\n" in capsys.readouterr().out


def test_a_gate_says_which_difference_it_finds(first, tmp_path, capsys):
    second = moved(tmp_path / "b", 0.0002)
    assert cli.main(["compare", first, second, "--fail-if", "ce.loss worse", "--format", "json"]) == 0
    captured = capsys.readouterr()
    values = json.loads(captured.out)["values"]
    (size,) = [v["detectable"] for v in values if (v["name"], v["value"]) == ("sae-1", "ce.loss")]
    expected = (
        f"paired by document; a true difference of {size:.2g} nats is found with 80% probability (1 test at 5%, Holm)"
    )
    assert captured.err.endswith(f"--fail-if 'ce.loss worse': {expected}\n--fail-if: no condition holds\n")
    assert cli.main(["compare", first, moved(tmp_path / "c", 2 * size, noise=0.001), "--fail-if", "ce.loss worse"]) == 3
    assert cli.main(["compare", first, moved(tmp_path / "d", size / 4, noise=0.001), "--fail-if", "ce.loss worse"]) == 0


def test_a_gate_that_can_find_nothing_says_so(first, tmp_path, capsys):
    second = moved(tmp_path / "b", 1.0, noise=20.0)
    assert cli.main(["compare", first, second, "--fail-if", "ce.loss worse"]) == 0
    error = capsys.readouterr().err
    assert (
        "it could hardly have found anything for sae-1: not even a change as large as the first number itself" in error
    )
    assert cli.main(["compare", first, moved(tmp_path / "c", 1.0), "--fail-if", "ce.loss worse"]) == 3
    assert "hardly" not in capsys.readouterr().err


def test_words_that_are_no_folders_are_named(first, capsys):
    assert cli.main(["compare", first, "nowhere"]) == 2
    error = capsys.readouterr().err
    assert "name a results folder and two of its SAEs, or two results folders; nowhere is no folder of results" in error
    assert cli.main(["compare", first]) == 2


def test_a_condition_may_name_a_column_with_spaces():
    condition = Condition.parsed("ce.loss vs random worse")
    assert (condition.value, condition.word) == ("ce.loss vs random", "worse")
    with pytest.raises(SaevalError, match="expected VALUE"):
        Condition.parsed(" worse")
