"""Centred writing weights: the same outputs, a residual stream of mean zero."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM

from odd_architectures import made
from saeval import SaevalError
from saeval.testing.architectures import tiny_batch, tiny_folder
from saeval_models.huggingface import HuggingFace
from saeval_models.transformer_lens import TransformerLens

SITES = [
    f"blocks.{b}.{s}" for b in (0, 1) for s in ("hook_resid_pre", "hook_attn_out", "hook_mlp_out", "hook_resid_post")
]


@pytest.mark.parametrize("adapter", [HuggingFace, TransformerLens])
@pytest.mark.parametrize("family", ["gpt2", "gpt_neo", "gpt_neox", "gptj", "falcon"])
def test_outputs_stay_and_the_stream_has_mean_zero(tmp_path, family, adapter):
    folder = tmp_path / family
    tiny_folder(folder, family)
    plain = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():  # biases are born zero
        for name, parameter in plain.named_parameters():
            if name.endswith("bias"):
                parameter.normal_()
    plain.save_pretrained(folder)
    batch = tiny_batch()
    spec = adapter().spec({"path": str(folder), "center_writing_weights": True})
    untouched = adapter().spec({"path": str(folder)})
    assert spec.identity() != untouched.identity()
    model, raw = spec.load("cpu"), untouched.load("cpu")
    mine, theirs = model.capture(batch, SITES, True), raw.capture(batch, SITES, True)
    torch.testing.assert_close(model.head(mine.final, batch), raw.head(theirs.final, batch), atol=1e-5, rtol=1e-5)
    for site in SITES:
        expected = theirs.activations[site] - theirs.activations[site].mean(-1, keepdim=True)
        torch.testing.assert_close(mine.activations[site], expected, atol=1e-5, rtol=1e-5)
    assert theirs.activations[SITES[0]].mean(-1).abs().max() > 1e-3


def test_models_without_layer_norm_are_refused(tmp_path):
    tiny_folder(tmp_path / "llama", "llama")
    spec = HuggingFace().spec({"path": str(tmp_path / "llama"), "center_writing_weights": True})
    with pytest.raises(SaevalError, match="'center_writing_weights' of model 'llama' needs LayerNorm"):
        spec.load("cpu")


def test_a_family_whose_weights_are_not_known_is_refused_in_a_sentence(tmp_path):
    bloom = made("bloom")
    torch.nn.init.normal_(bloom.transformer.word_embeddings_layernorm.weight)  # it writes to the residual stream too
    bloom.save_pretrained(tmp_path / "bloom")
    spec = HuggingFace().spec({"path": str(tmp_path / "bloom"), "center_writing_weights": True})
    with pytest.raises(SaevalError, match="model 'bloom': the writing weights of bloom are unknown"):
        spec.load("cpu")
