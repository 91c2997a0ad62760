"""What tests of the reward plugin share: the plugin registered, and tiny models whose attributions are known."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

import saeval_reward
from saeval.interfaces.data import Batch, Dataset, PairBatch
from saeval.registry.discovery import Plugins
from saeval.registry.registry import Registry
from saeval.testing import TinyModel, TinyPlugin, evaluate, register_rows


def plugins(*added: Any) -> Plugins:
    """All installed plugins, this one too where it was installed after the environment."""
    found = Plugins()
    if "reward_attribution" not in Registry(found).metrics:
        found.add(saeval_reward, "reward")
    for index, plugin in enumerate(added):
        found.add(plugin, f"added-{index}")
    return found


class Pairs(Dataset):
    """Pairs of given token lists, each its own document, padded together on the right."""

    pair = True

    def __init__(
        self,
        pairs: list[tuple[list[int], list[int], int]],
        padding: int = 0,
        clusters: Any = None,
        spelling: Any = None,
        **labels,
    ):
        self.pairs, self.padding = pairs, padding
        self._clusters = np.arange(len(pairs)) if clusters is None else np.asarray(clusters)
        self.spelling = spelling
        self.labels = {name: np.array(values, dtype=np.str_) for name, values in labels.items()}
        self.supplies = frozenset({"labels"} | ({"spelling"} if spelling else set()))

    @property
    def fingerprint(self) -> str:
        return repr(
            (self.pairs, self.padding, self._clusters.tolist(), {k: v.tolist() for k, v in self.labels.items()})
        )

    @property
    def clusters(self):
        return self._clusters

    def __len__(self):
        return len(self.pairs)

    def batch(self, rows, device):
        chosen = [self.pairs[i] for i in rows]
        width = max(len(side) for pair in chosen for side in pair[:2]) + self.padding
        start = torch.tensor([pair[2] for pair in chosen])
        sides = []
        for side in (0, 1):
            tokens = torch.full((len(chosen), width), 1)
            real = torch.zeros(len(chosen), width, dtype=torch.bool)
            for row, pair in enumerate(chosen):
                tokens[row, : len(pair[side])], real[row, : len(pair[side])] = torch.tensor(pair[side]), True
            mask = real & (torch.arange(width) >= start[:, None])
            labels = {name: values[np.asarray(rows)] for name, values in self.labels.items()}
            supplied = {"labels": labels, "spelling": self.spelling}
            sides.append(
                Batch(tokens, tokens, mask, real, np.asarray(rows), self._clusters[np.asarray(rows)], supplied)
            )
        return PairBatch((sides[0], sides[1]), start)


class Readout(TinyModel):
    """A reward model of a known function: m = sum over real positions of `function(x_t)`, x the only hook."""

    def __init__(self, function, d_model: int = 4, vocab: int = 12, seed: int = 0, embed: Tensor | None = None):
        super().__init__(layers=1, d_model=d_model, vocab=vocab, seed=seed, kind="reward", dtype=torch.float64)
        self.function = function
        if embed is not None:
            self.embed = embed
        self._identity = {**self._identity, "function": repr(function), "embed": self.embed.tolist()}

    def _block(self, index, x, real=None):
        return x

    def _finish(self, x, batch):
        return (self.function(x) * batch.real).sum(1)


class Directions:
    """An SAE whose features are ReLUs along given rows, with a bias and, where asked, a leftover error."""

    def __init__(
        self, W_dec: Tensor, W_enc: Tensor | None = None, b_dec: Tensor | None = None, hook="blocks.0.hook_resid_pre"
    ):
        self.hook_name = hook
        self.W_dec = W_dec
        self.W_enc = W_dec.T.clone() if W_enc is None else W_enc
        self.b_enc = torch.zeros(W_dec.shape[0], dtype=W_dec.dtype)
        self.b_dec = torch.zeros(W_dec.shape[1], dtype=W_dec.dtype) if b_dec is None else b_dec

    def encode(self, x):
        return torch.relu((x - self.b_dec) @ self.W_enc + self.b_enc)

    def decode(self, feature_acts):
        return feature_acts @ self.W_dec + self.b_dec


def run(metrics, *, rows, model, saes, added=(), fit=None, **options):
    """Evaluate on rows in memory with this plugin; SAEs of a test are allowed whatever the preflight says."""
    options.setdefault("allow", ("*",))
    name = f"pairs-{id(rows)}"
    return evaluate(
        model=model, saes=saes, data=register_rows(name, rows, fit), metrics=metrics,
        plugins=plugins(TinyPlugin(), *added), **options,
    )  # fmt: skip


W = torch.tensor([1.0, -2.0, 0.5, 0.25], dtype=torch.float64)
EYE = torch.eye(4, dtype=torch.float64)
POSITIVE = torch.rand(12, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64) + 0.1


def pairs(count=40, seed=0, length=6, **options):
    """Random pairs that part at a position of each, some sides shorter than others."""
    random = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        first, lengths = int(random.integers(1, length - 2)), random.integers(length - 1, length + 2, 2)
        prefix = random.integers(2, 12, first).tolist()
        sides = [[*prefix, 2 + side, *random.integers(2, 12, n - first - 1).tolist()] for side, n in enumerate(lengths)]
        found.append((*sides, first))
    return Pairs(found, **options)


def values(results, subject="sae", metric="reward_attribution"):
    (found,) = [r for r in results if r.metric == metric and r.subject == subject]
    assert found.status == "ok", found.reason or found.traceback
    return found


SMALL = {
    "reward_attribution": {
        "steps": 4,
        "baseline": "zero",
        "top": 4,
        "groups": [1, 2],
        "random": 0,
        "contexts": 2,
        "frequent": 1.0,
    }
}
ONE_HOT = torch.eye(12, dtype=torch.float64)


def lines(record):
    return [dict(zip(record["columns"], row, strict=True)) for row in record["rows"]]


def random_pairs(count=60, seed=0, tail=4):
    """A common prefix, then tokens 3 to 8; only chosen has token 2, first of all."""
    random = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        prefix = random.integers(3, 9, 2).tolist()
        rest = [random.integers(3, 9, tail).tolist() for _ in range(2)]
        found.append(([*prefix, 2, *rest[0]], [*prefix, 9, *rest[1]], 2))
    return found
