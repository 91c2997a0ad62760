"""Texts that come with a BOS, an EOS or a separator of their own: no second one is put beside it, which is said once."""

from __future__ import annotations

import json
import logging

import numpy as np
import pytest

from saeval import evaluate
from saeval.testing.architectures import tiny_tokenizer
from saeval.testing.claims import every
from saeval.text.tokens import TokenOptions, build_tokens
from saeval_data.preferences import Preferences
from saeval_data.text import Texts
from saeval_data.tokens import Tokens

TOKENIZER = tiny_tokenizer()
BOS = TOKENIZER.bos_token
CODE = [f"def f{i}(x):\n    return x + {i} * len(str(x)) - {i}\n" * 3 for i in range(12)]


def rows(source, **options):
    return build_tokens(source, TokenOptions(context=8, **options), lambda: TOKENIZER, None, "evaluation")


def words(*ids):
    return " ".join(TOKENIZER.convert_ids_to_tokens(i) for i in ids)


def test_a_rendered_bos_changes_no_number_and_is_said_once(caplog):
    from transformers import AutoTokenizer  # late: with the weights that ship

    import saeval_testbed

    folder = f"{saeval_testbed.__path__[0]}/weights/model"
    bos = AutoTokenizer.from_pretrained(folder).bos_token
    found = {}
    for name, texts in (("plain", CODE), ("rendered", [bos + text for text in CODE])):
        with caplog.at_level(logging.WARNING, "saeval"):
            found[name] = evaluate(
                model="testbed", saes=["testbed/relu-1"], data={"texts": texts, "context": 16}, metrics=["ce"]
            )
        said = [r.getMessage() for r in caplog.records if "of their own" in r.getMessage()]
        kept = found[name][0].cell["data"]["sequences"]
        assert kept > 10
        assert len(said) == (name == "rendered")
    assert "begin with a BOS of their own: no second one is added" in said[0]
    assert found["plain"].value("ce.ce_clean") == found["rendered"].value("ce.ce_clean")
    assert found["rendered"][0].cell["data"]["not_doubled"]["bos"] > 5
    assert found["plain"][0].cell["data"]["fingerprint"] == found["rendered"][0].cell["data"]["fingerprint"]


@pytest.mark.parametrize("packing", ["documents", "concat"])
def test_ids_and_spellings_of_a_bos(tmp_path, packing):
    texts = [words(*range(3, 20)), words(*range(20, 31)), words(5, 6, 7, 8, 9), words(*range(40, 60))]
    plain = rows(Texts(texts), packing=packing)
    assert len(plain) > 2
    spelled = rows(Texts([BOS + text for text in texts]), packing=packing)
    assert spelled.fingerprint == plain.fingerprint
    assert spelled.facts["not_doubled"]["bos"] > 1
    assert plain.facts["not_doubled"] == {}

    file = tmp_path / "t.jsonl"
    ids = TOKENIZER(texts, add_special_tokens=False)["input_ids"]
    for own in ([], [TOKENIZER.bos_token_id]):
        file.write_text(
            "".join(json.dumps({"tokens": own + one, "name": f"text {n}"}) + "\n" for n, one in enumerate(ids, 1))
        )
        assert rows(Tokens(str(file), documents="name"), packing=packing).fingerprint == plain.fingerprint
    # Without `bos`, what the text holds stays.
    assert (
        rows(Texts([BOS + text for text in texts]), bos=False).tokens.tolist()
        != rows(Texts(texts), bos=False).tokens.tolist()
    )


def test_a_tokenizer_that_reads_a_spelled_bos_as_characters():
    from saeval.testing.architectures import tiny_tokenizer

    reading = tiny_tokenizer()
    reading.split_special_tokens = True
    texts = [words(*range(3, 20)), words(*range(20, 31))]
    options = TokenOptions(context=8)
    assert reading([BOS], add_special_tokens=False)["input_ids"][0] != [reading.bos_token_id]
    plain, spelled = (
        build_tokens(Texts(some), options, lambda: reading, None, "fit")
        for some in (texts, [BOS + text for text in texts])
    )
    assert spelled.fingerprint == plain.fingerprint


def test_a_separator_that_is_there_is_not_repeated():
    texts = [words(*range(3, 9)), words(*range(20, 31)), words(*range(40, 60)), words(*range(60, 75))]
    plain = rows(Texts(texts), packing="concat", bos=False)
    ended = rows(Texts([text + BOS for text in texts]), packing="concat", bos=False)
    assert plain.tokens[:, :-1].tolist() == ended.tokens[:, :-1].tolist()
    assert ended.facts["not_doubled"]["separator"] > 0


@pytest.mark.parametrize(("bos", "eos"), [(True, False), (True, True), (False, True)])
def test_pairs_that_a_chat_template_rendered(tmp_path, bos, eos, caplog):
    sides = [(words(3, 4, 5), words(3, 6, 5, 7)), (words(8, 9), words(8, 10)), (words(11, 12), words(11, 13))]
    found = []
    for before, after in (("", ""), (BOS * bos, BOS * eos)):
        file = tmp_path / f"p{len(before + after)}.jsonl"
        file.write_text(
            "".join(json.dumps({"chosen": before + a + after, "rejected": before + b + after}) + "\n" for a, b in sides)
        )
        found.append(Preferences(str(file), bos=bos, eos=eos).dataset("evaluation", lambda: TOKENIZER))
    assert len(found[0]) == 3
    for side in (0, 1):
        plain, rendered = (f.batch(np.argsort(f.sequence_ids), "cpu").sides[side].tokens.tolist() for f in found)
        assert plain == rendered
    expected = {word: 6 for word, asked in (("bos", bos), ("eos", eos)) if asked}
    assert found[1].describe()["not_doubled"] == expected
    assert found[0].describe()["not_doubled"] == {}


def test_a_text_of_nothing_but_a_bos_is_empty():
    found = rows(Texts([BOS, words(3, 4, 5), words(6, 7, 8)]))
    assert every(len(row) == 9 for row in found.tokens.tolist())
    assert found.facts["left_out"].get("empty", 0) <= 1


def test_a_separator_that_the_next_text_begins_with_is_not_put_before_it():
    texts = [words(*range(3, 9)), words(*range(20, 31)), words(*range(40, 60)), words(*range(60, 75))]
    plain = rows(Texts(texts), packing="concat", bos=False)
    for rendered in (
        [texts[0], *(BOS + text for text in texts[1:])],
        [texts[0] + BOS] + [BOS + t + BOS for t in texts[1:]],
    ):
        own = rows(Texts(rendered), packing="concat", bos=False)
        assert own.tokens[:, :-1].tolist() == plain.tokens[:, :-1].tolist()
        assert own.facts["not_doubled"]["separator"] == 2
