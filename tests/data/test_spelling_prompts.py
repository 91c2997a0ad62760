"""Spelling prompts: words of the tokenizer, keyed choice, labels of text and tokens, and what is refused."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
from transformers import AutoTokenizer

from saeval.base.errors import SaevalError
from saeval.testing.claims import every, none, some
from saeval.text.packing import TokenOptions
from saeval.text.tokens import build_tokens
from saeval_data.spelling import Spelling
from saeval_testbed import WEIGHTS


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(WEIGHTS / "model")


def prompts(tokenizer, **given):
    source = Spelling(**{"words": 200, "examples": 3, **given})
    return {split: list(source.documents_for(split, tokenizer)) for split in ("evaluation", "fit")}


def part(document, name):
    ((start, end),) = document.spans[name]
    return document.text[start:end]


def test_a_prompt(tokenizer):
    documents = prompts(tokenizer)
    for document in some(documents["evaluation"]):
        *examples, last = document.text.removeprefix("\n ").split("\n ")
        word, letter = part(document, "word"), part(document, "answer")
        assert last == f"{word} has the first letter: {letter}"
        assert letter == document.labels["first_letter"] == word[0].upper()
        assert document.name == word.lower()
        assert len(examples) == 3
        assert none(example.split(" has ")[0].lower() == word.lower() for example in examples)
        assert every(
            example == f"{example.split(' has ')[0]} has the first letter: {example[0].upper()}" for example in examples
        )


def test_words_are_one_token_and_on_one_side(tokenizer):
    documents = prompts(tokenizer, words=None)
    words = {split: [part(document, "word") for document in own] for split, own in documents.items()}
    ids = tokenizer([f" {word}" for word in words["evaluation"]], add_special_tokens=False)["input_ids"]
    assert every(len(own) == 1 for own in ids)
    assert not {document.name for document in documents["evaluation"]} & {
        document.name for document in documents["fit"]
    }
    shares = np.array([len(words["evaluation"]), sum(d.validation for d in documents["fit"])]) / sum(
        map(len, words.values())
    )
    assert shares == pytest.approx([0.25, 0.15], abs=0.03)
    letters = Counter(word[0].upper() for word in words["evaluation"])
    assert letters["S"] > letters["B"] > 3
    held = [document for document in documents["fit"] if document.validation]
    known = {part(document, "word") for document in documents["fit"]} - {part(document, "word") for document in held}
    example = documents["evaluation"][0].text.split("\n ")[1].split(" has ")[0]
    assert example in known


def test_the_draw_is_keyed(tokenizer):
    first, again, other = (prompts(tokenizer, draw=draw) for draw in (0, 0, 1))
    assert first == again
    assert first != other
    more = prompts(tokenizer, words=300)
    few, many = ({part(d, "word") for own in found.values() for d in own} for found in (first, more))
    assert few < many


def test_rows_keep_word_and_answer(tokenizer):
    options = TokenOptions(context=24, **Spelling.defaults)
    rows = build_tokens(Spelling(words=100, examples=8), options, lambda: tokenizer, None, "evaluation")
    batch = rows.batch(range(len(rows)), "cpu")
    marks = batch.supplied["token_labels"]
    assert every((marks["word"] == 1).sum(1).tolist())
    last = batch.mask.sum(1) + batch.mask.int().argmax(1) - 1
    letters = [rows.tokenizer().decode([token]) for token in batch.targets[range(len(rows)), last].tolist()]
    assert letters == [f" {letter}" for letter in batch.supplied["labels"]["first_letter"]]


@pytest.mark.parametrize(
    ("given", "fault"),
    [
        ({"words": 10}, "'words' must be at least 40, or null; found 10"),
        ({"examples": -1}, "'examples' must be from 0 to 1000, found -1"),
        ({"shares": (0.5, 0.0, 0.5)}, "'shares' must be three shares above 0 that sum to 1"),
    ],
)
def test_keys_that_are_refused(given, fault):
    with pytest.raises(SaevalError, match=fault):
        Spelling(**given)


def test_tokenizers_without_words():
    slow = SimpleNamespace(is_fast=False)
    with pytest.raises(SaevalError, match="labels of tokens need a fast tokenizer"):
        list(Spelling().documents_for("fit", slow))
    bare = SimpleNamespace(is_fast=True, get_vocab=lambda: {"a": 0, "Ġ": 1})
    with pytest.raises(SaevalError, match="the tokenizer has 0 words of letters with a space before them"):
        list(Spelling().documents_for("fit", bare))
