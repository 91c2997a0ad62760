"""A planted hierarchy: words of two parents with children, a model that answers by the parent, and SAEs that absorb."""

from __future__ import annotations

import numpy as np
import torch

from saeval.testing import TinyModel, TinySAE
from saeval.text.annotations import Annotations
from saeval.text.tokens import TokenDataset

PARENTS, CHILDREN, WORDS, NOTHING = 3, 4, 6, 4
"""Words per child of each parent, and words without a parent per parent."""
D = 48
QUERY, PAD = 1, 0
FIRST_ANSWER, FIRST_WORD = 2, 8
CONTEXT = 4
HOOK, LATER = "blocks.0.hook_resid_pre", "blocks.1.hook_resid_pre"
_AXES = torch.linalg.qr(torch.randn(D, D, generator=torch.Generator().manual_seed(0)))[0]


def parent_direction(parent):
    return _AXES[parent]


def child_direction(parent, child):
    return _AXES[PARENTS + parent * CHILDREN + child]


def own_direction(word):
    """Four directions of the word itself, out of twelve that words share."""
    return sum(_AXES[PARENTS + PARENTS * CHILDREN + (word * step) % 12 + 0] for step in (1, 5, 7, 11))


def all_words():
    """Every word's token, parent (or -1) and child."""
    words = [(p, c) for p in range(PARENTS) for c in range(CHILDREN) for _ in range(WORDS)]
    words += [(-1, -1)] * (NOTHING * PARENTS)
    return [(FIRST_WORD + number, parent, child) for number, (parent, child) in enumerate(words)]


class Speller(TinyModel):
    """A model whose activations at a word are its parent, its child and itself; its answers follow from the parent.

    Block 0 moves what it read of the parent from the word to the answer's position; nothing else is computed.
    """

    def __init__(self) -> None:
        words = all_words()
        super().__init__(layers=3, d_model=D, vocab=FIRST_WORD + len(words))
        self.embed = torch.zeros(len(self.embed), D)
        for token, parent, child in words:
            noise = 0.3 * own_direction(token)
            self.embed[token] = (
                noise if parent < 0 else parent_direction(parent) + child_direction(parent, child) + noise
            )
        self.embed[QUERY] = _AXES[-1]
        self.head_weight = torch.zeros(D, len(self.embed))
        for parent in range(PARENTS):
            self.head_weight[:, FIRST_ANSWER + parent] = parent_direction(parent)

    def _block(self, index, x, real=None):
        self.blocks_run[index] += 1
        if index > 0:
            return x
        moved = torch.cat([torch.zeros_like(x[:, :1]), x[:, :-1]], 1)
        return x + 2 * moved

    def _finish(self, x, batch):
        return x


def rows(seed, validation=0.0, answers=True, labels=None):
    """Rows `word query answer`, each word a document; the labels of tokens are `word` and `answer`."""
    draw = np.random.default_rng(seed)
    words = [entry for entry in all_words() for _ in range(2)]
    tokens = np.full((len(words), CONTEXT + 1), PAD, dtype=np.int32)
    owner = np.full(tokens.shape, -1, dtype=np.int32)
    for number, (token, parent, _) in enumerate(words):
        answer = FIRST_ANSWER + (parent if parent >= 0 else PARENTS)
        tokens[number, :3], owner[number, :3] = [token, QUERY, answer], number
    kinds = np.array(["none" if parent < 0 else f"p{parent}" for _, parent, _ in words])
    kinds = kinds if labels is None else np.array([labels(*word) for word in words])
    bits = np.zeros(tokens.shape, np.uint64)
    bits[:, 0] = 1
    bits[:, 2] = 2 if answers else 0
    covered = np.full(len(words), 3 if answers else 1, np.uint64)
    names = ["word", "answer"] if answers else ["word"]
    held = draw.random(len(words)) < validation
    annotations = Annotations({"kind": kinds}, held, names, covered, bits)
    return TokenDataset(tokens, owner, np.arange(len(words)), annotations=annotations)


class Hierarchy(TinySAE):
    """An SAE of the parents, children and words, in which some children absorb their parent.

    Features are the parents, then the children, then words. Where an absorbing child fires, the parent's feature is
    silent, and the child's decoder row is both directions. With `drop`, the parent is lost there and the child writes
    itself alone. `scale` multiplies features and divides the decoder.
    """

    def __init__(self, absorbing=(), drop=False, scale=1.0, leak=0.0):
        count = PARENTS + PARENTS * CHILDREN + 12
        super().__init__(HOOK, D, count)
        self.absorbing = [PARENTS + parent * CHILDREN + child for parent, child in absorbing]
        self.parent_of = [parent for parent, _ in absorbing]
        self.W_enc = _AXES[:count].T.clone() * scale
        self.W_dec = _AXES[:count].clone() / scale
        self.b_enc = torch.zeros(count)
        self.leak = leak
        if not drop:
            for feature, parent in zip(self.absorbing, self.parent_of, strict=True):
                self.W_dec[feature] = self.W_dec[feature] + (1 - leak) * parent_direction(parent) / scale

    def encode(self, x):
        f = torch.relu(x @ self.W_enc + self.b_enc)
        f = torch.where(f > 0.05 * f.amax(-1, keepdim=True).clamp(min=1e-6), f, 0.0)
        kept = f.clone()
        for feature, parent in zip(self.absorbing, self.parent_of, strict=True):
            kept[..., parent] = torch.where(f[..., feature] > 0, self.leak * f[..., parent], kept[..., parent])
        return kept

    def decode(self, f):
        return f @ self.W_dec
