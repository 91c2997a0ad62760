"""What the tests of `.pt` formats share: random tensors, comparison with a formula, a suite on a tiny model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import saeval
from saeval.interfaces.sae import SAELoader
from saeval.testing.architectures import tiny_folder
from saeval.testing.claims import none, some

D, N, K = 32, 80, 6
"""Width of the tiny models, features, active features."""


@dataclass
class Formula:
    """An SAE as its library's source says it, apart from the loaders: `encode(x) -> (acts, context)`."""

    encode: Callable[[Tensor], Any]
    decode: Callable[..., Tensor]


def random_tensors(shapes: Mapping[str, tuple[int, ...]], seed: int = 0) -> dict[str, Tensor]:
    """Random tensors of these shapes, each large enough to matter."""
    generator = torch.Generator().manual_seed(seed)
    return {n: torch.randn(s, generator=generator) * (0.4 if len(s) == 2 else 0.3) for n, s in shapes.items()}


def activations(seed: int = 1) -> Tensor:
    return torch.randn(3, 7, D, generator=torch.Generator().manual_seed(seed)) * 2 + 0.5


def assert_same(loader: SAELoader, reference: Mapping[str, Any], formula: Formula, d_sae: int = N) -> None:
    """Same features, same reconstructions, and those of changed features."""
    x = activations()
    sae = loader.load(reference, "cpu", torch.float32)
    encoded = formula.encode(x)
    acts, context = encoded if isinstance(encoded, tuple) else (encoded, None)
    rest = () if context is None else (context,)
    encoding = sae.encode(x)
    assert 0 < (acts != 0).float().mean() < 1  # the comparison has both active and silent features
    assert torch.equal(encoding.feature_acts.sign(), acts.sign())
    torch.testing.assert_close(encoding.feature_acts, acts, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(sae.decode(encoding, x), formula.decode(acts, *rest), atol=1e-5, rtol=1e-5)
    changed = encoding._replace(feature_acts=encoding.feature_acts * 0.3)
    torch.testing.assert_close(sae.decode(changed, x), formula.decode(acts * 0.3, *rest), atol=1e-5, rtol=1e-5)
    info = loader.info(reference)
    assert (info.d_in, info.d_out, info.d_sae) == (sae.d_in, sae.d_out, sae.d_sae) == (D, D, d_sae)
    assert none(tensor.requires_grad for tensor in sae.weights.values())


def suite(
    tmp_path: Path, saes: list[Any], family: str = "gpt2", kind: str = "causal", metrics=("l0", "reconstruction")
):
    """A suite of these SAEs on a tiny Hugging Face model."""
    model, corpus = tmp_path / f"model-{family}", tmp_path / "corpus.txt"
    if not model.exists():
        tiny_folder(model, family, kind)
    corpus.write_text("\n\n".join(" ".join(f"w{1 + (7 * i * j) % 96}" for j in range(1, 40)) for i in range(1, 9)))
    return saeval.evaluate(
        allow=["*"],
        model={"use": "huggingface", "path": str(model)},
        data={"use": "text", "path": str(corpus), "separator": "\n\n", "context": 12, "sequences": 12},
        saes=saes,
        metrics=list(metrics),
    )


def assert_same_in_a_suite(tmp_path: Path, entry: Mapping[str, Any], formula: Formula, hook: str, **model: str) -> None:
    """The file and the formula, as a live object at `hook`, get the same numbers."""
    results = suite(tmp_path, [{**entry, "name": "file"}, (formula, hook)], **model)
    assert not results.failed
    found = {(r.subject, r.metric): r for r in results}
    assert (
        found["file", "l0"].cell["subjects"][0]["hook_name"] == found["formula", "l0"].cell["subjects"][0]["hook_name"]
    )
    for metric in ("l0", "reconstruction"):
        file, live = found["file", metric].values, found["formula", metric].values
        assert set(file) == set(live)
        for name, record in some(live.items()):
            torch.testing.assert_close(file[name].get("value"), record.get("value"), atol=1e-5, rtol=1e-5)
    assert 0 < found["file", "l0"].values["l0"]["value"] < N
