"""The model and the rows that the peers and saeval evaluate."""

from __future__ import annotations

import pytest
import torch
from sae_lens import StandardSAE, StandardSAEConfig
from sae_lens.saes.sae import SAEMetadata
from transformer_lens import HookedTransformer, HookedTransformerConfig

from compat_runs import CONTEXT, HOOK, ROWS, VOCAB


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = HookedTransformerConfig(
        n_layers=2, d_model=16, n_ctx=64, d_head=8, n_heads=2, d_mlp=32, d_vocab=VOCAB, act_fn="gelu_new",
        normalization_type="LN", device="cpu", seed=0,
    )  # fmt: skip
    made = HookedTransformer(config).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.mul_(4)  # at its initial scale the model predicts next to nothing
    return made


@pytest.fixture(scope="module")
def sae():
    torch.manual_seed(1)
    made = StandardSAE(StandardSAEConfig(d_in=16, d_sae=40, metadata=SAEMetadata(hook_name=HOOK)))
    with torch.no_grad():
        made.W_dec.copy_(torch.nn.functional.normalize(torch.randn(40, 16), dim=1))
        made.W_enc.copy_(made.W_dec.T + 0.1 * torch.randn(16, 40))
        made.b_enc.fill_(-0.1)
        made.b_dec.copy_(torch.randn(16) * 0.1)
    return made


@pytest.fixture(scope="module")
def tokens():
    return torch.randint(0, VOCAB, (ROWS, CONTEXT + 1), generator=torch.Generator().manual_seed(2))
