"""A loader: SAEs of a made-up format, JSON files with lists of numbers."""

import json
from pathlib import Path
from tempfile import TemporaryDirectory

from pydantic import BaseModel, ConfigDict

from saeval.plugin import (
    Encoding,
    SAEInfo,
    SAELoader,
    SaevalError,
    Substitute,
    hookimpl,
    read_json,
    sha256_file,
    torch,
    validated_as,
)
from saeval.testing import TinyModel, TinySAE, check_loader, evaluate, register_rows, tiny_plugins, tiny_tokens

NAMES = ("W_enc", "b_enc", "W_dec", "b_dec")
HOOK = "blocks.1.hook_resid_pre"


class Entry(BaseModel):
    """The keys of `saes: [{use: listed, path: sae.json, hook_name: blocks.6.hook_resid_pre}]`."""

    model_config = ConfigDict(extra="forbid")
    path: Path
    hook_name: str | None = None  # a suite's own stays with saeval, so a loader cannot need it


class ReLU(Substitute):
    """f = relu(x W_enc + b_enc), x̂ = f W_dec + b_dec."""

    weights = None  # set below: in the base class it is a property

    def __init__(self, hook_name, weights):
        self.hook_name, self.weights = hook_name, weights
        self.d_in, self.d_sae = weights["W_enc"].shape

    def encode(self, activations):
        x = activations.to(self.weights["W_enc"].dtype)
        return Encoding(torch.relu(x @ self.weights["W_enc"] + self.weights["b_enc"]))

    def decode(self, encoding, activations):
        x_hat = encoding.feature_acts @ self.weights["W_dec"] + self.weights["b_dec"]
        return x_hat.to(activations.dtype)


class Listed(SAELoader):
    """ReLU SAEs as JSON: W_enc [d_in, d_sae], b_enc [d_sae], W_dec [d_sae, d_in], b_dec [d_in], as lists."""

    name, entry = "listed", Entry

    def info(self, reference):  # runs when a suite is planned: a format with a header reads that alone
        entry, weights = self._read(reference)
        d_in, d_sae = weights["W_enc"].shape
        return SAEInfo(entry.hook_name, d_in, d_sae, sha256_file(entry.path), "standard")

    def load(self, reference, device, dtype):
        entry, weights = self._read(reference)
        return ReLU(entry.hook_name or "", {name: tensor.to(device, dtype) for name, tensor in weights.items()})

    def _read(self, reference):
        entry = validated_as(Entry, reference, f"SAE format '{self.name}'")
        try:
            lists = read_json(entry.path)
            weights = {name: torch.tensor(lists[name], dtype=torch.float64) for name in NAMES}
            d_in, d_sae = weights["W_enc"].shape
        except (OSError, KeyError, TypeError, ValueError, RuntimeError) as error:
            names = ", ".join(NAMES)
            raise SaevalError(f"{entry.path}: expected JSON with lists {names} ({type(error).__name__})") from None
        for name, shape in {"b_enc": [d_sae], "W_dec": [d_sae, d_in], "b_dec": [d_in]}.items():
            if list(weights[name].shape) != shape:
                raise SaevalError(f"{entry.path}: {name} is {list(weights[name].shape)}, expected {shape}")
        return entry, weights


@hookimpl
def saeval_sae_loaders():
    return [Listed]


class Plugin:
    """This file as a plugin; `--plugin loader.py`, or an entry point, has the same effect."""

    saeval_sae_loaders = staticmethod(saeval_sae_loaders)


def written(folder):
    """Write an SAE in the format, and return it with its entry."""
    sae, path = TinySAE(dtype=torch.float64), Path(folder) / "sae.json"
    path.write_text(json.dumps({name: getattr(sae, name).tolist() for name in NAMES}), encoding="utf-8")
    return sae, {"path": str(path), "hook_name": HOOK}


def test_it_keeps_the_rules_of_formats():
    with TemporaryDirectory() as folder:
        sae, entry = written(folder)
        info = check_loader(Listed, entry, same_as=lambda x: sae.decode(sae.encode(x)))
        assert (info.d_in, info.d_sae) == (16, 32)


def run():
    with TemporaryDirectory() as folder:
        _, entry = written(folder)
        plugins = tiny_plugins()
        plugins.add(Plugin, "listed")
        return evaluate(
            model=TinyModel(), saes={"file": {"use": "listed", **entry}}, data=register_rows("loader", tiny_tokens()),
            metrics=["l0", "reconstruction"], plugins=plugins, allow=["*"],
        )  # fmt: skip


if __name__ == "__main__":
    print(run().leaderboard())
