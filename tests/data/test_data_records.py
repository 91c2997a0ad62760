"""Records that are null, no text, in several files, or in memory."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet
import pytest

from saeval import SaevalError, cli, evaluate
from saeval.base.errors import SuiteError
from saeval.interfaces.data import Document
from saeval.plan.streams import Streams
from saeval.suite.yaml_marks import parse
from saeval.testing import TinyModel, TinySAE
from saeval.testing.architectures import tiny_tokenizer
from saeval.text.packing import Packer
from saeval.text.tokens import TokenOptions, build_tokens
from saeval_data.preferences import Preferences
from saeval_data.text import Text, Texts
from saeval_data.tokens import Tokens

HALF = '{"text": "w1 \\ud83d w2", "chosen": "w1 \\ud83d", "rejected": "w2", "input_ids": [1], "owner": "\\ud83d"}\n'


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("SAEVAL_CACHE", str(tmp_path_factory.mktemp("cache")))


def written(path, records):
    if path.suffix == ".parquet":
        pd.DataFrame(records).to_parquet(path)
    else:
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def words(*ids):
    return " ".join(f"w{i}" for i in ids)


def packed(source, **options):
    return build_tokens(source, TokenOptions(context=4, **options), tiny_tokenizer, "tiny", "evaluation")


class Unchecked(Texts):
    """A plugin's source that checks nothing."""

    splits_itself = True

    def __init__(self, document):
        self.document = document

    def fingerprint(self):
        return "unnamed"

    def documents(self, split):
        yield from (Document("good", "w1 w2 w3"), self.document, Document("also", "w1"))


# Half of a surrogate pair


def test_half_a_surrogate_pair_is_one_sentence_with_file_and_line(tmp_path, capsys):
    (tmp_path / "c.jsonl").write_text('{"text": "w1 w2 w3"}\n' + HALF)
    (tmp_path / "s.yaml").write_text(
        f"suite: s\nmodel: testbed\ndata: {{use: text, path: {tmp_path}/c.jsonl, context: 8}}\n"
        "saes: [testbed/relu-3]\nmetrics: [l0]\n"
    )
    assert cli.main(["check", str(tmp_path / "s.yaml")]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert f"{tmp_path}/c.jsonl:2: 'text' holds '\\ud83d', half of a surrogate pair; write the whole character" in line


@pytest.mark.parametrize(
    "read",
    [
        lambda path: list(Text(path=path).documents("evaluation")),
        lambda path: list(Preferences(path=path).records()),
        lambda path: list(Preferences(path=path, chosen="rejected", document="owner").records()),
        lambda path: list(Preferences(path=path, chosen="rejected", by=["owner"]).records()),
        lambda path: list(Tokens(path=path, documents="owner").documents("evaluation")),
        lambda path: list(Texts(["good", "\ud83d"]).documents("evaluation")),
        lambda path: Packer(Unchecked(Document("bad", "\udc00")), TokenOptions(context=4), tiny_tokenizer).pack(
            "evaluation"
        ),
        lambda path: Packer(Unchecked(Document("bad", 3)), TokenOptions(context=4), tiny_tokenizer).pack("evaluation"),
    ],
)
def test_whoever_reads_text_says_where_there_is_none(tmp_path, read):
    (tmp_path / "c.jsonl").write_text(HALF)
    with pytest.raises(SaevalError) as raised:
        read(str(tmp_path / "c.jsonl"))
    said = str(raised.value)
    assert "half of a surrogate pair" in said or "expected text, found int" in said
    assert "c.jsonl:1: " in said or "text 2: " in said or "document 'bad'" in said


def test_a_suite_with_half_a_character_is_a_mistake_at_its_place():
    with pytest.raises(SuiteError, match=r"s.yaml:1:8: '\\ud800' is half of a surrogate pair"):
        parse('suite: "\\ud800"\n', "s.yaml")


def test_a_parquet_file_that_is_no_utf8_is_one_sentence(tmp_path):
    bad = pa.Array.from_buffers(
        pa.string(), 1, [None, pa.py_buffer(np.array([0, 2], np.int32).tobytes()), pa.py_buffer(b"\xff\xfe")]
    )
    pyarrow.parquet.write_table(pa.table({"text": bad}), tmp_path / "c.parquet")
    with pytest.raises(SaevalError, match=r"c.parquet: not UTF-8 text, after row 0"):
        list(Text(path=str(tmp_path / "c.parquet")).documents("evaluation"))


# Null records


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_null_texts_are_left_out_and_counted_as_empty_ones_are(tmp_path, suffix):
    records = [{"text": words(1, 2, 3)}, {"text": None}, {"text": ""}, {"text": words(4, 5, 6)}, {"text": None}]
    path = tmp_path / f"c.{suffix}"
    written(path, records)
    nulls = 2
    if suffix == "jsonl":
        path.write_text(path.read_text() + "null\n")
        nulls = 3
    splits = [build_tokens(Text(path=str(path)), TokenOptions(context=4), tiny_tokenizer, "t", s) for s in ("evaluation", "fit")]  # fmt: skip
    counted = [dict(found.describe()["left_out"]) for found in splits]
    assert counted == [{"null": nulls, "empty": 1}] * 2
    assert sorted(name for found in splits for name in found.cluster_names) == [f"c.{suffix}:1", f"c.{suffix}:4"]
    again = build_tokens(Text(path=str(path)), TokenOptions(context=4), tiny_tokenizer, "t", "evaluation")
    assert again.describe() == splits[0].describe()  # from the cache


def test_null_lists_of_tokens_are_left_out_and_counted(tmp_path):
    records = [{"input_ids": [3, 4, 5]}, {"input_ids": None}, {"input_ids": [6, 7, 8]}]
    for suffix in ("jsonl", "parquet"):
        source = Tokens(path=written(tmp_path / f"t.{suffix}", records))
        found = [list(d.tokens) if d.tokens is not None else None for d in source.documents("evaluation")]
        assert found == [[3, 4, 5], None, [6, 7, 8]]


@pytest.mark.parametrize("side", ["chosen", "rejected", "prompt"])
def test_pairs_with_a_null_side_are_left_out_and_counted(tmp_path, side):
    whole = {"prompt": words(1), "chosen": words(2), "rejected": words(3)}
    for suffix in ("jsonl", "parquet"):
        path = written(tmp_path / f"p.{suffix}", [whole, {**whole, side: None}, {**whole, "chosen": words(5)}])
        found = Preferences(path=path, prompt="prompt").dataset("evaluation", tiny_tokenizer)
        assert sorted(found.sequence_ids.tolist()) == [0, 2]
        assert found.describe()["left_out"] == {"null text": 1}


def test_pairs_with_a_null_reward_are_left_out_and_counted(tmp_path):
    records = [{"c": 1.0, "r": 0.5}, {"c": None, "r": 0.5}, {"c": 2.0, "r": 0.0}]
    found = Preferences(
        path=written(tmp_path / "p.jsonl", records), chosen_reward="c", rejected_reward="r"
    ).dataset("evaluation")  # fmt: skip
    assert sorted(found.sequence_ids.tolist()) == [0, 2]
    assert found.describe()["left_out"] == {"null reward": 1}


def test_check_tells_what_was_left_out(tmp_path, capsys):
    records = [{"text": f"def f{i}(x):\n    return x + {i}\n"} for i in range(12)] + [{"text": None}] * 12
    (tmp_path / "s.yaml").write_text(
        f"suite: s\nmodel: testbed\ndata: {{use: text, path: {written(tmp_path / 'c.jsonl', records)}, context: 8}}\n"
        "saes: [testbed/relu-3]\nmetrics: [l0]\n"
    )
    assert cli.main(["check", str(tmp_path / "s.yaml"), "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "; left out: " in printed
    assert " null" in printed


# Globs


def test_text_of_several_files_is_one_corpus(tmp_path):
    for number in (2, 12):
        written(tmp_path / f"part-{number}.jsonl", [{"text": words(number)}])
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "a.txt").write_text(words(3))
    found = [d.name for d in Text(path=f"{tmp_path}/part-*.jsonl").documents("evaluation")]
    assert found == ["part-2.jsonl:1", "part-12.jsonl:1"]
    every = Text(path=f"{tmp_path}/[mp]*")
    assert {d.name: d.text for d in every.documents("evaluation")} == {
        "more/a.txt": words(3), "part-2.jsonl:1": words(2), "part-12.jsonl:1": words(12),
    }  # fmt: skip
    assert every.facts()["files"] == 3
    before = every.fingerprint()
    written(tmp_path / "part-2.jsonl", [{"text": words(5)}])
    assert Text(path=f"{tmp_path}/[mp]*").fingerprint() != before
    one = Text(path=f"{tmp_path}/part-2*")
    assert one.fingerprint() == Text(path=f"{tmp_path}/part-2.jsonl").fingerprint()


def test_tokens_and_pairs_of_several_files(tmp_path):
    for number in (1, 2):
        written(tmp_path / f"t{number}.jsonl", [{"tokens": [number, number]}])
        written(tmp_path / f"p{number}.parquet", [{"chosen": words(number), "rejected": words(9)}])
        np.save(tmp_path / f"a{number}.npy", np.full((2, 3), number))
    assert [d.name for d in Tokens(path=f"{tmp_path}/t*.jsonl").documents("evaluation")] == ["t1.jsonl:1", "t2.jsonl:1"]
    assert len(list(Tokens(path=f"{tmp_path}/a?.npy").documents("evaluation"))) == 4
    pairs = Preferences(path=f"{tmp_path}/p*.parquet")
    assert [(p.row, p.chosen) for p in pairs.records()] == [(0, "w1"), (1, "w2")]
    assert pairs.fingerprint() != Preferences(path=f"{tmp_path}/p1.parquet").fingerprint()
    with pytest.raises(SaevalError, match=r"'documents' needs a single .npy file, but .* matches several"):
        Tokens(path=f"{tmp_path}/a?.npy", documents=f"{tmp_path}/a1.npy")


@pytest.mark.parametrize("source", [Text, Tokens, Preferences])
def test_a_glob_that_matches_nothing_or_something_else(tmp_path, monkeypatch, source):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.md").write_text("x")
    with pytest.raises(SaevalError, match=rf"nothing matches 'path: corpus/\*.jsonl' in {tmp_path}$"):
        source(path="corpus/*.jsonl")
    with pytest.raises(SaevalError, match=r"expected a .*, found .*notes.md"):
        source(path="*.md")
    with pytest.raises(SaevalError, match=rf"no such file or folder: corpus.jsonl in {tmp_path}; check 'path'"):
        source(path="corpus.jsonl")


# Recorded rewards


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_columns_of_recorded_rewards_are_found_without_being_named(tmp_path, suffix):
    records = [{"chosen": words(1), "rejected": words(2), "chosen_reward": 2.0, "rejected_reward": 1.5}]
    path = written(tmp_path / f"r.{suffix}", records)
    found = Preferences(path=path).dataset("evaluation")
    assert [side.supplied["clean_reward"].tolist() for side in found.batch([0], "cpu").sides] == [[2.0], [1.5]]
    assert not found.needs_model
    assert Preferences(path=path).dataset("evaluation", tiny_tokenizer).needs_model  # a model reads the text


# In memory


def test_text_in_memory_needs_no_file():
    texts = [f"def f{i}(x):\n    return {i} * x + {i + 1}\n" for i in range(8)]
    for given in (texts, tuple(texts), pd.Series(texts), np.array(texts), iter(texts)):
        results = evaluate(
            model="testbed", saes=["testbed/relu-3"], data={"texts": given, "context": 8}, metrics=["l0"], allow=["*"]
        )
        assert results.value("l0.l0")["value"] > 0
        assert results[0].cell["data"]["use"] == "texts"
        assert 6 <= results[0].cell["data"]["documents"] <= 8


def test_names_make_documents_of_texts():
    found = packed(Texts([words(1, 2), words(3, 4), words(5, 6)], names=["a", "a", "b"]), bos=False, exclude=[])
    assert set(found.cluster_names) <= {"a", "b"}


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"texts": [], "context": 4}, "data 'texts': the list of texts is empty"),
        ({"texts": "one"}, "'texts' of data 'texts': input should be a valid list, got 'one'"),
        ({"texts": ["a", 3]}, "'texts.1' of data 'texts': input should be a valid string, got 3"),
        (
            {"texts": ["a", "b"], "names": ["a"], "context": 4},
            "data 'texts': expected 2 names, one per text, found 1",
        ),
        ({"texts": ["a"], "contxt": 3}, "unknown parameter 'contxt' of data 'texts'; did you mean 'context'?"),
        ({"texts": ["a"]}, "data 'texts' needs the parameter 'context'"),
    ],
)
def test_a_mistake_in_text_in_memory_is_one_sentence(data, said):
    with pytest.raises(SaevalError) as raised:
        evaluate(model=TinyModel(), saes=[TinySAE()], data=data, metrics=["l0"])
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


def test_text_may_stand_in_the_suite_itself(tmp_path, capsys):
    (tmp_path / "s.yaml").write_text(
        "suite: s\nmodel: testbed\nsaes: [testbed/relu-3]\nmetrics: [l0]\n"
        "data:\n  context: 8\n  texts:\n    - def f(x)\n    - import os, sys\n"
    )
    assert cli.main(["check", str(tmp_path / "s.yaml"), "--out", str(tmp_path)]) == 0
    assert "no problems found" in capsys.readouterr().out


def test_streams_describe_what_was_left_out():
    streams = Streams(Texts([words(1, 2, 3), None, ""], names=["a", "a", "a"]), TokenOptions(context=4), None, None)
    streams.spec = type(
        "Spec",
        (),
        {"tokenizer": staticmethod(tiny_tokenizer), "tokenizer_identity": lambda self: "t", "vocabulary": None},
    )()
    assert streams.description["left_out"] == {"null": 1, "empty": 1}
