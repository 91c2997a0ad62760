"""Transcoders of SAELens with random weights."""

from __future__ import annotations

import pytest
import sae_lens
import torch

pytestmark = pytest.mark.usefixtures("own_cache")
D_IN, D_OUT, D_SAE = 12, 9, 40
READS, WRITES = "blocks.1.mlp.hook_in", "blocks.1.hook_mlp_out"
KINDS = {
    "transcoder": (sae_lens.Transcoder, sae_lens.TranscoderConfig),
    "skip_transcoder": (sae_lens.SkipTranscoder, sae_lens.SkipTranscoderConfig),
    "jumprelu_transcoder": (sae_lens.JumpReLUTranscoder, sae_lens.JumpReLUTranscoderConfig),
    "jumprelu_skip_transcoder": (
        sae_lens.saes.JumpReLUSkipTranscoder,
        sae_lens.saes.JumpReLUSkipTranscoderConfig,
    ),
}


def random_transcoder(kind: str, d_in=D_IN, d_out=D_OUT, reads=READS, writes=WRITES, seed=0, **config):
    """A SAELens object whose every parameter matters."""
    sae_class, config_class = KINDS[kind]
    torch.manual_seed(seed)
    metadata = sae_lens.saes.sae.SAEMetadata(hook_name=reads, hook_name_out=writes, model_name="tiny")
    made = sae_class(
        config_class(d_in=d_in, d_out=d_out, d_sae=D_SAE, apply_b_dec_to_input=False, metadata=metadata, **config)
    )
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            parameter.copy_(torch.randn_like(parameter) * (0.5 if name.startswith("W") else 0.3))
        if "jumprelu" in kind:
            made.threshold.abs_()
    return made
