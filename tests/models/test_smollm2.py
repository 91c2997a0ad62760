"""SmolLM2-135M from its GGUF file, in saeval and in plain transformers: the same numbers for the same SAE."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

import saeval
from gguf_files import SMOLLM2, smollm2
from saeval.testing.claims import some
from saeval_models.gguf import _reader

pytestmark = pytest.mark.slow
BLOCK, CONTEXT = 14, 24
ABLATION = {"ablation": "zero"}
HOOK = f"blocks.{BLOCK}.hook_resid_post"
TEXTS = [
    "The capital of France is Paris, which lies on the river Seine. Its best known building is an iron tower that was "
    "finished in 1889 for a fair.",
    "Water boils at a lower temperature on a mountain, because the pressure of the air is lower there. Cooking rice "
    "takes longer for the same reason.",
    "def mean(values):\n    total = 0.0\n    for value in values:\n        total += value\n    return total / len(values)",
    "A sparse autoencoder writes the activations of a language model as a sum of few directions, of which there are "
    "more than dimensions.",
]
# Places at which an ablation surely increases the loss of these few tokens: else the share recovered is undefined.
SITES = [
    *(f"blocks.{BLOCK}.{site}" for site in ("hook_resid_pre", "hook_resid_mid", "hook_resid_post")),
    *(f"blocks.0.{site}" for site in ("hook_attn_out", "hook_mlp_out", "attn.hook_z")),
]


class TopKSAE:
    """A TopK SAE whose features are the principal directions of some activations `[n, d_in]`, and their opposites."""

    def __init__(self, activations, k=24):
        self.b_dec = activations.mean(0)
        directions = torch.linalg.svd(activations - self.b_dec, full_matrices=False).Vh
        self.W_dec, self.d_sae, self.k = torch.cat([directions, -directions]), 2 * len(directions), k

    def encode(self, x):
        scores = torch.relu((x - self.b_dec) @ self.W_dec.T)
        values, indices = scores.topk(self.k, dim=-1)
        return torch.zeros_like(scores).scatter(-1, indices, values)

    def decode(self, feature_acts):
        return feature_acts @ self.W_dec + self.b_dec


@pytest.fixture(scope="module")
def folder():
    return smollm2()


@pytest.fixture(scope="module")
def plain(folder):
    """The model and its tokens `[batch, seq]`, with plain transformers."""
    _reader()  # else transformers reads each header four times as long, and builds its table of names 400 times
    # Not `AutoTokenizer`, which reads the whole header a second time to find this class.
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, gguf_file=SMOLLM2)
    tokens = torch.tensor([tokenizer(text).input_ids[: CONTEXT + 1] for text in TEXTS])
    config = AutoConfig.from_pretrained(folder, gguf_file=SMOLLM2)
    load = AutoModelForCausalLM.from_pretrained
    return load(folder, gguf_file=SMOLLM2, config=config, dtype=torch.float32).eval(), tokens


@torch.no_grad()
def expected(model, tokens, sae):
    """Loss, KL, L0 and explained variance by the formulas, with a hook that replaces the output of one block."""

    def log_probs(replace=None):
        handles = []
        if replace is not None:
            handles = [model.model.layers[BLOCK].register_forward_hook(lambda module, inputs, output: replace)]
        logits = model(tokens[:, :-1]).logits
        for handle in handles:
            handle.remove()
        return logits.double().log_softmax(-1)

    x = model.model(tokens[:, :-1], output_hidden_states=True).hidden_states[BLOCK + 1]
    feature_acts = sae.encode(x)
    x_hat, mean = sae.decode(feature_acts), x.double().mean((0, 1))
    clean, spliced, ablated = log_probs(), log_probs(x_hat), log_probs(torch.zeros_like(x))
    ce = [-scores.gather(-1, tokens[:, 1:, None]).mean() for scores in (clean, spliced, ablated)]
    kl = [(clean.exp() * (clean - scores)).sum(-1).mean() for scores in (spliced, ablated)]
    error, spread = (x - x_hat).double().square().sum(), (x.double() - mean).square().sum()
    return {
        "ce.ce_clean": ce[0], "ce.ce_sae": ce[1], "ce.ce_ablated": ce[2], "ce.delta_ce": ce[1] - ce[0],
        "ce.recovered": (ce[2] - ce[1]) / (ce[2] - ce[0]), "kl.kl_sae": kl[0], "kl.kl_ablated": kl[1],
        "kl.kl_score": 1 - kl[0] / kl[1], "l0.l0": (feature_acts > 0).double().sum(-1).mean(),
        "reconstruction.explained_variance": 1 - error / spread, "reconstruction.mse": error / x[..., 0].numel(),
    }  # fmt: skip


def test_fidelity_equals_plain_transformers_and_identity_recovers_everything(folder, plain, tmp_path):
    model, tokens = plain
    with torch.no_grad():
        states = model.model(tokens[:, :-1], output_hidden_states=True).hidden_states[BLOCK + 1]
    sae = TopKSAE(states.flatten(0, 1)[::2])
    np.save(tmp_path / "rows.npy", tokens.numpy())
    results = saeval.evaluate(
        model={"use": "huggingface", "path": str(folder), "gguf_file": SMOLLM2},
        saes={"topk": (sae, HOOK)}, hooks=SITES, controls=["identity"],
        data={"use": "rows", "path": str(tmp_path / "rows.npy"), "exclude": []},
        metrics=[{"ce": ABLATION}, {"kl": ABLATION}, "l0", "reconstruction"],
    )  # fmt: skip
    assert not results.failed, results.failed[0].reason
    for name, value in some(expected(model, tokens, sae).items()):
        assert results.value(name, "topk")["value"] == pytest.approx(float(value), rel=1e-5, abs=1e-5), name
    recovered = {
        (result.cell["subjects"][0]["hook_name"], value): result.values[value]["value"]
        for result in results
        for value in ("recovered", "kl_score")
        if result.subject.startswith("identity") and value in result.values
    }
    assert set(recovered) == {(site, value) for site in SITES for value in ("recovered", "kl_score")}
    for place, share in some(recovered.items()):
        assert share == pytest.approx(1, abs=1e-5), place
