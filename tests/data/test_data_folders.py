"""Which files of a folder are the data: those of its one format; the files that are read are named."""

from __future__ import annotations

import json

import pandas as pd
import pytest

from saeval import cli, evaluate
from saeval.base.errors import SaevalError
from saeval_data.preferences import Preferences
from saeval_data.text import Text

LINES = [f"def f{i}(x):\n    return x + {i} * len(str(x)) - {i}\n" * 3 for i in range(10)]


@pytest.fixture
def folder(tmp_path):
    """Tables as datasets of the hub are laid out: a licence and a notice beside them."""
    data = tmp_path / "corpus" / "data"
    data.mkdir(parents=True)
    pd.DataFrame({"text": LINES[:5]}).to_parquet(data / "train-00000-of-00002.parquet")
    pd.DataFrame({"text": LINES[5:]}).to_parquet(data / "train-00001-of-00002.parquet")
    pd.DataFrame({"text": ["held out"]}).to_parquet(data / "test-00000-of-00001.parquet")
    for name in ("LICENSE.txt", "NOTICE.txt", "requirements.txt"):
        (tmp_path / "corpus" / name).write_text("Permission is hereby granted, free of charge, to any person.")
    return tmp_path / "corpus"


READ = ["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet"]


def texts(path, **options):
    return [d.text for d in Text(path=str(path), **options).documents("evaluation")]


def test_a_licence_beside_tables_is_no_data(folder):
    assert texts(folder) == LINES
    facts = Text(path=str(folder)).facts()
    assert facts["read"] == READ
    assert facts["files"] == 2
    assert texts(folder, split="test") == ["held out"]


def test_tables_without_names_of_splits(tmp_path):
    pd.DataFrame({"text": LINES}).to_parquet(tmp_path / "all.parquet")
    for name in ("LICENSE.txt", "NOTICE.txt", "README.txt"):  # more texts than tables
        (tmp_path / name).write_text("Permission is hereby granted.")
    assert texts(tmp_path) == LINES
    assert Text(path=str(tmp_path)).facts()["read"] == ["all.parquet"]


@pytest.mark.parametrize("verb", ["check", "run"])
def test_a_run_and_a_check_say_which_files_are_read(folder, tmp_path, capsys, verb):
    suite = tmp_path / "s.yaml"
    data = f"{{use: text, path: '{folder}', context: 16, sequences: 4}}"
    suite.write_text(f"suite: s\nmodel: testbed\ndata: {data}\nsaes: [testbed/relu-1]\nmetrics: [l0]\n")
    assert cli.main([verb, str(suite), "--out", str(tmp_path / "out")]) == 0
    if verb == "check":
        assert f"read: {', '.join(READ)}\n" in capsys.readouterr().out
    else:
        (result,) = (f for f in (tmp_path / "out" / "s").glob("*.json") if f.name != "manifest.json")
        assert json.loads(result.read_text())["cell"]["data"]["read"] == READ


def test_a_folder_of_two_formats_is_refused(folder):
    (folder / "essay.txt").write_text("An essay.")
    said = r"holds .parquet files \(test-.*\) and .txt files \(essay.txt, ...\); select the data, as in 'path: "
    with pytest.raises(SaevalError, match=said):
        Text(path=str(folder)).fingerprint()
    assert texts(f"{folder}/**/train*.parquet") == LINES  # as the message advises
    (folder / "essay.txt").unlink()
    (folder / "more.jsonl").write_text('{"text": "one"}\n')
    with pytest.raises(SaevalError, match=r"holds .jsonl files \(more.jsonl, ...\) and .parquet files"):
        texts(folder)


def test_a_glob_of_two_formats_is_refused(tmp_path):
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "b.jsonl").write_text('{"text": "b"}\n')
    with pytest.raises(SaevalError, match=r"matches .jsonl and .txt files; end it with one suffix, such as '\*.jsonl'"):
        Text(path=f"{tmp_path}/*")
    with pytest.raises(SaevalError, match=r"'separator' applies to .txt files, not to .jsonl"):
        Text(path=f"{tmp_path}/*.jsonl", separator="\n")


def test_folders_of_texts_are_read_as_before(tmp_path):
    (tmp_path / "LICENSE.txt").write_text("L")
    (tmp_path / "a.txt").write_text("A")
    (tmp_path / "index.csv").write_text("name\na.txt\n")
    source = Text(path=str(tmp_path))
    assert {d.name: d.text for d in source.documents("evaluation")} == {"LICENSE.txt": "L", "a.txt": "A"}
    assert source.facts()["read"] == ["LICENSE.txt", "a.txt"]


def test_pairs_of_a_folder(tmp_path):
    rows = pd.DataFrame({"chosen": ["a b", "c d"], "rejected": ["a c", "c e"]})
    rows.to_parquet(tmp_path / "train.parquet")
    for name in ("LICENSE.txt", "NOTICE.txt", "essay.txt"):
        (tmp_path / name).write_text("Permission is hereby granted.")
    source = Preferences(path=str(tmp_path))
    assert [pair.chosen for pair in source.records()] == ["a b", "c d"]
    assert source.facts()["read"] == ["train.parquet"]
    (tmp_path / "more.jsonl").write_text('{"chosen": "x", "rejected": "y"}\n')
    with pytest.raises(SaevalError, match=r"data 'preferences': .* holds .jsonl files .* and .parquet files"):
        list(Preferences(path=str(tmp_path)).records())


def test_what_a_run_read_is_in_its_provenance(tmp_path):
    for number in range(30):
        (tmp_path / f"{number:02}.txt").write_text(LINES[number % 10])
    data = {"use": "text", "path": str(tmp_path), "context": 16, "sequences": 4}
    recorded = evaluate(model="testbed", saes=["testbed/relu-1"], data=data, metrics=["l0"])[0].cell["data"]
    assert recorded["files"] == 30
    assert recorded["read"] == [f"{number:02}.txt" for number in range(20)]
