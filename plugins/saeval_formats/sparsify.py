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
from saeval_formats.reference import AskedTranscoder, folder_of, json_object, parsed
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
    "embed_skip": "it reads the token embeddings too",
    "gram_lookup": "it reads a table of n-grams too",
}


@dataclass(frozen=True)
class Config:
    """What `cfg.json` says, checked."""

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
    """relu(x̃ W_encᵀ + b_enc), of which the k largest of a token are kept, or the largest of each of k groups.

    `signed`, of early versions: of x̃ W_encᵀ + b_enc the k largest in magnitude are kept, with their signs.
    x̃ = x - b_dec, save for a transcoder, whose x is the input of the module that its folder names, and x̂ that
    module's output; x̂ = acts W_dec + b_dec, and x W_skipᵀ where it has a skip connection. The folder is named by the
    module's path from the base model: `layers.10`, `h.3.mlp`, `layers.10/seed1`. Read in sparsify's `sparse_coder.py`
    and `fused_encoder.py`; SAELens' reader of these files transposes W_dec and takes `num_latents: 0` literally.
    """

    name, entry = "sparsify", AskedTranscoder
    markers = (WEIGHTS,)
    companions = (f"../{RUN}", f"../../{RUN}")

    def info(self, reference: Mapping[str, Any]) -> SAEInfo:
        asked, folder, config, header = _opened(reference)
        hookpoint = _hookpoint(folder)
        reads = (asked.input_hook or f"{hookpoint}:in") if config.transcode else None
        return SAEInfo(
            hook_name=asked.hook_name or hookpoint,
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
        """In float32 unless `dtype` is given."""
        from saeval_formats.dense import AbsTopK, DenseSAE, GroupMax, TopK  # late: reading headers needs no torch

        asked, folder, config, header = _opened(reference)
        tensors = config.layout.canonical(header, device, dtype)
        return DenseSAE(
            asked.hook_name or _hookpoint(folder),
            tensors["W_enc"],
            tensors["b_enc"],
            tensors["W_dec"],
            tensors["b_dec"],
            (AbsTopK if config.signed else TopK if config.activation == "topk" else GroupMax)(config.k),
            apply_b_dec_to_input=not config.transcode,
            transcoder=config.transcode,
            W_skip=tensors.get("W_skip"),
        )


def _opened(reference: Mapping[str, Any]) -> tuple[AskedTranscoder, Path, Config, Header]:
    asked = parsed(AskedTranscoder, reference, "sparsify", needs=f"the folder with {CONFIG} and {WEIGHTS}")
    folder = folder_of(asked.path, "sparsify", f"{CONFIG} and {WEIGHTS}")
    header = Header.of(holding(folder, "sparsify", (WEIGHTS,)))
    config = _config(folder / CONFIG)
    config.layout.check(header, config.d_in, config.d_sae, kind=f"'skip_connection' of {CONFIG}", sizes=CONFIG)
    return asked, folder, config, header


def _config(path: Path) -> Config:
    said = Fields(path, json_object(path))
    for key, reason in _REFUSED.items():
        if said.flag(key, default=False):
            raise SaevalError(f"{path}: '{key}' is not supported: {reason}")
    d_in = said.whole("d_in")
    # 0 stands for the expansion factor's many.
    d_sae = said.maybe(said.count, "num_latents") or d_in * said.whole("expansion_factor")
    k = said.k(d_sae)
    activation = said.choice("activation", _ACTIVATIONS, "topk")
    if activation == "groupmax" and d_sae % k:
        raise SaevalError(f"{path}: {d_sae} features do not part into 'k: {k}' groups")
    skip, transcode, signed = (said.flag(key, default=False) for key in ("skip_connection", "transcode", "signed"))
    if signed and activation != "topk":
        raise SaevalError(f"{path}: 'signed' is for 'activation: topk', found '{activation}'")
    return Config(d_in, d_sae, k, activation, skip, transcode, signed)


def _hookpoint(folder: Path) -> str:
    """The module's path; a run of several seeds has a folder for each below it."""
    folder = folder.resolve()
    return folder.parent.name if re.fullmatch(r"seed\d+", folder.name) else folder.name


def _run(folder: Path) -> dict[str, Any]:
    """What the run's own config says of its model and data."""
    folder = folder.resolve()
    run = folder.parent.parent if re.fullmatch(r"seed\d+", folder.name) else folder.parent
    said = Fields(run / RUN, json_object(run / RUN) if (run / RUN).is_file() else {})
    named = {"model": "model_name", "dataset": "dataset_path", "ctx_len": "context_size"}
    facts = said.facts({"model": said.text, "dataset": None, "ctx_len": said.whole})
    return {named[key]: value for key, value in facts.items()}
