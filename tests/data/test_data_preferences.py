"""The data source `preferences`: which rows it makes of which files, and what it says of the wrong ones."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from saeval import SaevalError, cli
from saeval.testing.architectures import tiny_folder, tiny_tokenizer
from saeval_data.pairs import divergence
from saeval_data.preferences import Preferences
from saeval_testbed.pairs import TestbedPreferences

TOKENIZER = tiny_tokenizer()


def word(index):
    return TOKENIZER.convert_ids_to_tokens(index)


def text(*ids):
    return " ".join(word(i) for i in ids)


PAIRS = [
    {"chosen": text(3, 4, 5), "rejected": text(3, 6, 5, 7), "subset": "a", "topic": 1},
    {"chosen": text(8, 9), "rejected": text(8, 9, 10), "subset": "b", "topic": None},
    {"chosen": text(11, 12), "rejected": text(11, 12), "subset": "a", "topic": 2},
]


def write(path, records):
    path.write_text("".join(json.dumps(r) + "\n" for r in records))
    return str(path)


@pytest.fixture
def file(tmp_path):
    return write(tmp_path / "pairs.jsonl", PAIRS)


def source(path, **options):
    return Preferences(path=path, **{"bos": False, **options})


def dataset(path, split="evaluation", **options):
    return source(path, **options).dataset(split, lambda: TOKENIZER)


def in_file_order(found):
    return found.batch(np.argsort(found.sequence_ids), "cpu")


def test_divergence_is_the_first_difference_and_one_earlier_for_a_prefix():
    assert divergence([1, 2, 3], [1, 4, 3]) == 1
    assert divergence([1, 2], [1, 2, 3]) == 1
    assert divergence([1, 2, 3], [1, 2]) == 1
    assert divergence([1, 2], [1, 2]) == 1
    assert divergence([5], [6]) == 0


def test_rows_are_both_sides_from_the_divergence_on(file):
    batch = in_file_order(dataset(file))
    chosen, rejected = batch.sides
    assert batch.divergence.tolist() == [1, 1, 1]
    assert chosen.tokens[0].tolist() == [3, 4, 5, 0]
    assert rejected.tokens[0].tolist() == [3, 6, 5, 7]
    assert chosen.real.tolist() == [[1, 1, 1, 0], [1, 1, 0, 0], [1, 1, 0, 0]]
    assert chosen.mask.tolist() == [[0, 1, 1, 0], [0, 1, 0, 0], [0, 1, 0, 0]]
    assert rejected.mask.tolist() == [[0, 1, 1, 1], [0, 1, 1, 0], [0, 1, 0, 0]]
    # The likelihood of the differing tokens is told by the position before each.
    assert rejected.supplied["scored"].tolist() == [[1, 1, 1, 0], [1, 1, 0, 0], [1, 0, 0, 0]]
    assert rejected.targets[0, :3].tolist() == [6, 5, 7]
    assert chosen.supplied["spelling"]([3, 4]) == [word(3), f" {word(4)}"]


def test_the_pairs_do_not_depend_on_how_many_are_asked_for(tmp_path):
    path = write(tmp_path / "many.jsonl", [{"chosen": text(3, i), "rejected": text(3, i + 1)} for i in range(4, 90)])
    few, more = (set(dataset(path, pairs=n).sequence_ids.tolist()) for n in (10, 30))
    assert len(few) == 10
    assert few < more
    assert set(dataset(path, pairs=10, seed=1).sequence_ids.tolist()) != few


def test_the_longest_pairs_come_first(file):
    assert dataset(file).batch([0, 1, 2], "cpu").sides[1].real.sum(1).tolist() == [4, 3, 2]


def test_prompt_bos_and_eos_frame_each_side(tmp_path):
    path = write(tmp_path / "p.jsonl", [{"prompt": text(2, 3) + " ", "chosen": text(4), "rejected": text(5)}])
    batch = dataset(path, prompt="prompt", bos=True, eos=True).batch([0], "cpu")
    end = TOKENIZER.eos_token_id
    assert batch.sides[0].tokens.tolist() == [[end, 2, 3, 4, end]]
    assert batch.divergence.tolist() == [3]


def test_columns_and_ranges_become_labels(file):
    found = dataset(file, by=["subset", "topic"], trained_on=[(0, 1), (2, 3)])
    labels = in_file_order(found).sides[0].supplied["labels"]
    assert {name: values.tolist() for name, values in labels.items()} == {
        "subset": ["a", "b", "a"],
        "topic": ["1", "–", "2"],
        "trained_on": ["yes", "no", "yes"],
    }
    assert found.describe()["identical"] == 1
    assert found.describe()["columns"]["subset"] == ["a", "b"]


def test_pairs_of_one_prompt_or_document_are_one_cluster(tmp_path):
    records = [
        {"prompt": p, "chosen": text(4), "rejected": text(5), "doc": d} for p, d in (("x ", 1), ("x ", 2), ("y ", 2))
    ]
    path = write(tmp_path / "p.jsonl", records)
    by_prompt, by_document = dataset(path, prompt="prompt"), dataset(path, prompt="prompt", document="doc")
    order = np.argsort(by_prompt.sequence_ids)
    assert len(set(by_prompt.clusters[order][:2])) == 1
    assert len(set(by_document.clusters[order][1:])) == 1
    assert by_prompt.n_clusters == by_document.n_clusters == 2


def test_swap_exchanges_the_sides_of_its_share(file):
    plain, swapped = in_file_order(dataset(file)), in_file_order(dataset(file, swap=1.0))
    assert torch.equal(plain.sides[0].tokens, swapped.sides[1].tokens)
    assert torch.equal(plain.sides[1].mask, swapped.sides[0].mask)


def test_the_fit_split_has_other_documents(tmp_path):
    path = write(tmp_path / "m.jsonl", [{"chosen": text(3, i), "rejected": text(3, i + 1)} for i in range(4, 90)])
    with pytest.raises(SaevalError, match=r"no fit split; set aside a share, as in 'fit_share: 0.1'"):
        dataset(path, "fit")
    fit, rest = dataset(path, "fit", fit_share=0.3), dataset(path, fit_share=0.3)
    assert 10 < len(fit) < 40
    assert not set(fit.sequence_ids) & set(rest.sequence_ids)
    assert len(fit) + len(rest) == 86


def test_parquet_and_a_dataset_folder_give_the_same_pairs(tmp_path, file):
    import datasets
    import pandas as pd

    pd.DataFrame(PAIRS).to_parquet(tmp_path / "pairs.parquet")
    datasets.Dataset.from_list(PAIRS).save_to_disk(tmp_path / "saved")
    expected = dataset(file, by=["subset"]).fingerprint
    assert dataset(str(tmp_path / "pairs.parquet"), by=["subset"]).fingerprint == expected
    assert dataset(str(tmp_path / "saved"), by=["subset"]).fingerprint == expected


def test_empty_completions_and_long_pairs_are_left_out_and_counted(tmp_path):
    long = {"chosen": text(*range(3, 13)), "rejected": text(3)}
    path = write(tmp_path / "p.jsonl", [*PAIRS, {"chosen": "", "rejected": text(4)}, long])
    found = dataset(path, context=5)
    assert len(found) == 3
    assert found.describe()["left_out"] == {"empty completion": 1, "longer than 5 tokens": 1}
    only = write(tmp_path / "empty.jsonl", [{"chosen": "", "rejected": text(4)}])
    with pytest.raises(SaevalError, match=r"at least one pair is needed, .* has 0, 1 left out as empty completion"):
        dataset(only)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"chosen": "better"}, "pairs.jsonl:1: expected a field 'better', found chosen, rejected, subset, topic"),
        ({"by": ["source"]}, "pairs.jsonl:1: expected a field 'source'"),
        ({"chosen": "topic"}, "pairs.jsonl:1: expected text in 'topic', found int"),
        ({"trained_on": [(5, 2)]}, r"'trained_on' needs ranges \[from, to\), found \[5, 2\]"),
        ({"chosen_reward": "topic"}, "'chosen_reward' and 'rejected_reward' must be set together"),
        ({"fit_share": 2.0}, "'fit_share' must be between 0 and 1"),
        ({"pairs": 9}, "'pairs: 9' were requested, but its evaluation split has 3"),
    ],
)
def test_what_is_wrong_is_said(file, options, said):
    with pytest.raises(SaevalError, match=said):
        dataset(file, **options)


def test_a_conversation_in_parts_is_refused(tmp_path):
    path = write(tmp_path / "c.jsonl", [{"chosen": [{"role": "user", "content": "x"}], "rejected": "y"}])
    with pytest.raises(SaevalError, match=r"c.jsonl:1: expected text in 'chosen', found list; join the messages"):
        dataset(path)


@pytest.fixture
def recorded(tmp_path):
    return write(tmp_path / "r.jsonl", [{"c": 2.0, "r": 0.5, "subset": "a"}, {"c": 1, "r": 3, "subset": "b"}])


def test_recorded_rewards_need_no_text_no_model_and_no_tokenizer(recorded):
    found = source(recorded, chosen_reward="c", rejected_reward="r", by=["subset"]).dataset("evaluation")
    assert not found.needs_model
    assert "clean_reward" in found.supplies
    batch = in_file_order(found)
    assert [side.supplied["clean_reward"].tolist() for side in batch.sides] == [[2.0, 1.0], [0.5, 3.0]]
    assert batch.sides[0].tokens.shape == (2, 0)


def test_recorded_rewards_and_a_model_do_not_go_together(recorded):
    with pytest.raises(SaevalError, match="rewards are recorded in columns, so there is no text for a model"):
        dataset(recorded, chosen_reward="c", rejected_reward="r")
    with pytest.raises(SaevalError, match="text needs a model for its tokenizer and rewards; add 'model:'"):
        source(recorded, chosen="c", rejected="r").dataset("evaluation")


def test_a_recorded_reward_that_is_no_number_is_named(tmp_path):
    path = write(tmp_path / "r.jsonl", [{"c": 1.0, "r": 0.0}, {"c": "x", "r": 0.0}])
    with pytest.raises(SaevalError, match=r"r.jsonl:2: expected a number in 'c', found 'x'"):
        source(path, chosen_reward="c", rejected_reward="r").dataset("evaluation")


def test_pairs_longer_than_the_model_are_refused_before_anything_runs(tmp_path, capsys):
    tiny_folder(tmp_path / "model", kind="reward")
    write(tmp_path / "p.jsonl", [{"chosen": text(*([3] * 70)), "rejected": text(4)}])
    suite = f"suite: s\nmodel: {{use: huggingface, path: {tmp_path}/model}}\n"
    suite += f"data: {{use: preferences, path: {tmp_path}/p.jsonl}}\nmetrics: [reward_margin]\n"
    (tmp_path / "s.yaml").write_text(suite)
    assert cli.main(["check", str(tmp_path / "s.yaml")]) == 2
    assert "s.yaml:3:7: context 71 is longer than the 64 positions of 'model'" in capsys.readouterr().err


def test_the_testbeds_pairs():
    found = TestbedPreferences(made=40, pairs=12).dataset("evaluation", lambda: TOKENIZER)
    assert len(found) == 12
    labels = found.batch(range(12), "cpu").sides[0].supplied["labels"]
    assert set(labels) == {"subset", "flipped"}
    assert found.n_clusters > 3
