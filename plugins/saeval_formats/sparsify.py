"""Sparse coders of EleutherAI's sparsify: `{run}/{hookpoint}/cfg.json` and `sae.safetensors`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from saeval.plugin import SaevalError
from saeval_formats.dense import AbsTopK, GroupMax, TopK
from saeval_formats.fields import Fields
from saeval_formats.folders import FolderLoader, holding
from saeval_formats.reference import TranscoderReference, folder_of, json_object, parsed
from saeval_formats.tensor_layout import Checkpoint, TensorLayout
from saeval_formats.tensors import Header

CONFIG, WEIGHTS, RUN = "cfg.json", "sae.safetensors", "config.json"
_STORED = {
    "W_enc": ("encoder.weight", "nd"),
    "b_enc": ("encoder.bias", "n"),
    "W_dec": ("W_dec", "nd"),
    "b_dec": ("b_dec", "d"),
}
_ACTIVATIONS = {"topk": TopK, "groupmax": GroupMax}
_REFUSED = {
    "embed_skip": "it also reads the token embeddings",
    "gram_lookup": "it also reads a table of n-grams",
}


class Sparsify(FolderLoader):
    """Sparse coders of EleutherAI's sparsify: TopK, group max, signed TopK, and transcoders.

    `path` is an SAE's folder, or that of a run with `sites`, a glob or a list of globs. The folder's name is the path
    of the hooked module in the base model: `layers.10`, `h.3.mlp`, `layers.10/seed1`.
    Features are relu(x̃ W_encᵀ + b_enc) of the k largest features of a token, or of the largest in each of k groups.
    With `signed` (early versions), the k pre-activations of largest magnitude are kept with their signs.
    x̃ = x - b_dec; a transcoder has x̃ = x, the input of the module, and reconstructs the module's output.
    x̂ = acts W_dec + b_dec, plus x W_skipᵀ with a skip connection. Formulas: sparsify's `sparse_coder.py` and
    `fused_encoder.py`. SAELens reads these files differently: it transposes W_dec, and `num_latents: 0` means 0.
    """

    name, entry = "sparsify", TranscoderReference
    markers = (WEIGHTS,)
    companions = (f"../{RUN}", f"../../{RUN}")

    def opened(self, reference: Mapping[str, Any]) -> Checkpoint:
        options = parsed(TranscoderReference, reference, "sparsify", needs=f"the folder with {CONFIG} and {WEIGHTS}")
        folder = folder_of(options.path, "sparsify", f"{CONFIG} and {WEIGHTS}")
        header = Header.of(holding(folder, "sparsify", (WEIGHTS,)))
        path = folder / CONFIG
        config = Fields(path, json_object(path))
        for key, reason in _REFUSED.items():
            if config.flag(key, default=False):
                raise SaevalError(f"{path}: '{key}' is not supported: {reason}")
        d_in = config.whole("d_in")
        # num_latents 0 (or null) means d_in times expansion_factor.
        d_sae = config.maybe(config.count, "num_latents") or d_in * config.whole("expansion_factor")
        k = config.k(d_sae)
        activation = config.choice("activation", tuple(_ACTIVATIONS), "topk")
        if activation == "groupmax" and d_sae % k:
            raise SaevalError(f"{path}: {d_sae} features cannot be divided into 'k: {k}' groups of equal size")
        skip, transcode, signed = (
            config.flag(key, default=False) for key in ("skip_connection", "transcode", "signed")
        )
        if signed and activation != "topk":
            raise SaevalError(f"{path}: 'signed' is for 'activation: topk', found '{activation}'")
        layout = TensorLayout({**_STORED, **({"W_skip": ("W_skip", "od")} if skip else {})}, pre_bias=not transcode)
        place, seed = folder.resolve(), None
        if one_of_several := re.fullmatch(r"seed(\d+)", place.name):  # SAEs of a module
            place, seed = place.parent, int(one_of_several[1])
        return Checkpoint(
            header,
            layout,
            layout.check(header, d_in, d_sae, kind=f"'skip_connection' of {CONFIG}", sizes=CONFIG),
            f"{'signed_' * signed}{activation}{'_skip' * skip}{'_transcoder' * transcode}",
            options.hook_name or place.name,
            (options.input_hook or f"{place.name}:in") if transcode else None,
            numeric=(k, activation, skip, transcode, *(["signed"] if signed else [])),
            facts={**_run(place.parent / RUN, seed), "k": k},
            activation=AbsTopK(k) if signed else _ACTIVATIONS[activation](k),
        )


def _run(file: Path, seed: int | None) -> dict[str, Any]:
    """Return the facts about model and data in a run's config, and the seed if the run has no other."""
    config = Fields(file, json_object(file) if file.is_file() else {})
    names = {"model": "model_name", "dataset": "dataset_path", "ctx_len": "context_size"}
    facts = config.facts({"model": config.text, "dataset": None, "ctx_len": config.whole})
    known = {names[key]: value for key, value in facts.items()}
    drawn = config.values.get("init_seeds")
    seeds = drawn if seed is None else [seed]
    return {**known, "seed": seeds[0]} if isinstance(seeds, list) and len(seeds) == 1 else known
