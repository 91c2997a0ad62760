"""sae-lens' own evaluation of the testbed, from its own store of tokens, beside ours of the same rows from a file."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from datasets import Dataset
from sae_lens import SAE
from sae_lens.evals import get_eval_everything_config, run_evals
from sae_lens.training.activation_scaler import ActivationScaler
from sae_lens.training.activations_store import ActivationsStore
from transformer_lens.model_bridge.sources import build_bridge_from_module
from transformers import AutoModelForCausalLM, AutoTokenizer

from saeval.testing import evaluate
from saeval_data.stdlib import stdlib_modules
from saeval_testbed import WEIGHTS
from test_compat import arrays, numbers, plugins

CONTEXT, BATCH, BATCHES = 32, 4, 3
STREAMED = ["saelens_downstream"]
RESTED = [{"saelens_variance": {"batch_size": BATCH}}, "saelens_features", "saelens_weights"]


@pytest.fixture(scope="module")
def bridge():
    module = AutoModelForCausalLM.from_pretrained(WEIGHTS / "model", dtype=torch.float32, attn_implementation="eager")
    tokenizer = AutoTokenizer.from_pretrained(WEIGHTS / "model")
    made = build_bridge_from_module(module, "GPT2LMHeadModel", hf_config=module.config, tokenizer=tokenizer)
    return made.eval()


@pytest.fixture(scope="module")
def texts():
    """Short ones, so that rows hold several of them, with separators between."""
    return [{"text": text[:80]} for _, text in stdlib_modules("held_out", tests=False)][:60]


class Recorded(ActivationsStore):
    """Remembers the batches it gave."""

    def get_batch_tokens(self, *args, **kwargs):
        found = super().get_batch_tokens(*args, **kwargs)
        self.given = [*getattr(self, "given", []), found]
        return found


def ours(tokens, path, name, metrics, exclude):
    np.save(path, tokens.numpy())
    results = evaluate(
        model={"use": "testbed"}, saes=[f"testbed/{name}"], data={"use": "rows", "path": str(path), "exclude": exclude},
        metrics=metrics, plugins=plugins(), batch_size=5,
    )  # fmt: skip
    assert not results.failed, results.failed[0].traceback
    return results


@pytest.mark.parametrize("special", [True, False], ids=["special-tokens-excluded", "nothing-excluded"])
@pytest.mark.parametrize("name", ["relu-3", "topk-16", "gated", "jumprelu"])
def test_every_field_of_sae_lens_on_the_testbed(bridge, texts, tmp_path, name, special):
    sae = SAE.load_from_disk(WEIGHTS / "saes" / name)
    store = Recorded.from_sae(
        bridge, sae, dataset=Dataset.from_list(texts), context_size=CONTEXT, store_batch_size_prompts=BATCH,
        streaming=False, total_tokens=1,
    )  # fmt: skip
    theirs, features = run_evals(
        sae, store, bridge, ActivationScaler(), get_eval_everything_config(BATCH, BATCHES, BATCHES),
        exclude_special_tokens=special,
    )  # fmt: skip
    batches = store.given[-2 * BATCHES :]  # what came before was a look at the data
    first, second = torch.cat(batches[:BATCHES]), torch.cat(batches[BATCHES:])
    bos = bridge.tokenizer.bos_token_id
    assert (first[:, 0] == bos).all()
    assert (first[:, 1:] == bos).any(), "no row holds two texts"
    assert not torch.equal(first, second), "its two passes saw the same tokens"

    exclude = [bos] if special else []
    results = [
        *ours(first, tmp_path / "first.npy", name, STREAMED, exclude),
        *ours(second, tmp_path / "second.npy", name, RESTED, exclude),
    ]
    found = numbers(results)
    expected = {k: v for section, part in theirs.items() if section != "token_stats" for k, v in part.items()}
    assert set(expected) == set(found)
    for field, value in expected.items():
        assert found[field] == pytest.approx(value, rel=1e-4), field
    lists = arrays(results)
    assert set(lists) == set(features)
    if sae.cfg.to_dict().get("rescale_acts_by_decoder_norm"):  # here the decoder's norms are in the encoder already
        norms = sae.W_dec.norm(dim=1).detach().numpy()
        features |= {field: np.array(features[field]) * norms for field in ("encoder_norm", "encoder_bias")}
    for field, value in features.items():
        assert lists[field] == pytest.approx(np.array(value), rel=1e-4, abs=1e-6, nan_ok=True), field
