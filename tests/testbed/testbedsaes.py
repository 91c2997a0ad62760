"""The testbed's SAEs of other layouts, read with torch and safetensors alone: what a loader must agree with."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file

import saeval_testbed

TOPK_KEYS = {"encoder.weight", "encoder.bias", "b_dec"}


class Stored:
    """An SAE with `encode` and `decode`, its weights in float32."""

    def __init__(self, tensors, hook_name, *, pre_bias, k=None, unit_decoder=False):
        self.W_enc, self.b_enc, self.W_dec, self.b_dec = (t.float() for t in tensors)
        if unit_decoder:
            self.W_dec = self.W_dec / self.W_dec.norm(dim=-1, keepdim=True)
        self.hook_name, self.pre_bias, self.k = hook_name, pre_bias, k
        self.d_in, self.d_sae = self.W_enc.shape

    def encode(self, x):
        acts = torch.relu((x - self.b_dec * self.pre_bias) @ self.W_enc + self.b_enc)
        if self.k is None:
            return acts
        values, indices = acts.topk(self.k, dim=-1)
        return torch.zeros_like(acts).scatter_(-1, indices, values)

    def decode(self, acts):
        return acts @ self.W_dec + self.b_dec


def dictionary_learning(folder, hook_name):
    """`AutoEncoderTopK`, from `ae.pt` and `config.json`."""
    state = torch.load(folder / "ae.pt", weights_only=True)
    trainer = json.loads((folder / "config.json").read_text())["trainer"]
    assert trainer["dict_class"] == "AutoEncoderTopK"
    assert set(state) == {*TOPK_KEYS, "decoder.weight", "k", "threshold"}
    assert state["encoder.weight"].shape == (trainer["dict_size"], trainer["activation_dim"])
    assert int(state["k"]) == trainer["k"]
    assert state["threshold"].shape == ()
    tensors = state["encoder.weight"].T, state["encoder.bias"], state["decoder.weight"].T, state["b_dec"]
    return Stored(tensors, hook_name, pre_bias=True, k=trainer["k"])


def sparsify(folder, hook_name):
    """From `cfg.json` and `sae.safetensors`."""
    state = load_file(folder / "sae.safetensors")
    config = json.loads((folder / "cfg.json").read_text())
    latents = config["num_latents"] or config["d_in"] * config["expansion_factor"]
    assert set(state) == {*TOPK_KEYS, "W_dec"}
    assert state["encoder.weight"].shape == state["W_dec"].shape == (latents, config["d_in"])
    assert not config["transcode"]
    tensors = state["encoder.weight"].T, state["encoder.bias"], state["W_dec"], state["b_dec"]
    return Stored(tensors, hook_name, pre_bias=True, k=config["k"])


def apollo(file, hook_name):
    """From `samples_<n>.pt`, whose keys begin with the hook."""
    state = torch.load(file, weights_only=True)
    key = hook_name.replace(".", "-")
    assert set(state) == {f"{key}.{name}.{kind}" for name in ("encoder.0", "decoder") for kind in ("weight", "bias")}
    enc, dec = f"{key}.encoder.0", f"{key}.decoder"
    tensors = state[f"{enc}.weight"].T, state[f"{enc}.bias"], state[f"{dec}.weight"].T, state[f"{dec}.bias"]
    return Stored(tensors, hook_name, pre_bias=False, unit_decoder=True)


READERS = {"dictionary_learning": dictionary_learning, "sparsify": sparsify, "apollo": apollo}


def stored_saes():
    """Those that the testbed registers in layouts other than SAELens, by name."""
    found = {}
    for sae in saeval_testbed.saeval_saes():
        if sae.loader in READERS:
            path, hook_name = Path(sae.reference["path"]), sae.reference["hook_name"]
            found[sae.name] = READERS[sae.loader](path, hook_name)
    return found
