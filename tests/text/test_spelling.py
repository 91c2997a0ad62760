"""Tokens are spelled as they stand in their row: whole characters, and spaces where the text has them."""

from __future__ import annotations

import json

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import saeval
from saeval.results.section_files import section_files
from saeval.testing import TinySAE
from saeval.testing.architectures import tiny_model
from saeval.testing.claims import every, some
from saeval.text.spelling import Spelling
from saeval_reward.contexts import Contexts
from saeval_reward.pages import sections

TEXTS = [
    "hello world",
    "  two  spaces and\nlines\t",
    "Привет, мир! Как дела?",
    "日本語のテキスト、한국어",
    "smile 😀👩‍👩‍👧 end",
    "naïve café “quotes” – dash",
    "😀",
]


def byte_level():
    """As GPT-2's: a token a byte, and a few merges."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("Ġ", "w"), ("h", "e"), ("l", "l"), ("he", "ll"), ("Ð", "¸"), ("ð", "Ł")]
    vocabulary = {token: i for i, token in enumerate([*alphabet, *map("".join, merges), "<|endoftext|>"])}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return _fast(tokenizer, "<|endoftext|>")


def metaspace():
    """As Llama's SentencePiece: `▁` for a space before a word, bytes for characters that have no token."""
    pieces = ["<s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁hello", "▁wor", "ld", "▁", *"abcdehinorstuwxyz,!"]
    tokenizer = Tokenizer(models.Unigram([(piece, -1.0) for piece in pieces], unk_id=0, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    strip = decoders.Strip(" ", 1, 0)
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), strip])
    return _fast(tokenizer, "<s>")


def _fast(tokenizer, special):
    special_tokens = dict.fromkeys(("bos_token", "eos_token", "pad_token"), special)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special_tokens)


TOKENIZERS = {"byte-level": byte_level, "metaspace": metaspace}


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("text", TEXTS)
def test_the_texts_of_a_row_joined_are_the_row(name, text):
    tokenizer = TOKENIZERS[name]()
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    pieces = Spelling(tokenizer)(ids)
    assert len(pieces) == len(ids)
    assert "".join(pieces) == tokenizer.decode(ids, clean_up_tokenization_spaces=False)
    assert "".join(pieces).strip() == text.strip()
    assert every("\ufffd" not in piece for piece in pieces)


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_character_stands_at_its_first_token_and_a_space_before_its_word(name):
    tokenizer = TOKENIZERS[name]()
    ids = tokenizer("hello world 😀!", add_special_tokens=False)["input_ids"]
    pieces = Spelling(tokenizer)(ids)
    assert "😀" in [piece.strip() for piece in pieces]
    assert next(piece for piece in pieces if "w" in piece).startswith(" w")
    smile = next(i for i, piece in enumerate(pieces) if "😀" in piece)
    assert "" in pieces[smile:]
    assert pieces[-1] == "!"


def test_bytes_that_are_no_character_are_replaced_and_nothing_else_is():
    tokenizer = byte_level()
    ids = tokenizer("a😀b", add_special_tokens=False)["input_ids"]
    cut = Spelling(tokenizer)(ids[:2])
    assert "".join(cut) == "a\ufffd"
    assert Spelling(tokenizer)([]) == []
    whole = Spelling(tokenizer)([*ids[:2], *ids[-1:]])
    assert "".join(whole) == "a\ufffdb"
    special = Spelling(tokenizer)([tokenizer.bos_token_id, *ids])
    assert "".join(special) == "<|endoftext|>a😀b"


def test_a_window_shows_whole_characters_with_the_largest_activation_of_their_tokens():
    texts, acts = np.full((1, 1, 21), "", dtype="<U32"), np.zeros((1, 1, 21))
    texts[0, 0, 10:18] = ["", "", "a", "😀", "", "", "b", ""]
    acts[0, 0, 10:18] = [0.0, 3.0, 1.0, 0.5, -9.0, 2.0, 0.0, 4.0]
    none = np.zeros((1, 1), dtype=np.int64)
    *_, tokens, shown = Contexts(np.ones((1, 1)), none, none, 1, texts, acts).table([0]).rows[0]
    assert json.loads(tokens) == ["a", "😀", "b"]
    assert json.loads(shown) == [3.0, -9.0, 4.0]


@pytest.mark.parametrize("name", TOKENIZERS)
def test_pages_and_tables_show_texts_as_they_are_written(name, tmp_path):
    tokenizer = TOKENIZERS[name]()
    texts = [text for text in TEXTS if "\u200d" not in text]  # what joins emoji is shown as a control character
    records = [
        {"prompt": "hello world ", "chosen": text, "rejected": f"x{text}", "of": place}
        for place, text in enumerate(texts)
    ]
    (tmp_path / "pairs.jsonl").write_text("\n".join(json.dumps(one) for one in records), encoding="utf-8")
    model = tiny_model("gpt2", "reward", vocab_size=len(tokenizer), n_positions=128)
    results = saeval.evaluate(
        model=model, tokenizer=tokenizer, saes=[(TinySAE(d_in=32, d_sae=16), "blocks.1.hook_resid_pre")], allow=["*"],
        data={"use": "preferences", "path": str(tmp_path / "pairs.jsonl"), "prompt": "prompt", "document": "of"},
        metrics=["reward_margin", {"reward_attribution": {"baseline": "zero", "steps": 2, "top": 2, "groups": [1], "random": 0, "tolerance": 99}}],
    )  # fmt: skip
    assert not results.failed, results.failed[0].reason
    margins, attribution = (next(r for r in results if r.metric == m) for m in ("reward_margin", "reward_attribution"))
    table = margins.values["top_texts"]
    shown = [dict(zip(table["columns"], row, strict=True))["text"] for row in table["rows"]]
    known = {f"hello world {side}{text}".strip() for text in TEXTS for side in ("", "x")}
    assert every(text.replace(tokenizer.bos_token, "").strip() in known for text in shown)
    contexts = attribution.values["contexts"]
    windows = ["".join(json.loads(row[contexts["columns"].index("tokens")])) for row in contexts["rows"]]
    for window in some(windows):
        assert "\ufffd" not in window
        assert every(word in " ".join(known) for word in window.replace(tokenizer.bos_token, "").split())
    if name == "byte-level":  # once is enough for what takes a second
        page = section_files("reward", sections(list(results)))["reward.md"]
        assert "\ufffd" not in page
