"""Parts of SAEBench 0.6.0's TPP and SCR, their defects included (sae_bench/evals/scr_and_tpp/main.py).

Negatives are drawn anew at each use, the epoch of a probe is the best on the evaluated texts, and removing features
also changes the padding, which is divided by the number of tokens that are no padding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
from jaxtyping import Bool, Float, Int

from saeval.plugin import Encoding, Substitute, Undefined, hashed, torch
from saeval_concepts.directions import drawn
from saeval_concepts.removals import Removal
from saeval_concepts.texts import document_keys
from saeval_concepts.written import written_acts

if TYPE_CHECKING:
    from torch import Tensor

Rows = Int[np.ndarray, "rows"]
Weights = tuple[Float[np.ndarray, "d"], float]
"""w and c of a probe w·x + c."""


class Draws(Protocol):
    """The random numbers of an evaluation, in the order in which SAEBench draws them."""

    def permutation(self, count: int) -> Rows: ...
    def layer(self, width: int) -> tuple[Tensor, Tensor]: ...


class KeyedDraws:
    """Draws that follow from a seed; a linear layer's first weights are uniform within 1 / √width."""

    def __init__(self, seed: int) -> None:
        self._seed, self._number = seed, 0

    def permutation(self, count: int) -> Rows:
        self._number += 1
        return drawn(np.arange(count), self._seed, "SAEBench", self._number)

    def layer(self, width: int) -> tuple[Tensor, Tensor]:
        self._number += 1
        keys = hashed(self._seed, "SAEBench layer", self._number, np.arange(width + 1))
        uniform = torch.from_numpy((keys >> np.uint64(11)).astype(np.float64) / 2**53 * 2 - 1).float() / width**0.5
        return uniform[None, :width].clone(), uniform[width:].clone()


Answers = tuple[Rows, Bool[np.ndarray, "rows"]]
"""Texts in the order of their use, and whether each is of the class."""


def one_against_others(groups: Sequence[Rows], number: int, draws: Draws) -> Answers:
    """Return the texts of a class and as many drawn from the others, in a drawn order."""
    own = groups[number]
    others = [group for other, group in enumerate(groups) if other != number]
    each = -(-len(own) // len(others))
    picked = np.concatenate([group[draws.permutation(len(group))[:each]] for group in others])
    return _shuffled(own, picked[draws.permutation(len(picked))[: len(own)]], draws)


def one_against_another(yes: Rows, no: Rows, draws: Draws) -> Answers:
    """Return the texts of two classes in a drawn order."""
    return _shuffled(yes, no[draws.permutation(len(no))[: len(yes)]], draws)


def _shuffled(yes: Rows, no: Rows, draws: Draws) -> Answers:
    order = draws.permutation(len(yes) + len(no))
    return np.concatenate([yes, no])[order], (np.arange(len(order)) < len(yes))[order]


@dataclass(frozen=True)
class Training:
    """How probes are trained."""

    epochs: int = 20
    batch_size: int = 16
    lr: float = 1e-3
    l1: float = 1e-3

    def probe(
        self, fit: Float[np.ndarray, "fit d"], test: Float[np.ndarray, "test d"], fitted: Answers, tested: Answers,
        draws: Draws,
    ) -> Weights:  # fmt: skip
        """Return the probe of the first epoch with the largest accuracy on the evaluated texts."""
        x, y = torch.from_numpy(fit[fitted[0]]), torch.from_numpy(fitted[1])
        held, answers = torch.from_numpy(test[tested[0]]), torch.from_numpy(tested[1])
        with torch.enable_grad():
            w, c = (part.to(x).requires_grad_() for part in draws.layer(x.shape[1]))
            optimizer = torch.optim.AdamW([w, c], lr=self.lr)
            most, best = 0.0, None
            for _ in range(self.epochs):
                order = torch.from_numpy(draws.permutation(len(x)))
                for start in range(0, len(x), self.batch_size):
                    rows = order[start : start + self.batch_size]
                    logits = torch.nn.functional.linear(x[rows], w, c)[:, 0]
                    loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, y[rows].to(logits))
                    loss = loss + self.l1 * w.abs().sum()
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
                with torch.no_grad():
                    said = torch.nn.functional.linear(held, w, c)[:, 0] > 0
                right = float((said == answers).float().mean())
                if right > most:
                    most, best = right, (w.detach()[0].numpy().copy(), float(c.detach()))
        if best is None:
            raise Undefined("no epoch of a probe gives a right answer on the evaluated texts")
        return best


def accuracy(logits: Float[np.ndarray, "n"], answers: Answers) -> float:
    """Return the share of right answers; 0 counts as a no."""
    return float(((logits[answers[0]] > 0) == answers[1]).mean())


def removals(
    effects: Float[np.ndarray, "d_sae"], n: Sequence[int], products: Float[np.ndarray, "d_sae probes"]
) -> list[Removal]:
    """Return, for each N, the removal of the features with the largest effects, as torch breaks ties.

    They are min(N, number of effects that are not 0), of all effects: features whose effect is 0 or negative are among
    them if fewer are positive.
    """
    exact = torch.from_numpy(effects.astype(np.float32))
    some = int((exact != 0).sum())
    chosen = [torch.topk(exact, min(count, some)).indices.numpy() for count in n]
    return [Removal(features, products[features]) for features in chosen]


def changes(removals: Sequence[Removal], acts: Float[Tensor, "batch d_sae"]) -> Float[np.ndarray, "batch n probes"]:
    """Return what leaves the logits with the features of each removal."""
    return np.concatenate([own.changes(acts, [len(own.features)]) for own in removals], axis=1)


def equal_groups(members: Mapping[str, Rows], most: int, clusters: Int[np.ndarray, "n"], seed: int) -> list[Rows]:
    """Return as many texts of each group as the smallest has, at most `most`, chosen by hash.

    `Undefined` if a group is empty.
    """
    size = min(most, *(len(rows) for rows in members.values()))
    for name, rows in members.items():
        if not len(rows):
            raise Undefined(f"no text is {name}; add texts, or change 'shares'")
    keys = document_keys(clusters, seed, "SAEBench texts")
    return [rows[np.argsort(keys[rows], kind="stable")][:size] for rows in members.values()]


def silent_acts(sae: Substitute, W_dec: Float[Tensor, "d_sae d"]) -> Float[Tensor, "d_sae"]:
    """Feature activations of a position whose activations are 0, in the unit of W_dec."""
    zeros = W_dec.new_zeros(1, 1, sae.d_in)
    key, inside = np.zeros((1, 1), dtype=np.uint64), torch.ones(1, 1, dtype=torch.bool, device=W_dec.device)
    encoding: Encoding | None = sae.at(key).encode(zeros) if sae.has_features else None
    into = W_dec.new_zeros(1, 1, W_dec.shape[1])
    return written_acts(sae, encoding, into, inside, key, W_dec)[0, 0]


def padded_acts(
    pooled_written_acts: Float[Tensor, "batch d_sae"],
    silent_acts: Float[Tensor, "d_sae"],
    included: Bool[Tensor, "batch seq"],
    context_length: int,
) -> Float[Tensor, "batch d_sae"]:
    """What removing features takes from the mean of a text that SAEBench pads to its length, padding included."""
    tokens = included.sum(1)
    if int(tokens.max()) > context_length:
        raise Undefined(f"a text has {int(tokens.max())} tokens; 'context_length' is {context_length}")
    padding = (context_length - tokens).clamp(min=0) / tokens.clamp(min=1)
    return pooled_written_acts + padding[:, None].to(pooled_written_acts) * silent_acts.to(pooled_written_acts)
