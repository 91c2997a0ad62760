"""The cache of tokenised rows: what it gives back, when it is passed over, and what it does not import."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from documents import Documents, Ids, build, corpus
from saeval.testing.claims import some
from saeval.text.tokens import TokenDataset, TokenOptions, build_tokens

pytestmark = pytest.mark.usefixtures("own_cache")


def never():
    raise AssertionError("the tokenizer was loaded")


def test_cache_hit_loads_no_tokenizer():
    built = build(corpus(), sequences=12)
    again = build(corpus(), sequences=12, tokenizer=never)
    assert again.fingerprint == built.fingerprint
    assert again.cluster_names == built.cluster_names
    assert again.excluded == built.excluded
    assert dict(again.describe()) == dict(built.describe())
    assert torch.equal(again.batch([3, 1], "cpu").tokens, built.batch([3, 1], "cpu").tokens)


@pytest.mark.parametrize(
    "change",
    [
        {"context": 5},
        {"sequences": 11},
        {"seed": 1},
        {"bos": False},
        {"exclude": []},
        {"packing": "concat"},
        {"bos_id": 9},
    ],
)
def test_cache_key_follows_the_options(change):
    build(corpus(), sequences=12)
    with pytest.raises(AssertionError, match="the tokenizer was loaded"):
        build(corpus(), tokenizer=never, **{"sequences": 12, **change})


def test_cache_key_follows_source_tokenizer_and_split():
    options = TokenOptions(context=4, sequences=3)
    build_tokens(Documents(corpus()), options, Ids, "tiny", "evaluation")
    build_tokens(Documents(corpus()), options, never, "tiny", "evaluation")
    for source, identity, split in [
        (Documents(corpus(21)), "tiny", "evaluation"),
        (Documents(corpus()), "other", "evaluation"),
        (Documents(corpus()), "tiny", "fit"),
    ]:
        with pytest.raises(AssertionError, match="the tokenizer was loaded"):
            build_tokens(source, options, never, identity, split)


def test_damaged_cache_files_are_rebuilt(tmp_path):
    built = build(corpus(), sequences=12)
    files = sorted((tmp_path / "cache" / "tokens").iterdir())
    assert [file.suffix for file in files] == [".json", ".npy"]  # nothing temporary is left
    for file in some(files):
        content = file.read_bytes()
        flipped = content[:-9] + bytes([content[-9] ^ 1]) + content[-8:]
        for damaged in (b"", content[: len(content) // 2], flipped, b"[]", b"{}"):
            file.write_bytes(damaged)
            assert build(corpus(), sequences=12).fingerprint == built.fingerprint
            assert build(corpus(), sequences=12, tokenizer=never).fingerprint == built.fingerprint


def test_a_cache_hit_imports_neither_torch_nor_transformers():
    build(corpus(), sequences=12)
    code = (
        "import sys\n"
        "from saeval.interfaces.data import Source\n"
        "from saeval.text.tokens import TokenDataset, TokenOptions, build_tokens\n"
        "class Documents(Source):\n"
        "    name, kind, splits_itself = 'documents', 'tokens', True\n"
        "    def fingerprint(self): return sys.argv[1]\n"
        "def never(): raise AssertionError\n"
        "dataset = build_tokens(Documents(), TokenOptions(context=4, sequences=12), never, 'tiny', 'evaluation')\n"
        "print(len(dataset), dataset.fingerprint, sorted({'torch', 'transformers', 'tokenizers'} & set(sys.modules)))\n"
    )
    fingerprint = Documents(corpus(), fit={}).fingerprint()
    done = subprocess.run([sys.executable, "-c", code, fingerprint], capture_output=True, text=True, check=True)
    assert done.stdout.split(maxsplit=2) == ["12", build(corpus(), sequences=12).fingerprint, "[]\n"]


def test_shapes_are_checked():
    with pytest.raises(ValueError, match=r"expected tokens and documents \[n, context\+1\]"):
        TokenDataset.from_arrays([[1, 2, 3]], [[0, 0]], [0])


def test_fingerprint_follows_content():
    def of(tokens=((2, 3, 4),), documents=((0, 0, 0),), clusters=(0,), excluded=()):
        return TokenDataset.from_arrays(tokens, documents, clusters, excluded).fingerprint

    variants = [of(), of(tokens=((2, 3, 5),)), of(documents=((0, 0, -1),)), of(clusters=(1,)), of(excluded=(2,))]
    assert len(set(variants)) == len(variants)
    assert of() == of(excluded=[])
    assert of(excluded=(2, 3)) == of(excluded=(3, 2, 2))


class Letters(Ids):
    """Spells token n by a letter."""

    def decode(self, ids, **options):
        return "".join(chr(ord("a") + n % 26) for n in ids)


def test_rows_spell_their_tokens_with_the_tokenizer_and_as_numbers_without_one():
    built = build(corpus(), sequences=12, tokenizer=Letters)
    batch = built.batch([3], "cpu")
    ids = batch.tokens[0].tolist()
    assert batch.supplied["spelling"](ids) == [chr(ord("a") + n % 26) for n in some(ids)]
    bare = TokenDataset.from_arrays(built.tokens, built.documents, built.clusters).batch([3], "cpu")
    assert bare.supplied["spelling"](ids) == [f"<{n}>" for n in ids]
