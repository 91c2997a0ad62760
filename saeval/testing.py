"""For authors of metrics: a tiny model, data and SAE that need no download, and `check_metric`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from saeval.api import Results, evaluate
from saeval.data import Batch, Dataset, PairBatch, Source
from saeval.graph import digest_of
from saeval.hookspecs import hookimpl
from saeval.metric import Metric
from saeval.model import Capture, Model, ModelSpec
from saeval.plugins import Plugins
from saeval.tokens import TokenDataset


class TinyModel(Model, ModelSpec):
    """A random causal model in plain torch, its own spec: residual blocks over a causal mean of the past.

    Its hooks are `blocks.{i}.hook_resid_pre`. `passes` counts clean, cut and resumed passes, and
    `blocks_run` each block's runs.
    """

    def __init__(
        self, layers: int = 3, d_model: int = 16, vocab: int = 50, seed: int = 0,
        dtype: torch.dtype = torch.float32, kind: Literal["causal", "reward"] = "causal",
    ) -> None:  # fmt: skip
        generator = torch.Generator().manual_seed(seed)

        def random(*shape: int) -> Tensor:
            return (torch.randn(*shape, generator=generator) / shape[0] ** 0.5).to(dtype)

        self.name, self.kind = "tiny", kind  # type: ignore[misc]
        self.device, self.dtype = torch.device("cpu"), dtype
        self.embed = random(vocab, d_model) * vocab**0.5
        self.blocks = [(random(d_model, 4 * d_model), random(4 * d_model, d_model)) for _ in range(layers)]
        self.head_weight = random(d_model, 1 if kind == "reward" else vocab)
        self.passes = {"clean": 0, "cut": 0, "resumed": 0}
        self.blocks_run = [0] * layers
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

    def load(self, device: str) -> Model:
        return self

    def _block(self, index: int, x: Tensor) -> Tensor:
        self.blocks_run[index] += 1
        steps = torch.arange(1, x.shape[1] + 1, dtype=x.dtype)[:, None]
        first, second = self.blocks[index]
        return x + torch.matmul(torch.tanh((x + x.cumsum(1) / steps) @ first), second)

    def _finish(self, x: Tensor, batch: Batch) -> Tensor:
        x = x / x.norm(dim=-1, keepdim=True).clamp_min(1e-6) * x.shape[-1] ** 0.5
        if self.kind != "reward":
            return x
        last = batch.real.sum(1) - 1
        return torch.matmul(x[torch.arange(len(x)), last], self.head_weight)[:, 0]

    def capture(self, batch: Batch, hooks: Iterable[str], final: bool, resumable: Iterable[str] = ()) -> Capture:
        wanted = {int(hook.split(".")[1]): hook for hook in hooks}
        self.passes["clean" if final else "cut"] += 1
        found = {}
        x = self.embed[batch.tokens]
        for index in range(len(self.blocks) if final else max(wanted) + 1):
            if index in wanted:
                found[wanted[index]] = x
            if final or index < max(wanted):
                x = self._block(index, x)
        return Capture(found, self._finish(x, batch) if final else None)

    def resume(self, batch: Batch, captured: Capture, hook_name: str, activations: Tensor) -> Tensor:
        self.passes["resumed"] += 1
        x = activations
        for index in range(int(hook_name.split(".")[1]), len(self.blocks)):
            x = self._block(index, x)
        return self._finish(x, batch)

    def unembed(self, hidden: Tensor) -> Tensor:
        return torch.matmul(hidden, self.head_weight)

    def head(self, final: Tensor, batch: Batch) -> Tensor:
        return torch.matmul(final, self.head_weight)

    def logits(self, batch: Batch) -> Tensor:
        captured = self.capture(batch, [], True)
        assert captured.final is not None
        return self.unembed(captured.final)


class TinySAE:
    """A random ReLU SAE with the plain `encode`/`decode` that any live SAE has."""

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
        return feature_acts @ self.W_dec + self.b_dec


def tiny_tokens(
    rows: int = 24, context: int = 12, vocab: int = 50, documents: int = 8, seed: int = 0, order_seed: int | None = None,
    extra_padding: int = 0,
) -> TokenDataset:  # fmt: skip
    """Random rows of several documents, some of them shorter than the context, in an order and padding of choice."""
    random = np.random.default_rng(seed)
    tokens = random.integers(0, vocab, (rows, context + 1)).astype(np.int32)
    cluster = np.sort(random.integers(0, documents, rows))
    cluster = np.unique(cluster, return_inverse=True)[1].astype(np.int32)
    owner = np.repeat(cluster[:, None], context + 1, axis=1)
    lengths = random.integers(context // 2, context + 2, rows)
    owner[np.arange(context + 1)[None] >= lengths[:, None]] = -1
    if order_seed is not None:
        order = np.random.default_rng(order_seed).permutation(rows)
        tokens, owner, cluster = tokens[order], owner[order], cluster[order]
    dataset = TokenDataset.from_arrays(tokens, owner.astype(np.int32), cluster, excluded=(0,))
    return dataset.padded(extra_padding) if extra_padding else dataset


class TinyPairs(Dataset):
    """Random preference pairs that share a prefix; some sides are padded."""

    pair = True

    def __init__(self, pairs: int = 10, length: int = 8, vocab: int = 50, seed: int = 0) -> None:
        random = np.random.default_rng(seed)
        self._tokens = random.integers(1, vocab, (2, pairs, length))
        self._divergence = random.integers(1, length - 2, pairs)
        for index, first in enumerate(self._divergence):
            self._tokens[1, index, :first] = self._tokens[0, index, :first]
        self._lengths = random.integers(length - 1, length + 1, (2, pairs))

    @property
    def fingerprint(self) -> str:
        return digest_of([self._tokens.tolist(), self._lengths.tolist()])

    @property
    def clusters(self) -> np.ndarray:
        return np.arange(self._tokens.shape[1])

    def __len__(self) -> int:
        return int(self._tokens.shape[1])

    def batch(self, rows: Sequence[int] | np.ndarray, device: torch.device | str) -> PairBatch:
        rows = np.asarray(rows)
        divergence = torch.from_numpy(self._divergence[rows])
        sides = []
        for side in (0, 1):
            tokens = torch.from_numpy(self._tokens[side, rows])
            real = torch.arange(tokens.shape[1]) < torch.from_numpy(self._lengths[side, rows])[:, None]
            mask = real & (torch.arange(tokens.shape[1]) >= divergence[:, None])
            sides.append(Batch(tokens, tokens, mask, real, rows, rows))
        return PairBatch((sides[0], sides[1]), divergence)


class InMemory(Source):
    """Data source `in-memory`: rows that a test made, by a name given to `register_rows`."""

    name, kind = "in-memory", "activations"
    rows: dict[str, Dataset] = {}  # noqa: RUF012  # a test's own table, filled by register_rows

    def __init__(self, rows: str) -> None:
        self.key = rows

    def fingerprint(self) -> str:
        return self.rows[self.key].fingerprint

    def dataset(self, split: Literal["evaluation", "fit"]) -> Dataset:
        return self.rows[self.key if split == "evaluation" else f"{self.key}/fit"]


def register_rows(name: str, rows: Dataset, fit: Dataset | None = None) -> dict[str, Any]:
    """Make rows available to suites of this process; returns the suite's `data:` entry."""
    InMemory.rows[name] = rows
    InMemory.rows[f"{name}/fit"] = fit if fit is not None else rows
    return {"use": "in-memory", "rows": name}


class TinyPlugin:
    """Registers `in-memory` data, and what a test brings."""

    def __init__(
        self, metrics: Sequence[type[Metric]] = (), quantities: Sequence[Any] = (), controls: Any = ()
    ) -> None:
        self._metrics, self._quantities, self._controls = metrics, quantities, controls

    @hookimpl
    def saeval_data(self) -> list[type[Source]]:
        return [InMemory]

    @hookimpl
    def saeval_metrics(self) -> list[type[Metric]]:
        return list(self._metrics)

    @hookimpl
    def saeval_quantities(self) -> list[Any]:
        return list(self._quantities)

    @hookimpl
    def saeval_controls(self) -> list[Any]:
        return list(self._controls)


def tiny_plugins(*metrics: type[Metric], quantities: Sequence[Any] = (), controls: Sequence[Any] = ()) -> Plugins:
    """All installed plugins, and a test's own metrics, quantities and controls."""
    plugins = Plugins()
    plugins.add(TinyPlugin(metrics, quantities, controls), "tests")
    return plugins


def evaluate_tiny(
    metrics: Sequence[Any], *classes: type[Metric], rows: Dataset | None = None, saes: Any = None, model: Any = None,
    quantities: Sequence[Any] = (), control_classes: Sequence[Any] = (), **options: Any,
) -> Results:  # fmt: skip
    """Run metrics on the tiny model, data and SAE, or on those given."""
    data = register_rows(f"rows-{len(InMemory.rows)}", rows if rows is not None else tiny_tokens())
    return evaluate(
        model=model if model is not None else TinyModel(),
        saes=saes if saes is not None else [TinySAE()],
        data=data,
        metrics=metrics,
        plugins=tiny_plugins(*classes, quantities=quantities, controls=control_classes),
        **options,
    )


def check_metric(
    metric: type[Metric], params: Mapping[str, Any] | None = None, *, tolerance: float = 1e-6, **options: Any
) -> dict[str, Any]:
    """Prove that a metric's values do not depend on how the data were cut up.

    Runs it on the tiny model at batch sizes 1, 7 and 32, with rows shuffled and with extra
    padding, and compares every scalar to the first run's. Returns the first run's values. Raises
    `AssertionError` naming the value that moved. For `subject = "group"` two SAEs are given.
    """
    entry: dict[str, Any] = {metric.name: dict(params or {})}
    saes = [TinySAE(seed=0), TinySAE(seed=1)]
    if metric.subject == "group":
        entry[metric.name]["over"] = "pair"
        options.setdefault("groups", {"pair": ["tinysae*"]})
    pairs = metric.data == "pair"
    if pairs:
        options.setdefault("model", TinyModel(kind="reward"))
    runs: list[tuple[str, Dataset, int]] = [
        (f"batch size {size}", TinyPairs() if pairs else tiny_tokens(), size) for size in (32, 1, 7)
    ]
    if not pairs:
        runs.append(("rows in another order", tiny_tokens(order_seed=1), 7))
        runs.append(("extra padding", tiny_tokens(extra_padding=5), 7))
    first: dict[str, Any] = {}
    for label, rows, size in runs:
        results = evaluate_tiny([entry], metric, rows=rows, saes=saes, batch_size=size, **options)
        for result in results:
            assert result.status != "failed", f"{metric.name} failed ({label}): {result.reason}"
            for name, record in result.values.items():
                value = record.get("value")
                key = f"{result.subject}: {name}"
                before = first.setdefault(key, value)
                if value is None or before is None:
                    assert value == before, f"{key} is {value} with {label}, {before} at first"
                    continue
                assert abs(value - before) <= tolerance * max(1.0, abs(before)), (
                    f"{key} is {value} with {label}, {before} at first"
                )
    return first
