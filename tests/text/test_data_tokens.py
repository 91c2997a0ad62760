"""Rows of tokens: what is cut where, what the mask says and which rows are kept."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from documents import BOS, EOS, Ids, build, corpus
from saeval.base.errors import SaevalError
from saeval.interfaces.data import Document, Source
from saeval.text.tokens import TokenDataset, TokenOptions

pytestmark = pytest.mark.usefixtures("own_cache")


class Words(Source):
    name = "words"

    def __init__(self, texts: list[str]) -> None:
        self.texts = texts

    def fingerprint(self) -> str:
        return json.dumps(self.texts)

    def documents(self, split) -> Iterator[Document]:
        for index, text in enumerate(self.texts):
            yield Document(f"doc{index}", text)


def absent():
    raise SaevalError("model 'tiny' has no tokenizer")


def byte_tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<s>": BOS, "</s>": EOS, **{letter: i + 2 for i, letter in enumerate(alphabet)}}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", model_max_length=4)


def rows(dataset: TokenDataset) -> list[list[int]]:
    """The tokens of each row without padding, in the order of their numbers."""
    return sorted(t[d >= 0].tolist() for t, d in zip(dataset.tokens, dataset.documents))


def targets(dataset: TokenDataset) -> list[int]:
    """Target tokens of all masked positions."""
    batch = dataset.batch(range(len(dataset)), "cpu")
    return sorted(batch.targets[batch.mask].tolist())


def test_documents_with_bos():
    documents = {"a": [10, 11, 12, 13, 14, 15], "b": [20, 21]}
    dataset = build(documents)
    assert rows(dataset) == [[BOS, 10, 11, 12, 13], [BOS, 14, 15], [BOS, 20, 21]]
    assert targets(dataset) == [11, 12, 13, 15, 21]  # what follows the excluded BOS is no target
    assert targets(build(documents, exclude=[])) == [
        10,
        11,
        12,
        13,
        14,
        15,
        20,
        21,
    ]


def test_documents_without_bos():
    dataset = build({"a": [10, 11, 12, 13, 14, 15], "b": [20, 21]}, bos=False)
    assert rows(dataset) == [[10, 11, 12, 13, 14], [14, 15], [20, 21]]
    assert targets(dataset) == [11, 12, 13, 14, 15, 21]


def test_rows_with_an_empty_mask_are_dropped():
    documents = {"a": [10, 11, 12, 13, 14], "b": [20], "c": []}
    assert rows(build(documents)) == [[BOS, 10, 11, 12, 13]]  # [BOS, 14] and [BOS, 20] score nothing
    assert rows(build(documents, exclude=[])) == [[BOS, 10, 11, 12, 13], [BOS, 14], [BOS, 20]]
    assert rows(build(documents, bos=False)) == [[10, 11, 12, 13, 14]]


def test_concat_with_bos():
    """The stream is 10 11 12 | EOS | 20 21 22 23 24 | EOS | 30; its last, partial row is dropped."""
    documents = {"a": [10, 11, 12], "b": [20, 21, 22, 23, 24], "c": [30]}
    dataset = build(documents, packing="concat")
    assert rows(dataset) == [[BOS, 10, 11, 12, EOS], [BOS, 20, 21, 22, 23]]
    assert targets(dataset) == [EOS, 11, 12, 21, 22, 23]


def test_concat_without_bos():
    documents = {"a": [10, 11, 12], "b": [20, 21, 22, 23, 24], "c": [30]}
    dataset = build(documents, packing="concat", bos=False)
    assert rows(dataset) == [[10, 11, 12, EOS, 20], [20, 21, 22, 23, 24]]
    # 20 follows another document's EOS: real attention, no target.
    assert targets(dataset) == [EOS, 11, 12, 21, 22, 23, 24]
    owners = {dataset.cluster_names[c]: t.tolist() for c, t in zip(dataset.clusters, dataset.tokens)}
    assert owners == {"a": [10, 11, 12, EOS, 20], "b": [20, 21, 22, 23, 24]}


def test_cluster_of_a_concatenated_row_owns_most_of_it():
    dataset = build({"a": [10], "b": [20, 21, 22]}, packing="concat", bos=False)
    assert rows(dataset) == [[10, EOS, 20, 21, 22]]
    assert dataset.cluster_names == ["b"]


def test_concat_separator_falls_back_to_bos():
    class BosOnly(Ids):
        eos_token_id = None

    dataset = build({"a": [10, 11], "b": [20, 21]}, packing="concat", bos=False, tokenizer=BosOnly, exclude=[])
    assert rows(dataset) == [[10, 11, BOS, 20, 21]]


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 23), min_size=1, max_size=6),
    context=st.integers(1, 9),
    bos=st.booleans(),
)
def test_every_token_is_a_target_once(tmp_path_factory, lengths, context, bos):
    """But a document's first where nothing precedes it."""
    ids = iter(range(2, 10_000))
    documents = {f"d{i}": [next(ids) for _ in range(n)] for i, n in enumerate(lengths)}
    expected = [t for tokens in documents.values() for t in tokens[0 if bos else 1 :]]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SAEVAL_CACHE", str(tmp_path_factory.mktemp("cache")))
        if expected:
            assert targets(build(documents, context=context, bos=bos, exclude=[])) == expected
        else:
            with pytest.raises(SaevalError, match="at least one sequence"):
                build(documents, context=context, bos=bos, exclude=[])


def test_batch():
    dataset = build({"a": [10, 11, 7, 12, 13, 14], "b": [20, 21]}, exclude=["bos", 7])
    order = [dataset.tokens[i, 1] for i in range(3)]
    picked = [order.index(13), order.index(10)]
    batch = dataset.batch(picked, "cpu")
    assert batch.tokens.tolist() == [[BOS, 13, 14, 0], [BOS, 10, 11, 7]]
    assert batch.targets.tolist() == [[13, 14, 0, 0], [10, 11, 7, 12]]
    assert batch.real.tolist() == [[True, True, True, False], [True] * 4]
    assert batch.mask.tolist() == [[False, True, False, False], [False, True, True, False]]
    assert batch.tokens.dtype == torch.int64
    assert batch.mask.dtype == batch.real.dtype == torch.bool
    assert batch.sequence_ids.tolist() == picked
    assert batch.clusters[0] == batch.clusters[1] == dataset.cluster_names.index("a")


def test_special_tokens_inside_a_document_are_excluded_by_name():
    assert targets(build({"a": [10, EOS, 11]}, exclude=["bos", "eos", "pad"])) == [EOS]


def test_clusters_are_numbered_as_they_appear():
    dataset = build({f"d{i}": list(range(10, 22)) for i in range(9)}, sequences=15)
    seen = list(dict.fromkeys(dataset.clusters.tolist()))
    assert seen == list(range(dataset.n_clusters))
    assert len(dataset.cluster_names) == dataset.n_clusters > 5


def test_documents_of_one_name_are_one_cluster_and_stay_apart():
    documents = {"a#1": [10, 11, 12], "a#2": [20, 21, 22], "b": [30, 31]}
    dataset = build(documents)
    assert sorted(dataset.cluster_names) == ["a", "b"]
    stream = build(documents, packing="concat", context=8, bos=False, exclude=[])
    assert stream.cluster_names == ["a"]
    assert targets(stream) == [EOS, EOS, 11, 12, 21, 22]  # 20 does not continue 12


@pytest.mark.parametrize("packing", ["documents", "concat"])
def test_more_sequences_are_a_superset(packing):
    few, many, everything = (build(corpus(), sequences=n, packing=packing) for n in (10, 40, None))
    for less, more in [(few, many), (many, everything)]:
        assert np.array_equal(less.tokens, more.tokens[: len(less)])
        assert np.array_equal(less.documents, more.documents[: len(less)])
        assert np.array_equal(less.clusters, more.clusters[: len(less)])
    assert few.n_clusters >= 6  # ten rows of twenty documents come from many of them


def test_the_choice_depends_on_the_seed_not_on_the_order_of_documents():
    content = corpus()
    shuffled = dict(reversed(content.items()))
    assert np.array_equal(build(content, sequences=10).tokens, build(shuffled, sequences=10).tokens)
    assert not np.array_equal(build(content, sequences=10).tokens, build(content, sequences=10, seed=1).tokens)


def test_too_few_sequences():
    with pytest.raises(SaevalError, match=r"'sequences: 9' was requested, but its evaluation documents give 2 of"):
        build({"a": list(range(10, 18))}, sequences=9)


def test_padding_adds_nothing():
    dataset = build(corpus(4), sequences=5)
    padded = dataset.padded(3)
    one, other = dataset.batch(range(5), "cpu"), padded.batch(range(5), "cpu")
    assert other.tokens.shape == (5, 7)
    assert torch.equal(other.tokens[:, :4][one.mask], one.tokens[one.mask])
    assert torch.equal(other.mask[:, :4], one.mask)
    assert not other.mask[:, 4:].any()
    assert not other.real[:, 5:].any()
    assert padded.describe()["tokens"] == dataset.describe()["tokens"] == int(one.mask.sum())


def test_without_a_tokenizer():
    with pytest.raises(SaevalError, match=r"needs a BOS token, but there is no tokenizer \(model 'tiny' has"):
        build({"a": [10, 11]}, tokenizer=absent)
    with pytest.raises(SaevalError, match=r"'packing: concat' needs an EOS or BOS token"):
        build({"a": [10, 11]}, tokenizer=absent, bos=False, packing="concat")
    assert rows(build({"a": [10, 11]}, tokenizer=absent, bos_id=5)) == [[5, 10, 11]]
    assert rows(build({"a": [10, 11]}, tokenizer=absent, bos=False)) == [[10, 11]]
    with pytest.raises(SaevalError, match="has no tokenizer"):
        build(Words(["ab", "cd"]), tokenizer=absent)

    class Bare:
        bos_token_id = None

    with pytest.raises(SaevalError, match="but the tokenizer has none; set 'bos_id'"):
        build({"a": [10, 11]}, tokenizer=Bare)


def test_options_are_checked():
    for wrong in [
        {"context": 0}, {}, {"context": 4, "sequences": 0}, {"context": 4, "exclude": ["box"]},
        {"context": 4, "exclude": [-1]}, {"context": 4, "exclude": [True]}, {"context": 4, "packing": "loose"},
        {"context": 4, "squences": 3},
    ]:  # fmt: skip
        with pytest.raises(ValidationError):
            TokenOptions(**wrong)
    assert TokenOptions(context=4).exclude == ["bos"]


def test_text_is_tokenised_without_special_tokens_or_warnings(caplog, monkeypatch):
    source = Words(["hello world", "", "a", "ünïcode ▁ text"] * 3)
    source.splits_itself = True
    tokenizer = byte_tokenizer()
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)  # or caplog would see nothing
    with warnings.catch_warnings(), caplog.at_level(logging.WARNING):
        warnings.simplefilter("error")
        dataset = build(source, tokenizer=lambda: tokenizer, context=6, exclude=[])
    assert not caplog.records
    expected = [t for text in source.texts for t in tokenizer.encode(text, add_special_tokens=False)]
    assert targets(dataset) == sorted(expected)
    assert (dataset.tokens[:, 0] == BOS).all()
