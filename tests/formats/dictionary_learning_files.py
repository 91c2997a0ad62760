"""Checkpoints of dictionary_learning with random weights, written as it writes them, and its classes' formulas written out."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor, relu

from checkpoints import D, Formula, K, N, random_tensors

THRESHOLD = 0.9
LINEAR = {"encoder.weight": (N, D), "encoder.bias": (N,), "decoder.weight": (D, N)}
PLAIN = {"W_enc": (D, N), "b_enc": (N,), "W_dec": (N, D), "b_dec": (D,)}
GATES = {"r_mag": (N,), "gate_bias": (N,), "mag_bias": (N,)}
FLOATS = {
    "AutoEncoder": {"bias": (D,), **LINEAR},
    "AutoEncoderNew": {**LINEAR, "decoder.bias": (D,)},
    "GatedAutoEncoder": {"decoder_bias": (D,), "encoder.weight": (N, D), **GATES, "decoder.weight": (D, N)},
    "JumpReluAutoEncoder": {**PLAIN, "threshold": (N,)},
    "AutoEncoderTopK": {"b_dec": (D,), **LINEAR},
    "BatchTopKSAE": {"b_dec": (D,), **LINEAR},
    "MatryoshkaBatchTopKSAE": PLAIN,
}


def state_of(name: str, seed: int = 0) -> dict[str, Tensor]:
    """What `state_dict()` of a class gives, its buffers among it."""
    state = random_tensors(FLOATS[name], seed)
    if name == "JumpReluAutoEncoder":
        state["threshold"].abs_()
    if "TopK" in name:
        state |= {"k": torch.tensor(K, dtype=torch.int), "threshold": torch.tensor(THRESHOLD)}
    if name == "MatryoshkaBatchTopKSAE":
        state["group_sizes"] = torch.tensor([N // 4, N - N // 4])
    return state


def config_of(name: str, **changes) -> dict:
    trainer = {
        "trainer_class": "SomeTrainer", "dict_class": name, "activation_dim": D, "dict_size": N, "layer": 1,
        "lm_name": "tiny/model", "wandb_name": "x", "submodule_name": "resid_post_layer_1", "seed": 3,
    }  # fmt: skip
    trainer |= {"k": K} if "TopK" in name else {}
    return {"trainer": {**trainer, **changes}, "buffer": {"d_submodule": D, "io": "out", "ctx_len": 16}}


def saved(folder: Path, name: str, state: dict | None = None, config: dict | None = None, **changes) -> Path:
    folder.mkdir(exist_ok=True, parents=True)
    torch.save(state_of(name) if state is None else state, folder / "ae.pt")
    (folder / "config.json").write_text(json.dumps(config or config_of(name, **changes)))
    return folder


def top_k(pre: Tensor, k: int) -> Tensor:
    acts = relu(pre)
    return torch.where(acts >= acts.topk(k, dim=-1).values[..., -1:], acts, 0.0)


def formula_of(name: str, s: dict[str, Tensor]) -> Formula:
    """`encode` and `decode` of a class of dictionary_learning 0.1.0 (dictionary.py, trainers/), after from_pretrained."""
    if name == "AutoEncoder":  # from_pretrained calls normalize_decoder
        norms = s["decoder.weight"].norm(dim=0)
        return Formula(
            lambda x: relu((x - s["bias"]) @ (s["encoder.weight"] * norms[:, None]).T + s["encoder.bias"] * norms),
            lambda f: f @ (s["decoder.weight"] / norms).T + s["bias"],
        )
    if name == "AutoEncoderNew":
        return Formula(
            lambda x: relu(x @ s["encoder.weight"].T + s["encoder.bias"]),
            lambda f: f @ s["decoder.weight"].T + s["decoder.bias"],
        )
    if name == "GatedAutoEncoder":

        def gated(x: Tensor) -> Tensor:
            projected = (x - s["decoder_bias"]) @ s["encoder.weight"].T
            return (projected + s["gate_bias"] > 0).float() * relu(s["r_mag"].exp() * projected + s["mag_bias"])

        return Formula(gated, lambda f: f @ s["decoder.weight"].T + s["decoder_bias"])
    if name == "JumpReluAutoEncoder":

        def jump(x: Tensor) -> Tensor:
            pre = x @ s["W_enc"] + s["b_enc"]
            return relu(pre * (pre > s["threshold"]))

        return Formula(jump, lambda f: f @ s["W_dec"] + s["b_dec"])
    if name == "MatryoshkaBatchTopKSAE":

        def matryoshka(x: Tensor) -> Tensor:
            acts = relu((x - s["b_dec"]) @ s["W_enc"] + s["b_enc"])
            return acts * (acts > s["threshold"])

        return Formula(matryoshka, lambda f: f @ s["W_dec"] + s["b_dec"])

    def linear(x: Tensor) -> Tensor:
        pre = (x - s["b_dec"]) @ s["encoder.weight"].T + s["encoder.bias"]
        return top_k(pre, int(s["k"])) if name == "AutoEncoderTopK" else relu(pre) * (relu(pre) > s["threshold"])

    return Formula(linear, lambda f: f @ s["decoder.weight"].T + s["b_dec"])
