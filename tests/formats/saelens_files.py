"""SAEs of SAELens with random weights, their files, edits of these, and the library's answers beside the loader's."""

from __future__ import annotations

import json
from pathlib import Path

import sae_lens
import torch
from safetensors.torch import load_file, save_file

from saeval_formats.saelens import SAELens

D_IN, D_SAE, K = 12, 40, 6
HOOK = "blocks.1.hook_resid_pre"
METADATA = {"hook_name": HOOK, "model_name": "tiny"}
KINDS = {
    "standard": (sae_lens.StandardSAE, sae_lens.StandardSAEConfig, {}),
    "topk": (sae_lens.TopKSAE, sae_lens.TopKSAEConfig, {"k": K}),
    "topk-wide": (sae_lens.TopKSAE, sae_lens.TopKSAEConfig, {"k": 30}),  # more than are positive: relu matters
    "topk-rescaled": (sae_lens.TopKSAE, sae_lens.TopKSAEConfig, {"k": K, "rescale_acts_by_decoder_norm": True}),
    "abstopk": (sae_lens.AbsTopKSAE, sae_lens.AbsTopKSAEConfig, {"k": K}),
    "abstopk-rescaled": (
        sae_lens.AbsTopKSAE,
        sae_lens.AbsTopKSAEConfig,
        {"k": K, "rescale_acts_by_decoder_norm": True},
    ),
    "jumprelu": (sae_lens.JumpReLUSAE, sae_lens.JumpReLUSAEConfig, {}),
    "gated": (sae_lens.GatedSAE, sae_lens.GatedSAEConfig, {}),
}


def random_sae(kind: str, seed: int = 0, **config):
    """A SAELens object whose every parameter matters."""
    sae_class, config_class, extra = KINDS[kind]
    torch.manual_seed(seed)
    metadata = sae_lens.saes.sae.SAEMetadata(hook_name=HOOK, model_name="tiny", context_size=32, prepend_bos=False)
    sae = sae_class(config_class(d_in=D_IN, d_sae=D_SAE, metadata=metadata, **extra, **config))
    with torch.no_grad():
        for name, parameter in sae.named_parameters():
            parameter.copy_(torch.randn_like(parameter) * (0.5 if name.startswith("W") else 0.3))
        if kind == "jumprelu":
            sae.threshold.abs_()
    return sae


def matching_pursuit(**config):
    torch.manual_seed(0)
    metadata = sae_lens.saes.sae.SAEMetadata(**METADATA)
    made = sae_lens.MatchingPursuitSAE(
        sae_lens.MatchingPursuitSAEConfig(d_in=D_IN, d_sae=D_SAE, max_iterations=5, metadata=metadata, **config)
    )
    with torch.no_grad():
        made.W_dec.copy_(torch.nn.functional.normalize(torch.randn_like(made.W_dec), dim=-1))
        made.b_dec.copy_(torch.randn_like(made.b_dec) * 0.3)
    return made


def temporal(**config):
    torch.manual_seed(0)
    metadata = sae_lens.saes.sae.SAEMetadata(**METADATA)
    sizes = {"n_heads": 2, "bottleneck_factor": 4, "kval_topk": 6}
    made = sae_lens.TemporalSAE(
        sae_lens.TemporalSAEConfig(d_in=D_IN, d_sae=D_SAE, metadata=metadata, **{**sizes, **config})
    )
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.5)
    return made


def matryoshka():
    """A training class, which SAELens exports as jumprelu with one threshold."""
    torch.manual_seed(0)
    metadata = sae_lens.saes.sae.SAEMetadata(**METADATA)
    config = sae_lens.MatryoshkaBatchTopKTrainingSAEConfig(
        d_in=D_IN, d_sae=D_SAE, k=K, matryoshka_widths=[10, D_SAE], metadata=metadata
    )
    made = sae_lens.MatryoshkaBatchTopKTrainingSAE(config)
    with torch.no_grad():
        for parameter in (made.W_enc, made.b_dec):
            parameter.copy_(torch.randn_like(parameter))
    made.topk_threshold.fill_(0.4)
    return made


def saved(sae, folder: Path) -> Path:
    sae.save_model(folder)
    return folder


def edit_config(folder: Path, remove: tuple[str, ...] = (), **changes) -> None:
    path = folder / "cfg.json"
    config = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in config.items() if key not in remove}))


def edit_weights(folder: Path, change) -> None:
    tensors = load_file(folder / "sae_weights.safetensors")
    change(tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "sae_weights.safetensors")


def load(folder: Path, **reference):
    return SAELens().load({"path": str(folder), **reference}, "cpu", torch.float32)


def activations(seed: int = 1) -> torch.Tensor:
    return torch.randn(3, 7, D_IN, generator=torch.Generator().manual_seed(seed)) * 2 + 0.5


def assert_same(ours, theirs, x: torch.Tensor) -> None:
    with torch.no_grad():
        expected_acts = theirs.encode(x)
        expected = theirs.decode(expected_acts)
        encoding = ours.encode(x)
        found = ours.decode(encoding, x)
    assert 0 < (expected_acts != 0).float().mean() < 1  # the comparison has both active and silent features
    assert torch.equal(encoding.feature_acts.sign(), expected_acts.sign())
    torch.testing.assert_close(encoding.feature_acts, expected_acts, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


FLAT = {
    "model_name": "tiny", "hook_layer": 1, "d_in": D_IN, "d_sae": D_SAE, "dtype": "torch.float32", "device": "cpu",
    "apply_b_dec_to_input": True, "finetuning_scaling_factor": False, "normalize_activations": False,
    "context_size": 16, "sae_lens_training_version": "3.20.0", "activation_fn_kwargs": {},
}  # fmt: skip
COMMIT = "0123456789abcdef0123456789abcdef01234567"
