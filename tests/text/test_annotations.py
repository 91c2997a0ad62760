"""Labels of documents and of their tokens stay with their rows, however documents are cut into rows."""

from __future__ import annotations

import dataclasses
import string

import numpy as np
import pytest
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from documents import Documents, build
from saeval.base.errors import SaevalError
from saeval.interfaces.data import Document, Source
from saeval.testing.claims import every, some
from saeval.text.annotations import covers
from saeval.text.tokens import TokenOptions, build_tokens


def one_token_a_character() -> PreTrainedTokenizerFast:
    vocabulary = {"<s>": 0, **{character: i for i, character in enumerate(string.printable, start=1)}}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="<s>"))
    made.pre_tokenizer = pre_tokenizers.Split(Regex("[\\s\\S]"), "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>")


class Labelled(Source):
    """Texts whose digits are labelled, and their class: whether they begin with a capital."""

    name, splits_itself = "labelled-texts", True
    TEXTS = ("a1b22c333 d4444e55555", "Z9", "<s>12 then 345", "X" * 7 + "0" * 7, "unmarked 7")

    def fingerprint(self) -> str:
        return "fixed"

    def documents(self, split):
        for text in self.TEXTS:
            spans = [(i, i + 1) for i, character in enumerate(text) if character.isdigit()]
            marks = {} if "unmarked" in text else {"digit": spans, "none": []}
            yield Document(text, text, labels={"capital": str(text[0].isupper())}, spans=marks)


def rows_of(source=None, identity=None, **options):
    options = TokenOptions(**{"context": 8, **options})
    return build_tokens(source or Labelled(), options, one_token_a_character, identity, "evaluation")


def characters(dataset) -> list[list[tuple[str, int]]]:
    """The inputs of each row with their labels."""
    batch, spelled = dataset.batch(range(len(dataset)), "cpu"), one_token_a_character()
    marks = batch.supplied["token_labels"]["digit"]
    return [
        [(spelled.decode([token]), mark) for token, mark, real in zip(*row, strict=True) if real]
        for row in zip(batch.tokens.tolist(), marks.tolist(), batch.real.tolist(), strict=True)
    ]


@pytest.mark.parametrize("keep", ["all", "start", "end"])
@pytest.mark.parametrize("bos", [True, False])
@pytest.mark.parametrize("context", [3, 8, 40])
def test_a_token_keeps_its_label(bos, keep, context):
    dataset = rows_of(bos=bos, keep=keep, context=context)
    marked = [pair for row in characters(dataset) if row[0][1] >= 0 for pair in row]
    assert len(marked) > 10
    assert every(mark == character.isdigit() for character, mark in marked)


def test_a_bos_that_a_text_spells_shifts_no_label():
    """The tokenizer reads it as ordinary characters, which are left out before the text is tokenised."""
    tokenizer = one_token_a_character()
    tokenizer.split_special_tokens = True
    dataset = build_tokens(Labelled(), TokenOptions(context=40), lambda: tokenizer, None, "evaluation")
    assert dataset.facts["not_doubled"] == {"bos": 1}
    marked = [pair for row in characters(dataset) if row[0][1] >= 0 for pair in row]
    assert every(mark == character.isdigit() for character, mark in some(marked))


def test_a_document_outside_a_task_has_no_label_there():
    rows = characters(rows_of(context=40))
    (unmarked,) = (row for row in rows if "u" in dict(row))
    assert {mark for _, mark in unmarked} == {-1}
    none = rows_of(context=40).batch(range(5), "cpu").supplied["token_labels"]["none"]
    assert sorted(set(none.flatten().tolist())) == [-1, 0]


@pytest.mark.parametrize(("keep", "kept"), [("start", "<s>a1b22c3"), ("end", "<s>44e5555")])
def test_one_row_at_an_end_of_a_long_document(keep, kept):
    dataset = rows_of(keep=keep)
    assert len(dataset) == len(Labelled.TEXTS)
    long = dataset.cluster_names.index(Labelled.TEXTS[0])
    (row,) = np.flatnonzero(dataset.clusters == long)
    # The last token of a full row is a target alone.
    assert "".join(character for character, _ in characters(dataset)[row]) == kept


def test_the_class_of_a_document_is_that_of_its_rows():
    dataset = rows_of()
    batch = dataset.batch(range(len(dataset)), "cpu")
    names = [dataset.cluster_names[cluster] for cluster in batch.clusters]
    assert batch.supplied["labels"]["capital"].tolist() == [str(name[0].isupper()) for name in names]
    assert len(names) > len(set(names))


def test_cached_rows_have_their_labels(own_cache):
    made, cached = rows_of(identity="characters"), rows_of(identity="characters")
    assert not isinstance(made.tokens, np.memmap)
    assert isinstance(cached.tokens, np.memmap)
    assert made.fingerprint == cached.fingerprint
    assert characters(made) == characters(cached)
    padded = cached.padded(3)
    assert characters(padded)[0][: len(characters(made)[0])] == characters(made)[0]


@pytest.mark.parametrize("change", ["labels", "spans", "validation"])
def test_rows_with_other_labels_are_other_data(change):
    class Changed(Labelled):
        def documents(self, split):
            for document in super().documents(split):
                other = {"labels": {"capital": "yes"}, "spans": {"digit": [(0, 1)]}, "validation": True}
                yield dataclasses.replace(document, **{change: other[change]})

    assert rows_of().fingerprint == rows_of().fingerprint != rows_of(Changed()).fingerprint


def test_rows_without_labels_supply_none():
    plain = build(Documents({"a": [2, 3, 4, 5], "b": [3, 4, 5, 6]}))
    assert plain.supplies == {"spelling"}
    assert plain.annotations is None


class Slow:
    """A tokenizer that does not say where its tokens are."""

    bos_token_id, eos_token_id, pad_token_id = 0, None, None

    def __call__(self, texts, **_):
        return {"input_ids": [[1] * len(text) for text in texts]}


@pytest.mark.parametrize(
    ("document", "options", "fault"),
    [
        (Document("d", "text", labels={"a": "b"}), {"packing": "concat"}, "labels belong to documents; set 'packing: d"),
        (Document("d", "text", spans={"a": [(0, 1)]}), {"tokenizer": Slow}, "need a fast tokenizer"),
        (Document("d", "text", spans={"a": [(2, 5)]}), {}, r"'d': the span \[2, 5\) is not inside the text of 4 char"),
        (Document("d", "text", spans={"a": [(2, 2)]}), {}, r"the span \[2, 2\) is not inside"),
        (Document("d", "text", spans={f"t{i}": [] for i in range(65)}), {}, "more than 64 tasks of tokens"),
        (Document("d", "a" * (2**20 + 1), spans={"a": []}), {}, "need a text of at most 1048576 characters"),
        (Document("d", tokens=[1, 2], spans={"a": []}), {}, "need a text of at most"),
    ],
)  # fmt: skip
def test_labels_that_cannot_be_placed(document, options, fault):
    class Wrong(Labelled):
        def documents(self, split):
            yield document
            yield Document("e", "other")

    tokenizer = options.pop("tokenizer", one_token_a_character)
    with pytest.raises(SaevalError, match=fault):
        build_tokens(Wrong(), TokenOptions(context=4, eos_id=1, **options), tokenizer, None, "evaluation")


def test_white_space_before_a_stretch_does_not_count():
    text = "x = 12  # y"
    tokens = [(0, 1), (1, 3), (3, 6), (6, 8), (8, 9), (9, 11)]  # `x`, ` =`, ` 12`, `  `, `#`, ` y`
    assert covers(text, [(4, 6)], tokens, "").tolist() == [False, False, True, False, False, False]
    assert covers(text, [(8, 11)], tokens, "").tolist() == [False] * 4 + [True, True]
    assert covers(text, [(6, 8)], tokens, "").tolist() == [False] * 3 + [True, False, False]
    assert some(covers(text, [(2, 5)], tokens, "").tolist())
