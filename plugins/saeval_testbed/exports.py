"""Writes SAEs in the formats of other libraries, exactly: the written SAE encodes and decodes as the trained one."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from saeval.plugin import FREE_SPACE, write_whole
from saeval_formats.dense import DenseSAE, TopK

TOLERANCE = 1e-5


def dictionary_learning_tensors(sae: Any) -> dict[str, Tensor]:
    """The state dict of `AutoEncoderTopK` in float32, from a sae-lens TopK SAE with folded decoder norms.

    Both subtract b_dec from the input, keep the k largest pre-activations unless negative, and add b_dec.
    """
    tensors = sparsify_tensors(sae)
    W_dec, b_dec = tensors.pop("W_dec"), tensors.pop("b_dec")
    return {
        **tensors,
        "decoder.weight": W_dec.T.contiguous(),
        "b_dec": b_dec,
        "k": torch.tensor(sae.cfg.k, dtype=torch.int),
        "threshold": torch.tensor(-1.0),  # as the library writes it if training tracked no threshold
    }


def sparsify_tensors(sae: Any) -> dict[str, Tensor]:
    """The tensors of sparsify's `SparseCoder` in float32, from a sae-lens TopK SAE with folded decoder norms."""
    _check(sae)
    return {
        "encoder.weight": sae.W_enc.detach().T.contiguous(),
        "encoder.bias": sae.b_enc.detach().clone(),
        "W_dec": sae.W_dec.detach().contiguous(),
        "b_dec": sae.b_dec.detach().clone(),
    }


def _check(sae: Any) -> None:
    """Refuse an SAE that the two layouts cannot express."""
    norms = sae.W_dec.detach().norm(dim=-1)
    if sae.cfg.normalize_activations != "none" or not sae.cfg.apply_b_dec_to_input:
        raise ValueError("expected a folded input scale, and b_dec subtracted from the input")
    if sae.cfg.rescale_acts_by_decoder_norm and not torch.allclose(norms, torch.ones_like(norms), atol=1e-5):
        raise ValueError("expected decoder rows of unit norm: pre-activations are rescaled by them")


@torch.no_grad()
def difference(sae: Any, tensors: Mapping[str, Tensor], x: Tensor) -> tuple[float, float, int]:
    """Largest absolute differences of feature activations and of reconstructions, SAE against converted tensors.

    In units of the root mean square of the activations `x` `[n, d_in]`. Tokens whose k-th and k+1-th largest
    pre-activations differ by less than `TOLERANCE` are left out and counted: rounding decides which one is kept.
    """
    k, scale = int(sae.cfg.k), x.square().mean().sqrt()
    W_enc, b_enc, b_dec = tensors["encoder.weight"].T, tensors["encoder.bias"], tensors["b_dec"]
    W_dec = tensors["W_dec"] if "W_dec" in tensors else tensors["decoder.weight"].T
    largest = ((x - b_dec) @ W_enc + b_enc).topk(k + 1, dim=-1).values
    clear = largest[:, k - 1] - largest[:, k] > TOLERANCE * scale
    converted = DenseSAE(sae.cfg.metadata.hook_name, W_enc, b_enc, W_dec, b_dec, TopK(k), apply_b_dec_to_input=True)
    theirs, acts = converted.encode(x), sae.encode(x)
    encoded = (acts - theirs.feature_acts)[clear].abs().max() / scale
    decoded = (sae.decode(acts) - converted.decode(theirs, x))[clear].abs().max() / scale
    return encoded.item(), decoded.item(), int((~clear).sum())


def _verified(sae: Any, tensors: dict[str, Tensor], sample: Tensor) -> dict[str, Tensor]:
    """Check the float32 tensors and return them rounded to float16."""
    encoded, decoded, ties = difference(sae, tensors, sample)
    print(
        f"converted, in float32: encode differs by {encoded:.1e} of the rms, decode by {decoded:.1e}; "
        f"{ties} of {len(sample)} tokens left out for ties",
        flush=True,
    )
    if max(encoded, decoded) > TOLERANCE or ties > len(sample) // 100:
        raise ValueError(f"the converted SAE differs by more than {TOLERANCE}")
    half = {name: t.half() if t.ndim and t.is_floating_point() else t for name, t in tensors.items()}
    return {name: tensor.contiguous() for name, tensor in half.items()}


def write_dictionary_learning(sae: Any, folder: Path, sample: Tensor) -> None:
    """Write `ae.pt` and `config.json` to `folder`; activations `sample` `[n, d_in]` check the conversion."""
    tensors = _verified(sae, dictionary_learning_tensors(sae), sample)
    write_whole(folder / "ae.pt", lambda file: torch.save(tensors, file), f"{FREE_SPACE} --out")
    match = re.fullmatch(r"blocks\.(\d+)\.hook_(\w+)", sae.cfg.metadata.hook_name)
    assert match
    layer, site = int(match[1]), match[2]
    trainer = {
        "dict_class": "AutoEncoderTopK",
        "activation_dim": sae.cfg.d_in,
        "dict_size": sae.cfg.d_sae,
        "k": sae.cfg.k,
        "layer": layer,
        "lm_name": sae.cfg.metadata.model_name,
        "submodule_name": f"{site}_layer_{layer}",
        "seed": sae.cfg.metadata.seed,
    }
    buffer = {"d_submodule": sae.cfg.d_in, "ctx_len": sae.cfg.metadata.context_size}
    text = json.dumps({"trainer": trainer, "buffer": buffer}, indent=1)
    write_whole(folder / "config.json", f"{text}\n".encode(), f"{FREE_SPACE} --out")


def write_sparsify(sae: Any, folder: Path, sample: Tensor) -> None:
    """Write `sae.safetensors` and `cfg.json` to `folder`, as for one hookpoint of a run."""
    write_whole(folder / "sae.safetensors", save(_verified(sae, sparsify_tensors(sae), sample)), f"{FREE_SPACE} --out")
    config = {
        "activation": "topk",
        "expansion_factor": sae.cfg.d_sae // sae.cfg.d_in,
        "normalize_decoder": True,
        "num_latents": 0,  # as the library writes it: d_in times the expansion factor
        "k": sae.cfg.k,
        "multi_topk": False,
        "skip_connection": False,
        "transcode": False,
        "d_in": sae.cfg.d_in,
    }
    write_whole(folder / "cfg.json", f"{json.dumps(config, indent=1)}\n".encode(), f"{FREE_SPACE} --out")
