"""`check_source` on data sources that are wrong, each in its own way, and on sound ones of every kind."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
import torch

from saeval.plugin import Dataset, Document, Source
from saeval.registry.discovery import Plugins
from saeval.registry.registry import Registry
from saeval.testing import TinyPairs, check_source, tiny_labelled, tiny_tokens
from saeval.testing.architectures import tiny_tokenizer

TEXTS = ("a cat", "two dogs", "three mice", "no bird")


class Planted(Source):
    """Texts of a list, which each planted source spoils."""

    name = "planted"

    def __init__(self, texts: list[str] = list(TEXTS)) -> None:  # noqa: B006  # read alone
        self.texts = texts

    def fingerprint(self):
        return "/".join(self.texts)

    def documents(self, split):
        for number, text in enumerate(self.texts):
            yield self.document(number, text)

    def document(self, number, text):
        return Document(str(number), text)


def undocumented():
    own = {name: member for name, member in vars(Planted).items() if name == "__init__" or not name.startswith("_")}
    return type("Made", (Source,), own)


def planted(**members):
    """A source that differs from the sound one in these members."""
    return type("Made", (Planted,), {"__doc__": "A source.", **members})


def yields(**fields):
    """A source whose documents differ in these fields."""
    return planted(document=lambda self, number, text: dataclasses.replace(Document(str(number), text), **fields))


NUMBERS = itertools.count()
READER = {}


def once(self, split):
    """Reads from one iterator of the object."""
    self.reader = getattr(self, "reader", None) or iter(self.texts)
    return [Document(text, text) for text in self.reader]


def shared_place(self, split):
    """Two readers move the same place."""
    self.place = 0
    while self.place < len(self.texts):
        self.place += 1
        yield Document(str(self.place), self.texts[self.place - 1])


def shuffled(self, split):
    # Turned by one place with each reading: two chance orders of four texts are equal once in 24.
    turn = next(NUMBERS) % len(self.texts)
    return (Document(text, text) for text in (*self.texts[turn:], *self.texts[:turn]))


def buffered(self, split):
    buffer = np.zeros(2, dtype=np.int64)
    for number in range(3):
        buffer[:] = number
        yield Document(str(number), tokens=buffer)


def half_each(self, split):
    return iter(list(Planted.documents(self, split))[split == "fit" :])


class Rows(Source):
    """Rows of a data set, which each planted source spoils."""

    name, kind, rows = "rows", "activations", staticmethod(tiny_tokens)

    def fingerprint(self):
        return "1"

    def dataset(self, split, tokenizer=None):
        return self.rows()


class Pairs(Rows):
    """Pairs."""

    kind, rows = "pair", TinyPairs


class Wrapped(Dataset):
    """A data set whose batches a function changes."""

    def __init__(self, inner, change):
        self.inner, self.change, self.pair = inner, change, inner.pair

    fingerprint = property(lambda self: self.inner.fingerprint)
    clusters = property(lambda self: self.inner.clusters)

    def __len__(self):
        return len(self.inner)

    def batch(self, rows, device):
        return self.change(self.inner, rows)


def batches(change, base=Rows):
    """A source whose batches `change(data set, rows)` returns."""
    make = base.rows
    return type("Made", (base,), {"__doc__": "Rows.", "rows": lambda self: Wrapped(make(), change)})


def but(**fields):
    """A function of a batch that replaces fields by functions of it."""
    return lambda inner, rows: (lambda b: dataclasses.replace(b, **{k: f(b) for k, f in fields.items()}))(
        inner.batch(rows, "cpu")
    )


class Gapped(Wrapped):
    clusters = property(lambda self: self.inner.clusters * 2)


WRONG = {
    "no docstring": (undocumented(), "has no docstring"),
    "name with a space": (planted(name="my data"), "name is 'my data'; it is written in suites"),
    "unknown kind": (planted(kind="pairs"), "kind is 'pairs', not one of text, tokens, pair, activations"),
    "no documents": (planted(documents=Source.documents), "a source of kind 'text' defines 'documents'"),
    "fingerprint of the call": (planted(fingerprint=lambda self: str(next(NUMBERS))), "the fingerprint is 1 for the second call, 0 for the first"),
    "fingerprint of the object": (planted(fingerprint=lambda self: str(id(READER.setdefault(id(self), self)))), "for another object with the same parameters.*not the time, id"),
    "fingerprint of the name": (planted(fingerprint=lambda self: "planted"), r"the fingerprint is planted for {} and for {'texts': \['x'\]}"),
    "facts of arrays": (planted(facts=lambda self: {"n": np.ones(2)}), "facts must be plain data for JSON"),
    "empty": (planted(documents=lambda self, split: iter(())), "yields no document"),
    "no text": (yields(text=None), "none of its 4 documents has text or tokens"),
    "strings": (planted(document=lambda self, number, text: text), r"document 0 is a str; yield Document\(name, text\)"),
    "a number for a name": (yields(name=3), "document 0 has the name 3; give it text"),
    "bytes": (yields(text=b"a cat"), r"document 0 \('0'\) has a bytes for text or a Passage"),
    "both": (yields(tokens=[1, 2]), "has both text and tokens"),
    "a lone surrogate": (yields(text="a\ud800"), "which cannot be encoded"),
    "a negative token": (yields(text=None, tokens=[4, -1]), "has the token -1 at 1; ids are at least 0"),
    "tokens of floats": (yields(text=None, tokens=[0.5]), r"has tokens of float64 and shape \[1\]; expected whole numbers"),
    "a label of a number": (yields(labels={"kind": 1}), "has the label 1 in task 'kind'; labels are text"),
    "a span beyond the text": (yields(spans={"name": [(3, 90)]}), r"has the span \(3, 90\) in task 'name', outside its 5"),
    "read once": (planted(documents=once), "document 0 is missing with a second reading of the same object, .*open it in"),
    "unseeded": (planted(documents=shuffled), "with .*: the order or the choice is not fixed|keeps its place"),
    "two readers": (planted(documents=shared_place), "with two readers at once.*keep it in local variables"),
    "one buffer": (planted(documents=buffered), "with documents that are kept while later ones are read.*a later document overwrites"),
    "another fit split": (planted(documents=half_each), "in the fit split.*or set splits_itself = True"),
    "overlapping splits": (planted(splits_itself=True), r"'0' \('a cat'\) is in the fit split and in the evaluation"),
    "no data set": (type("Made", (Rows,), {"rows": lambda self: [1]}), "dataset returned a list, no Dataset"),
    "rows for pairs": (type("Made", (Rows,), {"rows": lambda self: TinyPairs()}), "its kind is 'activations', but pair is True"),
    "rows by chance": (type("Made", (Rows,), {"rows": lambda self: tiny_tokens(seed=next(NUMBERS))}), "the rows or their order are not fixed"),
    "documents with gaps": (type("Made", (Rows,), {"rows": lambda self: Gapped(tiny_tokens(), None)}), "one number for each of 24 rows, from 0 without a gap"),
    "padding in the mask": (batches(but(mask=lambda b: torch.ones_like(b.mask))), r"position \d+ of row \d+ of the batch is in the mask but not real"),
    "mask of floats": (batches(but(mask=lambda b: b.mask.float())), "mask of the batch is float32"),
    "places for ids": (batches(but(sequence_ids=lambda b: np.arange(len(b.tokens)))), r"sequence_ids is .* with the rows in reverse"),
    "rows in its own order": (batches(lambda inner, rows: inner.batch(sorted(rows), "cpu")), "with the rows in reverse.*in that order"),
    "one position late": (batches(but(divergence=lambda b: b.divergence + 1), Pairs), r"divergence of pair 0 is \d+, but its texts first differ at \d+"),
}  # fmt: skip


@pytest.mark.parametrize(("source", "said"), WRONG.values(), ids=WRONG)
def test_a_wrong_source_is_caught_with_its_cause(source, said):
    other = {"texts": ["x"]} if issubclass(source, Planted) else None
    with pytest.raises(AssertionError, match=f"(?s){said}"):
        check_source(source, other=other)


def test_the_table_is_long_enough():
    assert len(WRONG) >= 15


def test_sound_sources_pass():
    assert [document.text for document in check_source(Planted, other={"texts": ["x"]})] == list(TEXTS)
    assert len(check_source(Rows)) == 24
    assert len(check_source(Pairs)) == 10
    assert len(check_source(type("Labelled", (Rows,), {"__doc__": "Rows.", "rows": staticmethod(tiny_labelled)}))) == 24


def test_sources_that_ship_pass(tmp_path):
    (tmp_path / "a.txt").write_text("one two\n", encoding="utf-8")
    (tmp_path / "b.txt").write_text("three four\n", encoding="utf-8")
    source = Registry(Plugins([])).data["text"]
    paths = [{"path": str(tmp_path / name)} for name in ("*.txt", "a.txt")]
    assert len(check_source(source, paths[0], other=paths[1], tokenizer=tiny_tokenizer())) == 2
