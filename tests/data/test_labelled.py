"""Labelled texts: tables of one and many tasks, the package sae-probes' sets, and Python's own tokens."""

from __future__ import annotations

import csv
import dataclasses
import importlib.util
import io
import json
from collections import Counter
from itertools import islice

import pyarrow as pa
import pyarrow.parquet
import pytest

from saeval import Mean, evaluate
from saeval.base.errors import SaevalError
from saeval.plugin import Evidence, Metric, Scalar, fit_split, fold
from saeval.testing import tiny_plugins
from saeval.testing.claims import every, none, some
from saeval_data.labelled import LabelledTables
from saeval_data.python_tokens import TASKS, PythonTokens, stretches
from saeval_data.sae_probes import SaeProbes

RECORDS = [
    {"text": f"text {i}", "label": "a" if i % 3 else "b", "topic": i % 2, "author": f"by {i // 4}"} for i in range(120)
]


def table(path, records=RECORDS):
    """Write records as a file of the kind of its suffix."""
    fields = list(records[0])
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
    elif path.suffix == ".parquet":
        pyarrow.parquet.write_table(pa.Table.from_pylist(records), path)
    else:
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, fields)
        writer.writeheader()
        writer.writerows(records)
        content = text.getvalue().encode()
        with pa.output_stream(str(path), compression="zstd" if path.suffix == ".zst" else None) as stream:
            stream.write(content)
    return path


def documents(source):
    """All documents with their part of the data."""
    return {
        document.name: ("validation" if document.validation else split, document)
        for split in ("fit", "evaluation")
        for document in source.documents(split)
    }


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".csv.zst", ".parquet"])
def test_every_kind_of_file_gives_the_same_texts(tmp_path, suffix):
    found = documents(LabelledTables(str(table(tmp_path / f"t{suffix}")), label=["label", "topic"]))
    by_text = {document.text: document.labels for _, document in found.values()}
    assert by_text == {r["text"]: {"label": r["label"], "topic": str(r["topic"])} for r in RECORDS}


def test_each_class_is_split_in_the_same_shares(tmp_path):
    found = documents(LabelledTables(str(table(tmp_path / "t.jsonl")), shares=(0.5, 0.25, 0.25)))
    counts = Counter((document.labels["label"], part) for part, document in found.values())
    assert counts == {
        ("a", "fit"): 40, ("a", "validation"): 20, ("a", "evaluation"): 20,
        ("b", "fit"): 20, ("b", "validation"): 10, ("b", "evaluation"): 10,
    }  # fmt: skip


def test_a_group_is_one_document_on_one_side(tmp_path):
    source = LabelledTables(str(table(tmp_path / "t.jsonl")), group="author")
    parts = {(d.name, split, d.validation) for split in ("fit", "evaluation") for d in source.documents(split)}
    assert len(parts) == len({name for name, *_ in parts}) == 30
    texts = [document.text for split in ("fit", "evaluation") for document in source.documents(split)]
    assert sorted(texts) == sorted(record["text"] for record in RECORDS)


def test_more_rows_keep_the_same_texts(tmp_path):
    path = str(table(tmp_path / "t.jsonl"))
    few, many = (set(documents(LabelledTables(path, rows=rows))) for rows in (60, 90))
    assert few < many
    other = set(documents(LabelledTables(path, rows=60, draw=1)))
    assert len(other) == len(few)
    assert other != few
    counts = Counter(d.labels["label"] for _, d in documents(LabelledTables(path, rows=60)).values())
    assert counts == {"a": 40, "b": 20}
    balanced = Counter(d.labels["label"] for _, d in documents(LabelledTables(path, rows=60, balance=True)).values())
    assert balanced == {"a": 30, "b": 30}


def test_many_files_are_many_tasks(tmp_path):
    for name in ("one", "two"):
        table(tmp_path / f"{name}.csv.zst")
    source = LabelledTables(tasks=str(tmp_path / "*.csv.zst"), label=["label", "topic"])
    names = {task for _, document in documents(source).values() for task in document.labels}
    assert names == {"one/label", "one/topic", "two/label", "two/topic"}
    assert source.facts()["tasks"]["one/label"] == {"a": 80, "b": 40}
    alone = LabelledTables(tasks=[str(tmp_path / "one.*")])
    assert set(alone.facts()["tasks"]) == {"one"}


def test_a_row_without_a_class_is_outside_the_task(tmp_path):
    records = [{**r, "topic": None if i < 30 else r["topic"]} for i, r in enumerate(RECORDS)]
    found = documents(LabelledTables(str(table(tmp_path / "t.jsonl", records)), label=["label", "topic"]))
    assert sum("topic" in document.labels for _, document in found.values()) == 90
    assert len(found) == 120


def test_stretches_of_a_table_are_tasks_of_tokens(tmp_path):
    records = [
        {"text": "see Rome now", "spans": [{"start": 4, "end": 8, "label": "city"}] * (i % 2)} for i in range(50)
    ]
    found = documents(LabelledTables(str(table(tmp_path / "t.jsonl", records)), spans="spans", rows=40))
    assert len(found) == 40
    assert {tuple(document.spans["city"]) for _, document in found.values()} == {(), ((4, 8),)}
    as_csv = [{"text": r["text"], "spans": json.dumps(r["spans"])} for r in records]
    of_csv = documents(LabelledTables(str(table(tmp_path / "t.csv", as_csv)), spans="spans", rows=40))
    assert len(of_csv) == 40


ONE_CLASS = [{**r, "label": "a"} for r in RECORDS]
MANY = [{**r, "label": label} for r, label in zip(RECORDS, [*"ab", *map(str, range(8))] * 12, strict=True)]
FEW = [{**r, "label": "rare" if i < 19 else "b"} for i, r in enumerate(RECORDS)]


@pytest.mark.parametrize(
    ("files", "options", "fault"),
    [
        ({"t.jsonl": ONE_CLASS}, {}, "task 'label' has one class, 'a'; it needs two"),
        ({"t.jsonl": FEW}, {}, "class 'rare' of task 'label' has 19 texts; each class needs 20"),
        ({"t.jsonl": RECORDS, "u.jsonl": FEW}, {"path": "*.jsonl"},
         "u.jsonl: the classes of 'label' differ from those in t.jsonl: 'rare' in u.jsonl alone, 'a' in t.jsonl alone; make"),
        ({"t.jsonl": RECORDS, "u.jsonl": ONE_CLASS}, {"path": "*.jsonl"}, "in t.jsonl: 'b' in t.jsonl alone; make"),
        ({"t.jsonl": RECORDS, "u.jsonl": MANY}, {"path": "*.jsonl"}, "in t.jsonl: '0' '1' '2' '3' '4' and 3 more in u.jsonl alone; make"),
        ({"t.jsonl": [{"text": "abc", "spans": [{"start": 1, "end": 9, "label": "x"}]}]}, {"spans": "spans"},
         r"t.jsonl:1: the span \[1, 9\) is not inside the text of 3 characters"),
        ({"t.jsonl": [{"text": "abc", "spans": [{"start": 1}]}]}, {"spans": "spans"}, "expected {start, end, label}"),
        ({"t.csv": [{"text": "abc", "spans": "[{"}]}, {"spans": "spans"}, "row 1: 'spans' is not JSON"),
        ({"t.jsonl": [{**RECORDS[0], "label": 0.5}]}, {}, "t.jsonl:1: expected a class in 'label' .*found 0.5"),
        ({"t.jsonl": RECORDS}, {"label": "mood"}, "expected a field 'mood', found text, label"),
        ({"t.jsonl": RECORDS}, {"rows": 39}, "'rows' must be at least 40, found 39"),
        ({"t.jsonl": RECORDS}, {"shares": (0.5, 0.2, 0.2)}, "'shares' must be three shares that sum to 1"),
        ({"t.jsonl": RECORDS}, {"tasks": "*.jsonl"}, "expected one of 'path' and 'tasks', found both"),
        ({"t.jsonl": RECORDS}, {"path": "*.csv"}, "nothing matches 'path: "),
        ({"t.txt": RECORDS}, {"path": "*.txt"}, "expected a .jsonl, .csv, .csv.zst or .parquet file"),
    ],
)  # fmt: skip
def test_tables_that_are_refused(tmp_path, files, options, fault):
    for name, records in files.items():
        table(tmp_path / name, records)
    path = str(tmp_path / options.pop("path", next(iter(files))))
    with pytest.raises(SaevalError, match=fault):
        list(LabelledTables(path, **options).documents("fit"))


def test_two_tasks_of_one_name(tmp_path):
    for name in ("t.csv", "t.jsonl"):
        table(tmp_path / name)
    with pytest.raises(SaevalError, match="two files of 'tasks' are named 't'"):
        LabelledTables(tasks=str(tmp_path / "t.*"))


@pytest.fixture
def probes(tmp_path):
    """A folder such as the package has: two sets of classes, one of numbers, and the overview."""
    sets = tmp_path / "data" / "cleaned_data"
    sets.mkdir(parents=True)
    records = [{"prompt": f"text {i}", "prompt_len": 2, "target": i % 2} for i in range(100)]
    for name in ("5_hist_fig_ismale", "161_agnews_0"):
        table(sets / f"{name}.csv.zst", records)
    table(sets / "2_hist_fig_birthyear.csv.zst", [{"prompt": "x", "target": 1700 + i} for i in range(60)])
    kinds = {"5_hist_fig_ismale": "Binary Classification", "2_hist_fig_birthyear": "Continuous Data"}
    overview = [{"Data type": kind, "Dataset save name": f"cleaned_data/{name}.csv"} for name, kind in kinds.items()]
    table(tmp_path / "data" / "probing_datasets_MASTER.csv.zst", overview)
    return tmp_path / "data"


def test_sets_of_the_package(probes, monkeypatch):
    whole = SaeProbes(folder=str(probes))
    assert set(whole.facts()["tasks"]) == {"5_hist_fig_ismale", "161_agnews_0"}
    one = SaeProbes("*agnews*", folder=str(probes), rows=40)
    assert one.facts()["tasks"] == {"161_agnews_0": {"0": 20, "1": 20}}
    (probes.parent / "__init__.py").write_text("raise ImportError('never imported')\n")
    spec = importlib.util.spec_from_file_location("sae_probes", probes.parent / "__init__.py")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    assert SaeProbes("*agnews*", rows=40).fingerprint() == one.fingerprint()


@pytest.mark.parametrize(
    ("given", "fault"),
    [
        ({"tasks": "2_hist*"}, "'2_hist_fig_birthyear' has numbers instead of classes; choose another task"),
        ({"tasks": "agnews_0"}, "no task matches 'agnews_0'; did you mean '161_agnews_0'"),
        ({"folder": "nowhere"}, "nowhere/cleaned_data holds no .csv.zst files; name"),
        ({"folder": None}, "sae-probes is not installed; pip install --no-deps sae-probes, or name the folder"),
    ],
)
def test_sets_that_are_refused(probes, monkeypatch, given, fault):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SaevalError, match=fault):
        SaeProbes(**{"folder": str(probes), **given})


SOURCE = '''"""Module."""
import os  # naïve

LIMIT = 0x1F + 2.5


class Point:
    """A "point"."""

    x: int = 1

    def norm(self, scale):
        """Long
        one."""
        if self.x:
            return os.path.join(f"é {self.x}", "plain") * 3
'''


def test_stretches_of_python():
    spans = stretches(SOURCE)
    found = {task: [SOURCE[start:end] for start, end in spans[task]] for task in spans}
    docstrings = ['"""Module."""', '"""A "point"."""', '"""Long\n        one."""']
    assert set(found) == set(TASKS)
    assert sorted(found["docstring"]) == sorted(docstrings)
    assert found["string"] == [*docstrings, 'f"é {self.x}"', '"plain"']
    assert found["comment"] == ["# naïve"]
    assert found["number"] == ["0x1F", "2.5", "1", "3"]
    assert found["definition_name"] == ["Point", "norm"]
    assert found["attribute"] == ["x", "path", "join", *(["x"] if len(found["attribute"]) == 4 else [])]
    assert found["keyword"] == ["import", "class", "def", "if", "return"]
    assert found["block_start"][:2] == ['"""A "point"."""', '"""Long\n        one."""']
    assert "".join(found["depth_2"]).startswith('"""Long')
    assert none("Point" in word or word == "def" for word in found["depth_2"])
    assert stretches("def broken(:\n") is None


def test_python_tokens_have_both_labels():
    for document in some(list(islice(PythonTokens().documents("evaluation"), 3))):
        assert every(
            0 <= start < end <= len(document.text) for spans in document.spans.values() for start, end in spans
        )
        assert set(document.spans) == set(TASKS)
    flags = [document.validation for document in islice(PythonTokens().documents("fit"), 30)]
    assert 0 < sum(flags) < 15


@dataclasses.dataclass(frozen=True, eq=False)
class Counted(Evidence):
    """Numbers of rows of each kind."""

    rows: float
    validation: float
    marked: float


@fit_split
@fold
def labelled_rows(labels, token_labels, validation) -> Counted:
    """Fold: rows of the fit split with label `a`, for validation, and tokens with a label."""
    marked = sum(float((marks == 1).sum()) for marks in token_labels.values())
    return Counted(float((labels["label"] == "a").sum()), float(validation.sum()), marked)


class LabelCounts(Metric):
    """Rows with label `a`."""

    name, version = "label_counts", 1

    def observe(self, labels, mask) -> Mean:
        return Mean.of(mask.new_tensor(labels["label"] == "a").double()[:, None].expand(mask.shape), mask)

    def conclude(self, total, labelled_rows):
        return {
            "share": Scalar(total.value),
            **{name: Scalar(getattr(labelled_rows, name)) for name in ("rows", "validation", "marked")},
        }


def test_labels_reach_metrics_on_both_splits(tmp_path):
    """The whole fit split is used, whatever the default number of its rows for other data."""
    records = [{**r, "spans": [{"start": 0, "end": 4, "label": "w"}]} for r in RECORDS]
    path = str(table(tmp_path / "t.jsonl", records))
    data = {
        "use": "labelled",
        "path": path,
        "label": "label",
        "spans": "spans",
        "context": 12,
        "shares": [0.5, 0.25, 0.25],
    }
    plugins = tiny_plugins(LabelCounts, quantities=[labelled_rows])
    results = evaluate(model="testbed", saes=["testbed/relu-1"], data=data, metrics=["label_counts"], plugins=plugins)
    values = {name: record["value"] for name, record in results[0].values.items()}
    assert values["rows"] == 60
    assert values["validation"] == 30
    assert values["marked"] >= 90
    assert values["share"] == pytest.approx(2 / 3, abs=0.02)
