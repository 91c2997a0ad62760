"""Qwen Scope: one file per layer, `layer{n}.sae.pt`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import StrictInt

from saeval.plugin import SaevalError
from saeval_formats.dense import TopK
from saeval_formats.fields import Fields
from saeval_formats.layer_files import LayerFileLoader
from saeval_formats.reference import LocalReference, parsed
from saeval_formats.tensor_layout import Checkpoint, TensorLayout
from saeval_formats.tensors import Header, state_dict, unpickled_dict

_LAYOUT = TensorLayout(
    {"W_enc": ("W_enc", "nd"), "b_enc": ("b_enc", "n"), "W_dec": ("W_dec", "dn"), "b_dec": ("b_dec", "d")}
)
_REPOSITORY = re.compile(r".*SAE-Res-(.+?)-W(\d+)K-L0_(\d+)(?=/|$)")


class Reference(LocalReference):
    """A suite's reference to one SAE."""

    path: Path
    """A file `layer{n}.sae.pt`."""
    k: StrictInt | None = None
    """The number of active features; by default that of the repository's name, `SAE-Res-{model}-W{width}K-L0_{k}`."""


class QwenScope(LayerFileLoader):
    """TopK SAEs of Qwen Scope, which read and reconstruct the residual stream after a layer.

    The files hold four tensors. k, the model and the width are only in the name of the repository
    (`SAE-Res-Qwen3-1.7B-Base-W32K-L0_50`), which must be part of the path unless the entry has `k`. Features are relu
    of the k largest x W_encᵀ + b_enc, x̂ = acts W_decᵀ + b_dec; b_dec is not subtracted from x. As in SAELens.
    """

    name, entry, pattern = "qwen_scope", Reference, re.compile(r"layer(\d+)\.sae\.pt")

    def opened(self, reference: Mapping[str, Any]) -> Checkpoint:
        options = parsed(Reference, reference, "qwen_scope", needs="the file layer{n}.sae.pt")
        file, layer = self.file(options.path)
        header = Header.of_tensors(file, state_dict(file, unpickled_dict(file)))
        sizes = _LAYOUT.check(header, kind="'use'", sizes="the lengths of b_dec and b_enc")
        repository = _REPOSITORY.match(file.parent.resolve().as_posix())
        if repository and (width := 1024 * int(repository[2])) != sizes[1]:
            fault = f"has {sizes[1]} features, but its folder's name says {repository[2]}K"
            raise SaevalError(f"{file}: {fault} ({width}); check 'path'")
        k = options.k if options.k is not None or not repository else int(repository[3])
        if k is None:
            example = "SAE-Res-Qwen3-1.7B-Base-W32K-L0_50"
            raise SaevalError(f"{file}: no k: no folder in its path is named like {example}; add 'k:'")
        Fields(file, {"k": k}).k(sizes[1])
        facts = {"k": k, **({"model_name": f"Qwen/{repository[1]}"} if repository else {})}
        hook_name = options.hook_name or (f"blocks.{layer}.hook_resid_post" if layer else None)
        return Checkpoint(
            header, _LAYOUT, sizes, "topk", hook_name, numeric=("topk", k), facts=facts, activation=TopK(k)
        )
