"""Columns beside token ids: an attention mask is honoured, what else would change the meaning is named."""

from __future__ import annotations

import json
import logging

import pandas as pd
import pytest

from saeval import evaluate
from saeval.base.errors import SaevalError
from saeval_data.preferences import Preferences
from saeval_data.tokens import Tokens

ROWS = [[5, 6, 7, 8, 9, 10], [11, 12, 13], [14, 15, 16, 17], [18, 19, 20], [21, 22, 23, 24, 25], [26, 27]] * 2
WIDTH = 8


def padded(row, left):
    space = WIDTH - len(row)
    ids, mask = [*row, *[3] * space], [1] * len(row) + [0] * space
    return (ids[len(row) :] + ids[: len(row)], mask[len(row) :] + mask[: len(row)]) if left else (ids, mask)


def write(path, records):
    if path.suffix == ".parquet":
        pd.DataFrame(records).to_parquet(path)
    else:
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
@pytest.mark.parametrize("left", [False, True])
def test_an_attention_mask_says_what_is_padding(tmp_path, suffix, left):
    both = [padded(row, left) for row in ROWS]
    path = write(tmp_path / f"a{suffix}", [{"input_ids": ids, "attention_mask": mask} for ids, mask in both])
    found = [list(d.tokens) for d in Tokens(path).documents("evaluation")]
    assert found == ROWS


def test_padded_rows_give_the_numbers_of_rows_without_padding(tmp_path):
    bare = write(tmp_path / "t.jsonl", [{"input_ids": row} for row in ROWS])
    values = []
    for records in (
        [{"input_ids": row} for row in ROWS],
        [dict(zip(("input_ids", "attention_mask"), padded(r, True))) for r in ROWS],
    ):
        write(tmp_path / "t.jsonl", records)
        data = {"use": "tokens", "path": bare, "context": 8, "bos": False, "exclude": []}
        values.append(
            evaluate(model="testbed", saes=["testbed/relu-1"], data=data, metrics=["ce"]).value("ce.ce_clean")
        )
    assert values[0]["n"] > 20
    assert values[0] == values[1]


@pytest.mark.parametrize(
    ("mask", "sentence"),
    [
        ([1, 0, 1], "t.jsonl:1: 'attention_mask' is 0 at position 1, between tokens where it is 1"),
        ([1, 1], "t.jsonl:1: 'attention_mask' has 2 entries for 3 tokens"),
        ([1, 2, 1], "t.jsonl:1: expected a list of 0 and 1 in 'attention_mask'"),
        ("111", "t.jsonl:1: expected a list of 0 and 1 in 'attention_mask'"),
    ],
)
def test_masks_that_are_none(tmp_path, mask, sentence):
    path = write(tmp_path / "t.jsonl", [{"input_ids": [4, 5, 6], "attention_mask": mask}])
    with pytest.raises(SaevalError, match=sentence):
        list(Tokens(path).documents("evaluation"))


def test_masked_ids_may_be_anything_and_a_row_of_padding_is_empty(tmp_path):
    rows = [{"input_ids": [-100, 5, 6], "attention_mask": [0, 1, 1]}, {"input_ids": [3, 3], "attention_mask": [0, 0]}]
    path = write(tmp_path / "t.jsonl", [*rows, {"input_ids": [7], "attention_mask": None}])
    assert [list(d.tokens) for d in Tokens(path).documents("evaluation")] == [[5, 6], [], [7]]


def test_columns_that_change_the_meaning_elsewhere_are_named(tmp_path, caplog):
    rows = [{"input_ids": row, "labels": [-100, *row[1:]], "token_type_ids": [0] * len(row), "id": 1} for row in ROWS]
    path = write(tmp_path / "t.jsonl", rows)
    data = {"use": "tokens", "path": path, "context": 8, "bos": False}
    with caplog.at_level(logging.WARNING, "saeval"):
        results = evaluate(model="testbed", saes=["testbed/relu-1"], data=data, metrics=["l0"])
    said = [record.getMessage() for record in caplog.records]
    assert said == [
        f"data 'tokens': {path}: columns 'labels', 'token_type_ids' are not used: every token except padding counts"
    ]
    assert "'labels'" in results[0].cell["data"]["unused"][0]


def test_a_prompt_column_that_is_not_used_is_named(tmp_path):
    path = tmp_path / "pairs.jsonl"
    record = {"prompt": "is it?", "chosen": "yes", "rejected": "no"}
    path.write_text(json.dumps(record) + "\n")
    assert "unused" not in Preferences(path=str(path), prompt="prompt").facts()
    (said,) = Preferences(path=str(path)).facts()["unused"]
    assert "column 'prompt' is not used; add 'prompt: prompt' if 'chosen' and 'rejected' do not begin with it" in said
