"""Texts too long to be held as a whole: read and tokenised in pieces, to the same rows, in memory that stays small."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from saeval import evaluate
from saeval.base import text_files
from saeval.base.errors import SaevalError
from saeval.base.text_files import Passage, text_passages
from saeval.testing.claims import every
from saeval.text import packing, windows
from saeval.text.tokens import TokenOptions, build_tokens
from saeval.text.windows import tokens_of
from saeval_data.text import Text

PROSE = "The cat sat on the mat; it was 10:45 (or so) — naïve façade, 猫がいる 😀.\n\n    def f(x):\n\treturn x ** 2\n"


def trained(kind: str) -> PreTrainedTokenizerFast:
    """A tokenizer of one of the usual kinds: GPT-2's, that of the first Llamas, BERT's."""
    if kind == "byte level":
        made, trainer = Tokenizer(models.BPE()), trainers.BpeTrainer(vocab_size=400, special_tokens=["<s>"])
        made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
        trainer.initial_alphabet = pre_tokenizers.ByteLevel.alphabet()
    elif kind == "metaspace":
        made, trainer = (
            Tokenizer(models.BPE(unk_token="<s>")),
            trainers.BpeTrainer(vocab_size=300, special_tokens=["<s>"]),
        )
        made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        made = Tokenizer(models.WordPiece(unk_token="<s>"))
        trainer = trainers.WordPieceTrainer(vocab_size=300, special_tokens=["<s>"])
        made.normalizer, made.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    made.train_from_iterator([PROSE], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="<s>", unk_token="<s>")


def varied(characters: int) -> str:
    """Prose, code, other scripts, long runs of one character, in an order that does not repeat."""
    draw = np.random.default_rng(0)
    words = [*PROSE.split(" "), "é" * 30, " " * 300, "=" * 40, "\n\n", "ACGT" * 20, "😀😀😀"]
    text = ""
    while len(text) < characters:
        text += " ".join(words[i] for i in draw.integers(0, len(words), 200))
    return text[:characters]


@pytest.fixture
def small(monkeypatch):
    """Windows and limits a thousandth of the real ones, so that a short text is a long one."""
    monkeypatch.setattr(windows, "WINDOW", 4000)
    monkeypatch.setattr(windows, "_WIDE", 3000)
    monkeypatch.setattr(packing, "LONG", 5000)
    monkeypatch.setattr(text_files, "LONG", 5000)
    monkeypatch.setattr(text_files, "_CHUNK", 777)


@pytest.mark.parametrize("kind", ["byte level", "metaspace", "word piece"])
def test_windows_have_the_tokens_of_the_whole(small, kind):
    tokenizer, text = trained(kind), varied(30_000)
    whole = tokenizer([text], add_special_tokens=False)["input_ids"][0]
    parts = list(tokens_of(text, tokenizer))
    assert len(parts) > 5
    assert np.concatenate(parts).tolist() == whole
    in_pieces = tokens_of((text[i : i + 333] for i in range(0, len(text), 333)), tokenizer)
    assert np.concatenate(list(in_pieces)).tolist() == whole


def test_a_run_of_one_character_longer_than_a_window_loses_nothing(small):
    tokenizer, text = trained("byte level"), varied(2000) + "=" * 20_000 + varied(2000)
    assert tokenizer.decode(np.concatenate(list(tokens_of(text, tokenizer)))) == text


def test_a_tokenizer_without_offsets_gets_the_whole(small):
    class Slow:
        def __call__(self, texts, **options):
            return {"input_ids": [[len(text)] for text in texts]}

    assert [part.tolist() for part in tokens_of(varied(30_000), Slow())] == [[30_000]]


@pytest.mark.parametrize("packed", ["documents", "concat"])
@pytest.mark.parametrize("bos", [True, False])
def test_a_long_text_has_the_rows_that_it_has_as_a_whole(tmp_path, monkeypatch, small, packed, bos):
    (tmp_path / "a.txt").write_text(varied(20_000), encoding="utf-8")
    (tmp_path / "b.txt").write_text("short\r\n" * 10, encoding="utf-8", newline="")
    tokenizer, options = trained("byte level"), TokenOptions(context=16, sequences=40, packing=packed, bos=bos)

    def rows():
        # Without an identity of the tokenizer, rows are built anew.
        return build_tokens(Text(path=str(tmp_path)), options, lambda: tokenizer, None, "fit")

    in_pieces = rows()
    assert every(isinstance(d.text, Passage) == (d.name == "a.txt") for d in Text(path=str(tmp_path)).documents("fit"))
    monkeypatch.setattr(packing, "LONG", 10**9)
    monkeypatch.setattr(text_files, "LONG", 10**9)
    assert in_pieces.fingerprint == rows().fingerprint


def test_memory_does_not_grow_with_the_file(tmp_path, monkeypatch, small):
    """Neither the tokenizer nor Python holds more of a text than a few windows."""
    path, tokenizer, longest = tmp_path / "a.txt", trained("word piece"), []

    class Recording:
        is_fast, bos_token_id, bos_token, eos_token_id = True, 0, "<s>", 0

        def __call__(self, texts, **options):
            longest.append(max(map(len, texts)))
            return tokenizer(texts, **options)

    path.write_text("word " * 60_000)
    options = TokenOptions(context=128, sequences=2)
    assert len(build_tokens(Text(path=str(path)), options, Recording, None, "evaluation")) == 2
    assert len(longest) > 5
    assert max(longest) <= windows.WINDOW

    tracemalloc.start()
    pieces = sum(len(piece) for passage in text_passages(path) for piece in passage)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert pieces == 300_000
    assert peak < 100_000


ENDS = ["\n", "\r\n", "\r"]


@pytest.mark.parametrize("in_file", ENDS)
@pytest.mark.parametrize("separator", ["\n\n", "\r\n\r\n", "\r\r", "\n--\r\n"])
def test_line_ends_of_separator_and_file_are_one(tmp_path, in_file, separator):
    path = tmp_path / "a.txt"
    normal = separator.replace("\r\n", "\n").replace("\r", "\n")
    text = f"one\n{normal}two\n\n--\n three{normal}\u2028four\u2028{normal}{normal}\nfive"
    path.write_bytes(b"\xef\xbb\xbf" + text.replace("\n", in_file).encode())
    found = {d.name: d.text for d in Text(path=str(path), separator=separator).documents("evaluation")}
    pieces = enumerate(text.split(normal), start=1)
    assert found == {f"a.txt:{number}": piece for number, piece in pieces if piece.strip()}
    assert len(found) > 2
    same = Text(path=str(path), separator=normal)
    assert same.fingerprint() == Text(path=str(path), separator=separator).fingerprint()


@pytest.mark.parametrize("chunk", [1, 2, 3, 5, 64])
def test_separators_are_found_across_chunks(tmp_path, monkeypatch, chunk):
    """Also where a chunk ends within `\\r\\n`, a character of several bytes, or the separator."""
    path = tmp_path / "a.txt"
    text = "é\r\n\r\nb\r\r\nc\n\n\nd\r\n\r\n\r\n\r\ne\r\n\r"
    path.write_bytes(text.encode())
    monkeypatch.setattr(text_files, "_CHUNK", chunk)
    normal = text.replace("\r\n", "\n").replace("\r", "\n")
    assert list(text_passages(path, "\n\n")) == normal.split("\n\n")
    monkeypatch.setattr(text_files, "LONG", 0)
    found = ["".join(piece) for piece in text_passages(path, "\n\n")]
    assert found == normal.split("\n\n")


def test_a_byte_that_is_no_text_has_its_place(tmp_path, small):
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbf" + b"x" * 5997 + b"\xe9" + b"y" * 100)
    with pytest.raises(SaevalError, match=r"a.txt: not UTF-8 text \(at byte 6000\); save it again as UTF-8"):
        list(next(text_passages(path)))
    path.write_bytes(b"x\n\ny\xe9")
    with pytest.raises(SaevalError, match=r"at byte 4"):
        list(text_passages(path, "\n\n"))


def test_crlf_paragraphs_are_documents_of_a_run(tmp_path):
    paragraph = "import os\nfor name in os.listdir():\n    print(name, len(name))\n" * 4
    path = tmp_path / "a.txt"
    path.write_bytes("\n\n".join([paragraph] * 12).replace("\n", "\r\n").encode())
    data = {"use": "text", "path": str(path), "separator": "\r\n\r\n", "context": 16}
    results = evaluate(model="testbed", saes=["testbed/relu-1"], data=data, metrics=["l0"])
    assert results[0].cell["data"]["documents"] > 5
