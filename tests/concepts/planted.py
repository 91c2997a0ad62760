"""A model and SAEs whose activations are the tokens of a text, and texts with planted marks and labels."""

from __future__ import annotations

import numpy as np
import torch

from saeval.testing import TinyModel, TinySAE
from saeval.text.annotations import Annotations
from saeval.text.tokens import TokenDataset

VOCABULARY, CONTEXT = 24, 10
MARK, OTHER, RARE = 20, 21, 22


class OneHot(TinyModel):
    """A model whose activations at its first hook say which token is there, for tokens from `first` on."""

    def __init__(self, layers: int = 2, first: int = 0) -> None:
        super().__init__(layers=layers, d_model=VOCABULARY, vocab=VOCABULARY)
        self.embed = torch.eye(VOCABULARY)
        self.embed[:first] = 0


class Reader(TinySAE):
    """An SAE whose features are tokens, scaled and in another order."""

    def __init__(self, scale=1.0, order=None, decoder_scale=1.0) -> None:
        super().__init__("blocks.0.hook_resid_pre", VOCABULARY, VOCABULARY)
        order = np.arange(VOCABULARY) if order is None else order
        self.W_enc = torch.eye(VOCABULARY)[:, order] * scale
        self.W_dec = torch.eye(VOCABULARY)[order] / scale * decoder_scale
        self.b_enc = torch.zeros(VOCABULARY)


def texts(marks, seed=0, validation=0.0, columns=None, context=CONTEXT, words=MARK):
    """Rows of random words below `words`, each with the marks that a function of its number gives; labels from their columns."""
    draw = np.random.default_rng(seed)
    n = 120
    tokens = draw.integers(1, words, (n, context + 1)).astype(np.int32)
    for row in range(n):
        for place, mark in enumerate(marks(row)):
            tokens[row, 2 + place] = mark
    labels = {name: np.array([str(label(row)) for row in range(n)]) for name, label in (columns or YES).items()}
    bits = np.zeros((n, context + 1), np.uint64)
    annotations = Annotations(labels, draw.random(n) < validation, [], np.zeros(n, np.uint64), bits)
    owner = np.repeat(np.arange(n, dtype=np.int32)[:, None], context + 1, axis=1)
    return TokenDataset(tokens, owner, np.arange(n), excluded=[0], annotations=annotations)


YES = {"marked": lambda row: int(row % 2)}


def marked_tokens(labels, seed=0, rows=60, place=None, words=MARK, validation=0.0, covered=True):
    """Rows of random words with labels of tokens, each a function of the tokens and a generator; `place` puts marks."""
    draw = np.random.default_rng(seed)
    tokens = draw.integers(1, words, (rows, CONTEXT + 1)).astype(np.int32)
    if place:
        place(tokens)
    bits = np.zeros(tokens.shape, np.uint64)
    for number, label in enumerate(labels.values()):
        bits |= label(tokens, draw).astype(np.uint64) << np.uint64(number)
    tasks = np.full(rows, 2 ** len(labels) - 1 if covered else 0, np.uint64)
    annotations = Annotations({}, draw.random(rows) < validation, list(labels), tasks, bits)
    owner = np.repeat(np.arange(rows, dtype=np.int32)[:, None], CONTEXT + 1, axis=1)
    return TokenDataset(tokens, owner, np.arange(rows), excluded=[0], annotations=annotations)
