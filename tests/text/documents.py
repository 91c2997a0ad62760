"""Documents with a tokenizer that leaves numbers as they are, and the rows that are made of them."""

from __future__ import annotations

import json
from collections.abc import Iterator

from saeval.interfaces.data import Document, Source
from saeval.text.tokens import TokenDataset, TokenOptions, build_tokens

BOS, EOS = 0, 1


class Documents(Source):
    """Documents given as lists of token ids, by name."""

    name = "documents"
    kind = "tokens"

    def __init__(self, documents: dict[str, list[int]], fit: dict[str, list[int]] | None = None) -> None:
        self.content = documents
        self.fit = fit
        self.splits_itself = fit is not None

    def fingerprint(self) -> str:
        return json.dumps([self.content, self.fit])

    def documents(self, split) -> Iterator[Document]:
        chosen = self.fit if split == "fit" and self.fit is not None else self.content
        for name, tokens in chosen.items():
            yield Document(name.split("#")[0], tokens=tokens)


class Ids:
    """The special tokens of a tokenizer, and nothing to tokenise with."""

    bos_token_id, eos_token_id, pad_token_id = BOS, EOS, None


def build(documents, *, split="evaluation", tokenizer=Ids, **options) -> TokenDataset:
    """Self-splitting documents, so that all of them are evaluated."""
    source = Documents(documents, fit={}) if isinstance(documents, dict) else documents
    return build_tokens(source, TokenOptions(**{"context": 4, **options}), tokenizer, "tiny", split)


def corpus(documents: int = 20, length: int = 30) -> dict[str, list[int]]:
    return {f"d{i}": list(range(100 * i + 2, 100 * i + 2 + length)) for i in range(documents)}
