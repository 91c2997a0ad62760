"""The sources: documents and their names, fingerprints that follow content, and errors that name the line."""

from __future__ import annotations

import json
import sys

import datasets
import numpy as np
import pandas as pd
import pytest

from saeval.base.errors import SaevalError
from saeval.testing.claims import none
from saeval.text.tokens import TokenOptions, build_tokens
from saeval_data import saeval_data as sources
from saeval_data.stdlib import PythonStdlib, stdlib_modules
from saeval_data.text import Text
from saeval_data.tokens import Tokens


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("SAEVAL_CACHE", str(tmp_path_factory.mktemp("cache")))


def texts(source) -> dict[str, str]:
    return {d.name: d.text for d in source.documents("evaluation")}


def ids(source) -> list[tuple[str, list[int]]]:
    return [(d.name, list(d.tokens)) for d in source.documents("evaluation")]


def fails(call, sentence: str) -> None:
    with pytest.raises(SaevalError, match=sentence) as raised:
        call()
    assert "\n" not in str(raised.value)


def test_the_plugin_supplies_ten_sources():
    assert [source.name for source in sources()] == [
        "labelled", "preferences", "python-names", "python-stdlib", "python-tokens", "sae_probes", "spelling", "text",
        "texts", "tokens",
    ]  # fmt: skip


def test_stdlib_splits():
    held_out, train = (dict(stdlib_modules(split)) for split in ("held_out", "train"))
    assert not set(held_out) & set(train)
    assert len(held_out) > 50
    without = dict(stdlib_modules("train", tests=False))
    assert {name for name in train if name.split("/")[0] != "test" and "tests" not in name} >= set(without)
    assert none("test" in name.split("/")[:-1] for name in without)


def test_stdlib_source():
    source = PythonStdlib()
    evaluated, fit = texts(source), {d.name for d in source.documents("fit")}
    assert evaluated == dict(stdlib_modules("held_out"))
    assert fit == set(dict(stdlib_modules("train", tests=False)))
    facts = source.facts()
    assert facts["modules"] == len(evaluated)
    assert facts["bytes"] == sum(len(text.encode()) for text in evaluated.values())
    assert facts["python"] == ".".join(str(part) for part in sys.version_info[:3])
    assert source.fingerprint() == PythonStdlib().fingerprint()


def test_stdlib_fingerprint_follows_content(tmp_path, monkeypatch):
    monkeypatch.setattr("sysconfig.get_paths", lambda: {"stdlib": str(tmp_path)})
    fails(lambda: list(PythonStdlib().documents("fit")), "no module sources under")
    for name in ("a.py", "b.py", "c.py", "d.py", "e.py", "f.py", "g.py", "h.py"):
        (tmp_path / name).write_text("x = 1\n")
    (tmp_path / "site-packages").mkdir()
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "test_a.py").write_text("assert True\n")
    before = PythonStdlib().fingerprint()
    (tmp_path / "site-packages" / "other.py").write_text("y = 2\n")
    (tmp_path / "test" / "test_a.py").write_text("assert 1\n")
    assert PythonStdlib().fingerprint() == before
    (tmp_path / "a.py").write_text("x = 2\n")
    assert PythonStdlib().fingerprint() != before


def test_text_file(tmp_path):
    path = tmp_path / "book.txt"
    path.write_text("one\n\ntwo\n\n\n\nthree ü\n", encoding="utf-8")
    assert texts(Text(path=str(path))) == {"book.txt": "one\n\ntwo\n\n\n\nthree ü\n"}
    assert texts(Text(path=str(path), separator="\n\n")) == {
        "book.txt:1": "one", "book.txt:2": "two", "book.txt:4": "three ü\n",
    }  # fmt: skip
    assert Text(path=str(path)).fingerprint() != Text(path=str(path), separator="\n\n").fingerprint()
    path.write_bytes(b"caf\xe9")
    fails(lambda: texts(Text(path=str(path))), r"book.txt: not UTF-8 text \(at byte 3\)")


def test_text_folder(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "b.txt").write_text("B")
    (tmp_path / "deep" / "a.txt").write_text("A")
    (tmp_path / "notes.md").write_text("not text data")
    source = Text(path=str(tmp_path))
    assert texts(source) == {"b.txt": "B", "deep/a.txt": "A"}
    before = source.fingerprint()
    assert Text(path=str(tmp_path)).fingerprint() == before
    (tmp_path / "notes.md").write_text("changed")
    assert Text(path=str(tmp_path)).fingerprint() == before
    (tmp_path / "deep" / "a.txt").write_text("C")
    assert Text(path=str(tmp_path)).fingerprint() != before


def test_text_jsonl(tmp_path):
    path = tmp_path / "d.jsonl"
    path.write_text('{"text": "one", "body": "eins"}\n\n{"text": "two", "body": "zwei"}\n')
    assert texts(Text(path=str(path))) == {"d.jsonl:1": "one", "d.jsonl:3": "two"}
    assert list(texts(Text(path=str(path), field="body")).values()) == ["eins", "zwei"]
    assert Text(path=str(path)).fingerprint() != Text(path=str(path), field="body").fingerprint()


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ('{"text": "one"', r"d.jsonl:2: broken JSON"),
        ("\udcff", r"d.jsonl:2: broken JSON"),
        ('["one"]', r"d.jsonl:2: expected a JSON object, found list"),
        ('{"txt": "one"}', r"d.jsonl:2: expected a field 'text', found txt"),
        ('{"text": 3}', r"d.jsonl:2: expected text in 'text', found int"),
    ],
)
def test_broken_jsonl(tmp_path, line, sentence):
    path = tmp_path / "d.jsonl"
    path.write_bytes(f'{{"text": "fine"}}\n{line}\n'.encode(errors="surrogateescape"))
    fails(lambda: texts(Text(path=str(path))), sentence)


def test_text_parquet(tmp_path):
    path = tmp_path / "d.parquet"
    pd.DataFrame({"text": ["one", "two"], "n": [1, 2]}).to_parquet(path)
    assert texts(Text(path=str(path))) == {"d.parquet:1": "one", "d.parquet:2": "two"}
    fails(lambda: texts(Text(path=str(path), field="body")), r"d.parquet: expected a column 'body', found text, n")
    fails(lambda: texts(Text(path=str(path), field="n")), r"d.parquet: row 1: expected text in 'n', found int")
    path.write_bytes(path.read_bytes()[:-20])
    fails(lambda: texts(Text(path=str(path))), r"d.parquet: not a readable Parquet file")


def test_saved_datasets(tmp_path, monkeypatch):
    rows = datasets.Dataset.from_dict({"text": ["one", "two"], "n": [1, 2]})
    rows.save_to_disk(str(tmp_path / "rows"))
    assert texts(Text(path=str(tmp_path / "rows"))) == {"train:1": "one", "train:2": "two"}
    datasets.DatasetDict({"dev": rows}).save_to_disk(str(tmp_path / "splits"))
    assert list(texts(Text(path=str(tmp_path / "splits"), split="dev")).values()) == ["one", "two"]
    fails(lambda: texts(Text(path=str(tmp_path / "splits"))), r"expected a split 'train', found dev; set 'split'")
    fails(lambda: texts(Text(path=str(tmp_path / "rows"), field="body")), r"expected a column 'body', found text, n")


def test_dataset_folders(tmp_path):
    folder = tmp_path / "corpus"
    folder.mkdir()
    pd.DataFrame({"text": ["one", "two"]}).to_parquet(folder / "train-00000-of-00001.parquet")
    pd.DataFrame({"text": ["three"]}).to_parquet(folder / "test-00000-of-00001.parquet")
    assert list(texts(Text(path=str(folder))).values()) == ["one", "two"]
    assert list(texts(Text(path=str(folder), split="test")).values()) == ["three"]
    fails(lambda: texts(Text(path=str(folder), split="dev")), "cannot be loaded")
    assert Text(path=str(folder)).fingerprint() != Text(path=str(folder), split="test").fingerprint()


def test_hub_datasets_count_by_their_commit(monkeypatch):
    asked = []

    class Builder:
        hash = "c" * 40

    def builder(name, config, revision):
        asked.append((name, config, revision))
        return Builder

    monkeypatch.setattr(datasets, "load_dataset_builder", builder)
    rows = datasets.Dataset.from_dict({"text": ["one"]})
    monkeypatch.setattr(
        datasets, "load_dataset", lambda name, config, split, revision: rows if revision == "c" * 40 else None
    )
    source = Text(name="org/corpus", config="en", split="train[:1]", revision="main")
    pinned = Text(name="org/corpus", config="en", split="train[:1]", revision="c" * 40)
    assert source.fingerprint() == pinned.fingerprint()
    assert asked == [("org/corpus", "en", "main")]  # a full commit hash needs no look-up
    assert texts(source) == {"train[:1]:1": "one"}
    assert source.facts()["revision"] == "c" * 40
    assert Text(name="org/corpus", config="en", revision="d" * 40).fingerprint() != pinned.fingerprint()


def test_text_parameters(tmp_path):
    (tmp_path / "a.csv").write_text("x")
    fails(lambda: Text(), "expected one of 'path' and 'name', found neither")
    fails(lambda: Text(path="a", name="b"), "found both")
    fails(lambda: Text(path=str(tmp_path / "none.txt")), "no such file or folder: .*none.txt")
    fails(lambda: Text(path=str(tmp_path / "a.csv")), r"expected a .txt, .jsonl, .parquet file or a folder")
    fails(lambda: Text(path=str(tmp_path), revision="main"), "'config' and 'revision' go with 'name'")
    fails(lambda: Text(path=str(tmp_path), separator=""), "'separator' is empty")
    (tmp_path / "empty").mkdir()
    fails(lambda: Text(path=str(tmp_path / "empty")).fingerprint(), "holds neither .txt files nor a dataset")


def test_tokens_array(tmp_path):
    path = tmp_path / "t.npy"
    np.save(path, np.array([[1, 2, 3], [4, 5, 6]], dtype=np.uint16))
    assert ids(Tokens(path=str(path))) == [("t.npy:1", [1, 2, 3]), ("t.npy:2", [4, 5, 6])]
    np.save(tmp_path / "owners.npy", np.array(["a", "a"]))
    owned = Tokens(path=str(path), documents=str(tmp_path / "owners.npy"))
    assert [name for name, _ in ids(owned)] == ["a", "a"]
    before = owned.fingerprint()
    assert before != Tokens(path=str(path)).fingerprint()
    np.save(tmp_path / "owners.npy", np.array(["a", "b"]))
    assert owned.fingerprint() != before
    np.save(tmp_path / "owners.npy", np.array(["a"]))
    fails(lambda: ids(owned), r"owners.npy: expected 2 entries, one document per row, found shape \[1\]")


@pytest.mark.parametrize(
    ("array", "sentence"),
    [
        (np.ones((2, 3)), r"t.npy: row 1: expected integer token ids, found dtype float64"),
        (np.arange(4), r"t.npy: expected an array \[documents, length\], found shape \[4\]"),
        (np.array([[1, 2], [3, -1]]), r"t.npy: row 2: negative token id -1 at position 1"),
        (np.array([[1, 2**31]]), r"t.npy: row 1: a token id is larger than 2147483647"),
        (np.array([[{}]], dtype=object), r"t.npy: not a readable .npy array"),
    ],
)
def test_broken_arrays(tmp_path, array, sentence):
    np.save(tmp_path / "t.npy", array, allow_pickle=True)
    fails(lambda: ids(Tokens(path=str(tmp_path / "t.npy"))), sentence)


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
@pytest.mark.parametrize("field", ["tokens", "input_ids", "ids"])
def test_token_lists(tmp_path, kind, field):
    path = tmp_path / f"t.{kind}"
    rows = [{field: [1, 2, 3], "doc": "a"}, {field: [4], "doc": "b"}]
    if kind == "jsonl":
        path.write_text("\n".join(json.dumps(row) for row in rows))
    else:
        pd.DataFrame(rows).to_parquet(path)
    named = {"field": "ids"} if field == "ids" else {}
    assert [tokens for _, tokens in ids(Tokens(path=str(path), **named))] == [[1, 2, 3], [4]]
    assert [name for name, _ in ids(Tokens(path=str(path), documents="doc", **named))] == ["a", "b"]
    fails(lambda: ids(Tokens(path=str(path), documents="who", **named)), "expected a (field|column) 'who'")
    if field == "ids":
        fails(lambda: ids(Tokens(path=str(path))), "expected a field 'tokens' or 'input_ids'")


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ('{"tokens": "1 2"}', r"t.jsonl:2: expected a list of token ids in 'tokens', found str"),
        ('{"tokens": [1, 2.5]}', r"t.jsonl:2: expected integer token ids, found 2.5 at position 1"),
        ('{"tokens": [true]}', r"t.jsonl:2: expected integer token ids, found True at position 0"),
        ('{"tokens": [3, -100]}', r"t.jsonl:2: negative token id -100 at position 1"),
        ('{"tokens": [99999999999999999999]}', r"t.jsonl:2: a token id is larger than 2147483647"),
        ('{"input_ids": [3]}', r"t.jsonl:2: expected a field 'tokens', found input_ids"),
        ("{", r"t.jsonl:2: broken JSON"),
    ],
)
def test_broken_token_lists(tmp_path, line, sentence):
    (tmp_path / "t.jsonl").write_text(f'{{"tokens": [1]}}\n{line}\n')
    fails(lambda: ids(Tokens(path=str(tmp_path / "t.jsonl"))), sentence)


def test_token_parameters(tmp_path):
    np.save(tmp_path / "t.npy", np.zeros((1, 2), dtype=int))
    (tmp_path / "t.txt").write_text("1 2 3")
    fails(lambda: Tokens(path=str(tmp_path / "t.txt")), r"expected a .npy, .jsonl or .parquet file, found .*t.txt")
    fails(lambda: Tokens(path=str(tmp_path / "u.npy")), "no such file or folder")
    fails(lambda: Tokens(path=str(tmp_path / "t.npy"), field="tokens"), "'field' is for .jsonl and .parquet")
    fails(lambda: Tokens(path=str(tmp_path / "t.npy"), documents="u.npy"), "no such file or folder: u.npy")


def test_token_lists_become_rows(tmp_path):
    """Lists of unequal length, of documents with several lists, without a tokenizer."""
    path = tmp_path / "t.jsonl"
    lines = [{"tokens": [10, 11, 12], "doc": "a"}, {"tokens": [20, 21], "doc": "a"}, {"tokens": [30, 31], "doc": "b"}]
    path.write_text("\n".join(json.dumps(line) for line in lines))

    def absent():
        raise SaevalError("no tokenizer")

    options = TokenOptions(context=3, bos_id=7)
    found = {}
    for split in ("evaluation", "fit"):
        dataset = build_tokens(Tokens(path=str(path), documents="doc"), options, absent, "", split)
        for tokens, documents, cluster in zip(dataset.tokens, dataset.documents, dataset.clusters):
            found.setdefault(dataset.cluster_names[cluster], []).append(tokens[documents >= 0].tolist())
    assert sorted(found["a"]) == [[7, 10, 11, 12], [7, 20, 21]]
    assert found["b"] == [[7, 30, 31]]
