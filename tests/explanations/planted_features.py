"""A model and an SAE with planted features, and a judge that knows them all."""

from __future__ import annotations

import json
import re

import numpy as np
import torch

from saeval.plugin import Judge, Reply, hashed
from saeval.testing import TinyModel, TinySAE
from saeval.text.tokens import TokenDataset

VOCABULARY, CONTEXT, EACH = 120, 40, 4
HOOK = "blocks.1.hook_resid_pre"
RULES = [f"{kind} {number}" for kind in ("token", "pair", "noise") for number in range(EACH)]
"""`token i` fires on the tokens 2i + 1 and 2i + 2, `pair i` on token 60 + i after token 70 + i, `noise i` by chance."""
DENSE = 0.1


def tokens_of(rule):
    number = int(rule.split()[1])
    return {"token": [2 * number + 1, 2 * number + 2], "pair": [60 + number]}[rule.split()[0]]


def fires(rule, tokens, place):
    """Whether a planted feature fires at a place of a list of tokens."""
    if rule.startswith("pair"):
        return tokens[place] in tokens_of(rule) and place > 0 and tokens[place - 1] == 70 + int(rule.split()[1])
    return tokens[place] in tokens_of(rule)


class Planted(TinyModel):
    """Activations after block 0: which token is here, which token is before it, and noise for each token."""

    def __init__(self):
        super().__init__(layers=2, d_model=2 * VOCABULARY + EACH, vocab=VOCABULARY)
        self.embed = torch.zeros(VOCABULARY, 2 * VOCABULARY + EACH)
        self.embed[:, :VOCABULARY] = torch.eye(VOCABULARY)

    def capture(self, batch, hooks, final, resumable=()):
        self._noise = torch.zeros(len(batch.tokens), batch.tokens.shape[1], EACH)
        for number in range(EACH):
            keys = hashed("noise", number, batch.sequence_ids[:, None], np.arange(batch.tokens.shape[1])[None])
            self._noise[..., number] = torch.from_numpy((keys < DENSE * 2.0**64).astype(np.float32))
        return super().capture(batch, hooks, final, resumable)

    def _block(self, index, x, real=None):
        out = x.clone()
        if index == 0:
            out[:, 1:, VOCABULARY : 2 * VOCABULARY] = x[:, :-1, :VOCABULARY]
            out[..., 2 * VOCABULARY :] = self._noise
        return out


class Rules(TinySAE):
    """An SAE whose features are the planted rules; `second` is the activation of the second token of a rule of two."""

    def __init__(self, second=1.0):
        super().__init__(HOOK, 2 * VOCABULARY + EACH, len(RULES))
        self.W_enc, self.b_enc = torch.zeros(2 * VOCABULARY + EACH, len(RULES)), torch.zeros(len(RULES))
        for feature, rule in enumerate(RULES):
            kind, number = rule.split()
            if kind == "noise":
                self.W_enc[2 * VOCABULARY + int(number), feature] = 1
                continue
            self.W_enc[tokens_of(rule), feature] = torch.tensor([1, second])[: len(tokens_of(rule))]
            if kind == "pair":
                self.W_enc[VOCABULARY + 70 + int(number), feature] = 1
                self.b_enc[feature] = -1
        self.W_dec = self.W_enc.T.clone()


def texts(seed, rows=120):
    """Rows of random tokens, each a document; the first token of each pair is often followed by the second."""
    draw = np.random.default_rng(seed)
    tokens = draw.integers(1, VOCABULARY, (rows, CONTEXT + 1)).astype(np.int32)
    for number in range(EACH):
        at = draw.integers(0, CONTEXT - 1, rows)
        planted = draw.random(rows) < 0.4
        tokens[np.flatnonzero(planted), at[planted]] = 70 + number
        tokens[np.flatnonzero(planted), at[planted] + 1] = 60 + number
    owner = np.repeat(np.arange(rows, dtype=np.int32)[:, None], CONTEXT + 1, axis=1)
    return TokenDataset(tokens, owner, np.arange(rows), excluded=[0])


def numbered(text):
    """The texts of a prompt, as lists of tokens and which of them are marked."""
    found = []
    for line in re.findall(r"^\d+\. (\".*\")$", text, re.MULTILINE):
        tokens, marks, inside = [], [], False
        for part in re.findall(r"<<|>>(?!>)|<\d+>", json.loads(line)):
            if part in ("<<", ">>"):
                inside = part == "<<"
            else:
                tokens.append(int(part[1:-1]))
                marks.append(inside)
        found.append((tokens, marks))
    return found


class Oracle(Judge):
    """Answers rightly whatever can be known: the rule that all marked tokens obey, and where it holds."""

    name = "oracle"
    asked: list = []  # noqa: RUF012  # prompts, by all of its objects

    def __init__(self, manner: str = "right"):
        self.manner = manner

    def identity(self):
        return {"manner": self.manner}

    def replies(self, prompts):
        for index, prompt in enumerate(prompts):
            self.asked.append(prompt)
            yield index, Reply(self.answer(prompt))

    def answer(self, prompt):
        user = prompt.messages[1][1]
        shown = numbered(user)
        if "Answer with one short phrase alone" in user:
            return self.words(shown)
        words = re.match(r"A neuron is active on: (.*)", user).group(1)
        return json.dumps([self.number(words, tokens, marks, "marked tokens" in user) for tokens, marks in shown])

    def words(self, shown):
        for rule in RULES[: 2 * EACH]:
            if all(fires(rule, tokens, i) or i == 0 for tokens, marks in shown for i, m in enumerate(marks) if m):
                return rule
        return f"no idea {sum(sum(tokens) for tokens, _ in shown)}"

    def number(self, words, tokens, marks, about_marks):
        if self.manner == "yes":
            return 10
        if listed := re.findall(r"\"<(\d+)>\"", words):
            holds = [str(token) in listed for token in tokens]
        elif words.startswith(("no idea", "noise")):
            return 5
        else:
            holds = [fires(words, tokens, i) for i in range(len(tokens))]
        if about_marks:
            return 10 if any(marks) and all(h for h, m in zip(holds, marks, strict=True) if m) else 0
        return 10 if any(holds) else 0
