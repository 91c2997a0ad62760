"""Draws and probes of SAEBench 0.6.0's probing, TPP and SCR (sae_bench/evals/sparse_probing/probe_training.py).

Negatives are drawn anew at each use, and the epoch of a probe is the best on the evaluated texts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
from jaxtyping import Bool, Float, Int

from saeval.plugin import Undefined, hashed, torch
from saeval_concepts.directions import drawn
from saeval_concepts.texts import document_keys

if TYPE_CHECKING:
    from torch import Tensor

_AT_ONCE = 256
"""Evaluated texts that are read at a time."""
Rows = Int[np.ndarray, "rows"]
Weights = tuple[Float[np.ndarray, "d"], float]
"""w and c of a probe w·x + c."""


class Draws(Protocol):
    """The random numbers of an evaluation, in the order in which SAEBench draws them."""

    def permutation(self, count: int) -> Rows: ...
    def layer(self, width: int) -> tuple[Tensor, Tensor]: ...


class KeyedDraws:
    """Draws that follow from a seed and a purpose; a linear layer's first weights are uniform within 1 / √width."""

    def __init__(self, seed: int, *purpose: str | int) -> None:
        self._keys, self._number = (seed, *purpose), 0

    def permutation(self, count: int) -> Rows:
        self._number += 1
        return drawn(np.arange(count), *self._keys, "SAEBench", self._number)

    def layer(self, width: int) -> tuple[Tensor, Tensor]:
        self._number += 1
        keys = hashed(*self._keys, "SAEBench layer", self._number, np.arange(width + 1))
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


class Table(Protocol):
    """Numbers of texts, of which some rows are read at a time: an array, or rows stored without their zeros."""

    def __getitem__(self, rows: Rows, /) -> Float[np.ndarray, "rows d"]: ...


class Trained(NamedTuple):
    """The probe of the best epoch, and its accuracy on the evaluated texts."""

    w: Float[np.ndarray, "d"]
    c: float
    accuracy: float

    @property
    def weights(self) -> Weights:
        return self.w, self.c


@dataclass(frozen=True)
class Training:
    """How probes are trained."""

    epochs: int = 20
    batch_size: int = 16
    lr: float = 1e-3
    l1: float = 1e-3
    patience: int | None = None
    """Number of epochs without a larger accuracy after which training stops; None: never."""

    def probe(self, fit: Table, test: Table, fitted: Answers, tested: Answers, draws: Draws) -> Trained:
        """Return the probe of the first epoch with the largest accuracy on the evaluated texts.

        Only one batch of texts is read at a time.
        """
        texts, y = fitted[0], torch.from_numpy(fitted[1])
        width = fit[texts[:1]].shape[1]
        with torch.enable_grad():
            w, c = (part.float().requires_grad_() for part in draws.layer(width))
            optimizer = torch.optim.AdamW([w, c], lr=self.lr)
            best, waited = None, 0
            for _ in range(self.epochs):
                order = draws.permutation(len(texts))
                for start in range(0, len(texts), self.batch_size):
                    rows = order[start : start + self.batch_size]
                    x = torch.from_numpy(fit[texts[rows]])
                    logits = torch.nn.functional.linear(x, w, c)[:, 0]
                    wanted = y[torch.from_numpy(rows)].to(logits)
                    loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, wanted)
                    if self.l1:
                        loss = loss + self.l1 * w.abs().sum()
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
                right = _right(test, tested, w.detach(), c.detach())
                if right > (best.accuracy if best else 0.0):
                    best, waited = Trained(w.detach()[0].numpy().copy(), float(c.detach()), right), 0
                else:
                    waited += 1
                if self.patience is not None and waited >= self.patience:
                    break
        if best is None:
            raise Undefined("no epoch of a probe gives a right answer on the evaluated texts")
        return best


def _right(test: Table, tested: Answers, w: Tensor, c: Tensor) -> float:
    """Return the share of right answers of a probe."""
    texts, answers = tested
    said = [
        torch.nn.functional.linear(torch.from_numpy(test[texts[start : start + _AT_ONCE]]), w, c)[:, 0] > 0
        for start in range(0, len(texts), _AT_ONCE)
    ]
    return float((torch.cat(said).numpy() == answers).mean())


def accuracy(logits: Float[np.ndarray, "n"], answers: Answers) -> float:
    """Return the share of right answers; 0 counts as a no."""
    return float(((logits[answers[0]] > 0) == answers[1]).mean())


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
