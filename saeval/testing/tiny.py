"""A tiny model, SAE and rows in plain torch, for tests: nothing to download, and all passes are counted."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from saeval.base.fingerprint import digest_of
from saeval.interfaces.data import Batch, Dataset, PairBatch
from saeval.interfaces.model import Capture, Model, ModelSpec
from saeval.stats.randomness import hashed
from saeval.text.packing import PADDING
from saeval.text.tokens import TokenDataset


class TinyModel(Model, ModelSpec):
    """A random causal model in plain torch, and its own spec: residual blocks over the mean of the past real tokens.

    Its hooks are `blocks.{i}.hook_resid_pre`, `d_model` wide. `kind="reward"` gives it a reward head. `passes` counts
    clean, cut and resumed passes, and `blocks_run` the runs of each block.
    """

    def __init__(
        self, layers: int = 3, d_model: int = 16, vocab: int = 50, seed: int = 0,
        dtype: torch.dtype = torch.float32, kind: Literal["causal", "reward"] = "causal",
    ) -> None:  # fmt: skip
        generator = torch.Generator().manual_seed(seed)

        def random(*shape: int) -> Tensor:
            drawn: Tensor = torch.randn(*shape, generator=generator) / shape[0] ** 0.5
            return drawn.to(dtype)

        self.name, self.kind = "tiny", kind  # type: ignore[misc]
        self.device, self.dtype = torch.device("cpu"), dtype
        self.embed = random(vocab, d_model) * vocab**0.5
        self.blocks = [(random(d_model, 4 * d_model), random(4 * d_model, d_model)) for _ in range(layers)]
        self.head_weight = random(d_model, 1 if kind == "reward" else vocab)
        self.passes = {"clean": 0, "cut": 0, "resumed": 0}
        self.blocks_run = [0] * layers
        self._init: dict[str, Any] = {"layers": layers, "d_model": d_model, "vocab": vocab, "seed": seed, "kind": kind}
        self._identity = {"adapter": "tiny", "layers": layers, "d": d_model, "vocab": vocab, "seed": seed, "kind": kind}

    def identity(self) -> Mapping[str, Any]:
        return {**self._identity, "dtype": str(self.dtype)}

    def hooks(self) -> Mapping[str, int]:
        return {f"blocks.{i}.hook_resid_pre": self.embed.shape[1] for i in range(len(self.blocks))}

    def canonical(self, hook_name: str) -> str:
        return hook_name

    def tokenizer(self) -> Any:
        return None

    def tokenizer_identity(self) -> str:
        return "tiny"

    @property
    def context(self) -> int | None:
        return None

    @property
    def vocabulary(self) -> int | None:
        return len(self.embed)

    def load(self, device: str) -> Model:
        return self

    def converted(self, dtype: torch.dtype) -> TinyModel:
        """Return a copy with the same weights that computes in another dtype."""
        converted = copy.copy(self)  # keeps the class and the attributes of a subclass
        TinyModel.__init__(converted, **self._init, dtype=dtype)
        converted.embed, converted.head_weight = self.embed.to(dtype), self.head_weight.to(dtype)
        converted.blocks = [(first.to(dtype), second.to(dtype)) for first, second in self.blocks]
        return converted

    def _block(self, index: int, x: Tensor, real: Tensor | None = None) -> Tensor:
        """Run one block. Without `real` all positions are tokens."""
        self.blocks_run[index] += 1
        real = torch.ones_like(x[..., :1]) if real is None else real[..., None]
        past = (x * real).cumsum(1) / real.cumsum(1).clamp_min(1)
        first, second = self.blocks[index]
        output: Tensor = x + torch.matmul(torch.tanh((x + past) @ first), second)
        return output

    def _finish(self, x: Tensor, batch: Batch) -> Tensor:
        x = x / x.norm(dim=-1, keepdim=True).clamp_min(1e-6) * x.shape[-1] ** 0.5
        if self.kind != "reward":
            return x
        last = (batch.real * torch.arange(1, x.shape[1] + 1)).argmax(1)
        return torch.matmul(x[torch.arange(len(x)), last], self.head_weight)[:, 0]

    def capture(self, batch: Batch, hooks: Iterable[str], final: bool, resumable: Iterable[str] = ()) -> Capture:
        self.passes["clean" if final else "cut"] += 1
        return self._run(self.embed[batch.tokens], batch, hooks, 0, final)

    def resumed(
        self, batch: Batch, captured: Capture, hook_name: str, activations: Tensor, hooks: Iterable[str] = (),
        final: bool = True,
    ) -> Capture:  # fmt: skip
        self.passes["resumed"] += 1
        return self._run(activations, batch, hooks, int(hook_name.split(".")[1]), final)

    def _run(self, x: Tensor, batch: Batch, hooks: Iterable[str], first: int, final: bool) -> Capture:
        """Run the blocks from `first` on; without `final`, stop at the last of the hooks."""
        wanted = {int(hook.split(".")[1]): hook for hook in hooks}
        activations = {}
        for index in range(first, len(self.blocks)):
            if index in wanted:
                activations[wanted[index]] = x
            if not final and index == max(wanted):
                return Capture(activations)
            x = self._block(index, x, batch.real)
        return Capture(activations, self._finish(x, batch))

    def unembed(self, hidden: Tensor) -> Tensor:
        return torch.matmul(hidden, self.head_weight)

    def head(self, final: Tensor, batch: Batch) -> Tensor:
        return torch.matmul(final, self.head_weight)

    def logits(self, batch: Batch) -> Tensor:
        captured = self.capture(batch, [], True)
        assert captured.final is not None
        return self.unembed(captured.final)


class TinySAE:
    """A random ReLU SAE with plain `encode` and `decode` methods, like any live SAE."""

    def __init__(
        self, hook_name: str = "blocks.1.hook_resid_pre", d_in: int = 16, d_sae: int = 32, seed: int = 0,
        dtype: torch.dtype = torch.float32,
    ) -> None:  # fmt: skip
        generator = torch.Generator().manual_seed(seed)
        self.hook_name = hook_name
        decoder = torch.randn(d_sae, d_in, generator=generator, dtype=torch.float64)
        self.W_dec = (decoder / decoder.norm(dim=1, keepdim=True)).to(dtype)
        self.W_enc = self.W_dec.T.clone()
        self.b_enc = torch.full((d_sae,), -0.5, dtype=dtype)
        self.b_dec = torch.zeros(d_in, dtype=dtype)

    def encode(self, x: Float[Tensor, "*b d_in"]) -> Float[Tensor, "*b d_sae"]:
        return torch.relu((x - self.b_dec) @ self.W_enc + self.b_enc)

    def decode(self, feature_acts: Float[Tensor, "*b d_sae"]) -> Float[Tensor, "*b d_in"]:
        decoded: Tensor = feature_acts @ self.W_dec + self.b_dec
        return decoded


@dataclass(frozen=True)
class Variant:
    """A change of the rows on which no metric may depend, or that leaves no token to score."""

    shift: int | None = None
    """Columns of padding before the first token; any number, even 0, also supplies `token_keys`."""
    other_padding: bool = False
    """Other token ids in the padding."""
    other_clusters: bool = False
    """Other ids for the same documents."""
    twice: bool = False
    """Each row twice in its document."""
    nothing_scored: bool = False
    """No token in the mask."""

    def order(self, order: np.ndarray) -> np.ndarray:
        return np.repeat(order, 2) if self.twice else order

    def padding(self, tokens: np.ndarray, vocab: int) -> np.ndarray:
        return (tokens + 7) % vocab if self.other_padding else tokens


def tiny_tokens(
    rows: int = 24, context: int = 12, vocab: int = 50, documents: int = 8, seed: int = 0,
    order_seed: int | None = None,
    extra_padding: int = 0, *, variant: Variant | None = None,
) -> TokenDataset:  # fmt: skip
    """Return random rows of several documents, some of them shorter than the context.

    `order_seed` shuffles the rows; each keeps its sequence id, so that what is keyed by it stays the same.
    `extra_padding` adds columns at the right. `variant` changes what no metric may depend on.
    """
    variant = variant or Variant()
    random = np.random.default_rng(seed)
    tokens = random.integers(0, vocab, (rows, context + 1)).astype(np.int32)
    cluster = np.sort(random.integers(0, documents, rows))
    cluster = np.unique(cluster, return_inverse=True)[1].astype(np.int32)
    owner = np.repeat(cluster[:, None], context + 1, axis=1)
    lengths = random.integers(context // 2, context + 2, rows)
    owner[np.arange(context + 1)[None] >= lengths[:, None]] = PADDING
    order = variant.order(
        np.arange(rows) if order_seed is None else np.random.default_rng(order_seed).permutation(rows)
    )
    tokens, owner, cluster = tokens[order], owner[order], cluster[order]
    tokens = np.where(owner == PADDING, variant.padding(tokens, vocab), tokens)
    if variant.other_clusters:
        names = np.random.default_rng(1).permutation(int(cluster.max()) + 1)
        cluster, owner = names[cluster], np.where(owner == PADDING, PADDING, names[owner])
    left = ((0, 0), (variant.shift or 0, extra_padding))
    tokens, owner = np.pad(tokens, left), np.pad(owner, left, constant_values=PADDING)
    dataset_class = TokenDataset if variant.shift is None else _Shifted
    excluded = range(vocab) if variant.nothing_scored else (0,)
    dataset = dataset_class.from_arrays(tokens, owner, cluster, excluded, sequence_ids=order)
    if isinstance(dataset, _Shifted):
        dataset.shift = variant.shift or 0
    return dataset


def shifted_keys(sequence_ids: np.ndarray, positions: int, shift: int) -> np.ndarray:
    """Return the `token_keys` that rows would have without the columns before their first token."""
    places = np.arange(positions) - shift
    return hashed(sequence_ids[:, None], np.where(places < 0, places + 2**20, places)[None])


class _Shifted(TokenDataset):
    """Rows with padding before the first token, whose tokens keep the `token_keys` that they have without it."""

    supplies = frozenset({"token_keys"})
    shift = 0

    def batch(self, rows: Sequence[int] | np.ndarray, device: torch.device | str) -> Batch:
        batch = super().batch(rows, device)
        keys = shifted_keys(batch.sequence_ids, batch.tokens.shape[1], self.shift)
        return replace(batch, supplied={"token_keys": keys})


class TinyPairs(Dataset):
    """Random preference pairs, each with a shared prefix; some sides are padded. Parameters as for `tiny_tokens`."""

    pair = True

    def __init__(
        self, pairs: int = 10, length: int = 8, vocab: int = 50, seed: int = 0, order_seed: int | None = None,
        extra_padding: int = 0, *, variant: Variant | None = None,
    ) -> None:  # fmt: skip
        variant = variant or Variant()
        random = np.random.default_rng(seed)
        tokens = random.integers(1, vocab, (2, pairs, length))
        divergence = random.integers(1, length - 2, pairs)
        for index, first in enumerate(divergence):
            tokens[1, index, :first] = tokens[0, index, :first]
        lengths = random.integers(length - 1, length + 1, (2, pairs))
        real = np.arange(length) < lengths[..., None]
        tokens = np.where(real, tokens, variant.padding(tokens, vocab))
        order = np.arange(pairs) if order_seed is None else np.random.default_rng(order_seed).permutation(pairs)
        self._ids = order = variant.order(order)
        shift = variant.shift or 0
        around = ((0, 0), (0, 0), (shift, extra_padding))
        self._tokens, self._real = np.pad(tokens[:, order], around), np.pad(real[:, order], around)
        self._divergence = divergence[order] + shift
        names = np.random.default_rng(1).permutation(pairs) if variant.other_clusters else np.arange(pairs)
        self._clusters = names[order]
        self._shift = variant.shift
        if variant.nothing_scored:
            self._divergence = np.full(len(order), self._tokens.shape[2])
        if variant.shift is not None:
            self.supplies = frozenset({*self.supplies, "token_keys"})

    @property
    def fingerprint(self) -> str:
        arrays = (self._tokens, self._real, self._divergence, self._ids, self._clusters)
        return digest_of([array.tolist() for array in arrays])

    @property
    def clusters(self) -> np.ndarray:
        return self._clusters

    def __len__(self) -> int:
        return int(self._tokens.shape[1])

    def batch(self, rows: Sequence[int] | np.ndarray, device: torch.device | str) -> PairBatch:
        rows = np.asarray(rows)
        divergence, ids = torch.from_numpy(self._divergence[rows]), self._ids[rows]
        supplied = {}
        if self._shift is not None:
            supplied["token_keys"] = shifted_keys(ids, self._tokens.shape[2], self._shift)
        sides = []
        for side in (0, 1):
            tokens, real = torch.from_numpy(self._tokens[side, rows]), torch.from_numpy(self._real[side, rows])
            mask = real & (torch.arange(tokens.shape[1]) >= divergence[:, None])
            sides.append(Batch(tokens, tokens, mask, real, ids, self._clusters[rows], supplied))
        return PairBatch((sides[0], sides[1]), divergence)
