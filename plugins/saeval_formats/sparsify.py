"""Sparse coders of EleutherAI's sparsify: `{run}/{hookpoint}/cfg.json` and `sae.safetensors`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saeval.plugin import SAEInfo, SaevalError
from saeval_formats.fields import Fields
from saeval_formats.folders import FolderLoader, holding
from saeval_formats.reference import TranscoderReference, folder_of, json_object, parsed
from saeval_formats.tensor_layout import TensorLayout
from saeval_formats.tensors import Header

if TYPE_CHECKING:
    import torch

    from saeval_formats.dense import DenseSAE

CONFIG, WEIGHTS, RUN = "cfg.json", "sae.safetensors", "config.json"
_STORED = {
    "W_enc": ("encoder.weight", "nd"),
    "b_enc": ("encoder.bias", "n"),
    "W_dec": ("W_dec", "nd"),
    "b_dec": ("b_dec", "d"),
}
_ACTIVATIONS = ("topk", "groupmax")
_REFUSED = {
    "embed_skip": "it also reads the token embeddings",
    "gram_lookup": "it also reads a table of n-grams",
}


@dataclass(frozen=True)
class Config:
    """The checked settings of `cfg.json`."""

    d_in: int
    d_sae: int
    k: int
    activation: str
    skip: bool
    transcode: bool
    signed: bool = False

    @property
    def architecture(self) -> str:
        kind = f"{'signed_' * self.signed}{self.activation}"
        return f"{kind}{'_skip' * self.skip}{'_transcoder' * self.transcode}"

    @property
    def layout(self) -> TensorLayout:
        return TensorLayout({**_STORED, **({"W_skip": ("W_skip", "dd")} if self.skip else {})})


class Sparsify(FolderLoader):
    """Sparse coders of EleutherAI's sparsify: TopK, group max, signed TopK, and transcoders.

    `path` is an SAE's folder, or that of a run with `sites`, a glob or a list of globs. The folder's name is the path
    of the hooked module in the base model: `layers.10`, `h.3.mlp`, `layers.10/seed1`; `hook_name` and `input_hook`
    replace it. Features are relu(x̃ W_encᵀ + b_enc) of the k largest features of a token, or of the largest in each
    of k groups. With `signed` (early versions), the k pre-activations of largest magnitude are kept with their signs.
    x̃ = x - b_dec; a transcoder has x̃ = x, the input of the module, and reconstructs the module's output.
    x̂ = acts W_dec + b_dec, plus x W_skipᵀ with a skip connection. Formulas: sparsify's `sparse_coder.py` and
    `fused_encoder.py`. SAELens reads these files differently: it transposes W_dec, and `num_latents: 0` means 0.
    """

    name, entry = "sparsify", TranscoderReference
    markers = (WEIGHTS,)
    companions = (f"../{RUN}", f"../../{RUN}")

    def info(self, reference: Mapping[str, Any]) -> SAEInfo:
        options, folder, config, header = _opened(reference)
        hookpoint = _hookpoint(folder)
        reads = (options.input_hook or f"{hookpoint}:in") if config.transcode else None
        return SAEInfo(
            hook_name=options.hook_name or hookpoint,
            input_hook=reads,
            d_in=config.d_in,
            d_sae=config.d_sae,
            d_out=config.d_in,
            sha256=header.identity(
                config.k, config.activation, config.skip, config.transcode, *(["signed"] if config.signed else [])
            ),
            architecture=config.architecture,
            facts={**_run(folder), "k": config.k},
        )

    def load(self, reference: Mapping[str, Any], device: str = "cpu", dtype: torch.dtype | None = None) -> DenseSAE:
        """Load in `dtype`, float32 by default."""
        from saeval_formats.dense import AbsTopK, DenseSAE, GroupMax, TopK  # late: reading headers needs no torch

        options, folder, config, header = _opened(reference)
        tensors = config.layout.canonical(header, device, dtype)
        return DenseSAE(
            options.hook_name or _hookpoint(folder),
            tensors["W_enc"],
            tensors["b_enc"],
            tensors["W_dec"],
            tensors["b_dec"],
            (AbsTopK if config.signed else TopK if config.activation == "topk" else GroupMax)(config.k),
            apply_b_dec_to_input=not config.transcode,
            transcoder=config.transcode,
            W_skip=tensors.get("W_skip"),
        )


def _opened(reference: Mapping[str, Any]) -> tuple[TranscoderReference, Path, Config, Header]:
    options = parsed(TranscoderReference, reference, "sparsify", needs=f"the folder with {CONFIG} and {WEIGHTS}")
    folder = folder_of(options.path, "sparsify", f"{CONFIG} and {WEIGHTS}")
    header = Header.of(holding(folder, "sparsify", (WEIGHTS,)))
    config = _config(folder / CONFIG)
    config.layout.check(header, config.d_in, config.d_sae, kind=f"'skip_connection' of {CONFIG}", sizes=CONFIG)
    return options, folder, config, header


def _config(path: Path) -> Config:
    config = Fields(path, json_object(path))
    for key, reason in _REFUSED.items():
        if config.flag(key, default=False):
            raise SaevalError(f"{path}: '{key}' is not supported: {reason}")
    d_in = config.whole("d_in")
    # num_latents 0 (or null) means d_in times expansion_factor.
    d_sae = config.maybe(config.count, "num_latents") or d_in * config.whole("expansion_factor")
    k = config.k(d_sae)
    activation = config.choice("activation", _ACTIVATIONS, "topk")
    if activation == "groupmax" and d_sae % k:
        raise SaevalError(f"{path}: {d_sae} features cannot be divided into 'k: {k}' groups of equal size")
    skip, transcode, signed = (config.flag(key, default=False) for key in ("skip_connection", "transcode", "signed"))
    if signed and activation != "topk":
        raise SaevalError(f"{path}: 'signed' is for 'activation: topk', found '{activation}'")
    return Config(d_in, d_sae, k, activation, skip, transcode, signed)


def _hookpoint(folder: Path) -> str:
    """Return the module's path: the folder's name, or that of its parent for one seed of several (`seed1`)."""
    folder = folder.resolve()
    return folder.parent.name if re.fullmatch(r"seed\d+", folder.name) else folder.name


def _run(folder: Path) -> dict[str, Any]:
    """Return the facts about model and data in the run's config."""
    folder = folder.resolve()
    run = folder.parent.parent if re.fullmatch(r"seed\d+", folder.name) else folder.parent
    config = Fields(run / RUN, json_object(run / RUN) if (run / RUN).is_file() else {})
    names = {"model": "model_name", "dataset": "dataset_path", "ctx_len": "context_size"}
    facts = config.facts({"model": config.text, "dataset": None, "ctx_len": config.whole})
    known = {names[key]: value for key, value in facts.items()}
    drawn = config.values.get("init_seeds")
    seeds = [int(folder.name.removeprefix("seed"))] if run != folder.parent else drawn
    return {**known, "seed": seeds[0]} if isinstance(seeds, list) and len(seeds) == 1 else known
