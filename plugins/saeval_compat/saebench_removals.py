"""Removal of features in SAEBench 0.6.0's TPP and SCR (sae_bench/evals/scr_and_tpp/main.py).

Removing features also changes the padding, which is divided by the number of tokens that are no padding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import numpy as np
from jaxtyping import Bool, Float, Int8
from pydantic import Field

from saeval.plugin import Better, Encoding, Evidence, Metric, Scalar, Substitute, Undefined, Value, torch
from saeval_concepts.removals import Removal
from saeval_concepts.texts import all_rows
from saeval_concepts.written import written_acts

if TYPE_CHECKING:
    from torch import Tensor

N = (2, 5, 10, 20, 50, 100, 500)
Counts = tuple[Annotated[int, Field(ge=1)], ...]
Size = Annotated[int, Field(ge=4)]
Chosen = tuple[Sequence[Removal], ...]
"""By removed class, or kept label: the removal for each N."""


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


class SAEBenchRemoval(Metric):
    """Base of SAEBench's two metrics that remove features and ask probes again."""

    forms: ClassVar[Sequence[str]]
    """Names of the values, with a place for N."""
    unit: ClassVar[str]

    def __init__(
        self,
        tasks: tuple[str, ...] = ("*",),
        n: Counts = N,
        train_size: Size = 4000,
        test_size: Size = 1000,
        context_length: Annotated[int, Field(ge=1)] = 128,
        epochs: Annotated[int, Field(ge=1)] = 20,
        pooling: Literal["mean"] = "mean",
        seed: int = 42,
    ) -> None:
        if not n or not tasks:
            raise ValueError(f"metric '{self.name}': 'n' and 'tasks' need at least one entry each")
        self.tasks, self.n = tasks, tuple(sorted(set(n)))
        self.train_size, self.test_size, self.context_length = train_size, test_size, context_length
        self.epochs, self.pooling, self.seed = epochs, pooling, seed
        self.value_names = tuple(form.format(count) for count in self.n for form in self.forms)

    def better(self, form: str) -> Better:
        """Return the better direction of a value."""
        return "higher"

    def removed(
        self, chosen: Chosen, padded_acts: Float[Tensor, "batch d_sae"], task_labels: Int8[np.ndarray, "batch tasks"]
    ) -> Evidence:
        """Return how much leaves the logit of each probe: `change [texts, chosen, n, probes]`."""
        return all_rows(task_labels, change=np.stack([changes(own, padded_acts) for own in chosen], axis=1))

    def values(self, found: Mapping[str, float], d_sae: int, missing: str) -> dict[str, Value]:
        """Return SAEBench's numbers by name; undefined above the number of features, or where `found` has none."""
        values: dict[str, Value] = {}
        for count in self.n:
            for form in self.forms:
                name, better = form.format(count), self.better(form)
                if count > d_sae:
                    reason = f"SAEBench fails, since N is above the number of features, {d_sae}"
                    values[name] = Scalar.undefined(reason, unit=self.unit, better=better)
                elif name not in found:
                    values[name] = Scalar.undefined(missing, unit=self.unit, better=better)
                else:
                    values[name] = Scalar(found[name], unit=self.unit, better=better)
        return values
