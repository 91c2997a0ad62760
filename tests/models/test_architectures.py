"""Architectures beyond the table of layouts: each resumes exactly, or one sentence refuses it before anything runs."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import saeval
from odd_architectures import _COMMON, EXACT, made
from saeval.base.errors import SaevalError
from saeval.testing.architectures import tiny_batch
from saeval.testing.tiny import TinySAE
from saeval_models import HuggingFace

RUN_IN_FULL = ("gemma3n_text", "gemma4_text")
"""Their later blocks read what earlier ones leave beside the hidden state."""
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


@pytest.mark.parametrize(("name", "full"), [("phi", False), ("rwkv", False), *((name, True) for name in RUN_IN_FULL)])
def test_blocks_before_the_hook_run_only_where_they_must(name, full):
    spec, batch = HuggingFace().wrap(made(name)), tiny_batch(rows=2, length=9)
    adapter = spec.load("cpu")
    hook = spec.canonical(f"{EXACT[name][0]}.2.{'feed_forward' if name == 'rwkv' else 'mlp'}")
    captured = adapter.capture(batch, [hook], final=True, resumable=[hook])
    adapter.resume(batch, captured, hook, captured.activations[hook])  # the first one finds out
    runs = []
    for index, block in enumerate(adapter.blocks):
        block.register_forward_pre_hook(lambda *_, index=index: runs.append(index))
    adapter.resume(batch, captured, hook, captured.activations[hook])
    assert runs == ([0, 1, 2, 3] if full else [2, 3])


@pytest.mark.parametrize("name", ["gemma4_text", "rwkv"])
def test_the_identity_loses_nothing(name, tmp_path):
    np.save(tmp_path / "tokens.npy", np.random.default_rng(0).integers(1, 97, (4, 13)))
    hook = "blocks.2.hook_resid_pre"
    results = saeval.evaluate(
        model=made(name), data={"use": "tokens", "path": str(tmp_path / "tokens.npy"), "context": 12, "bos": False},
        saes=[(TinySAE(d_in=32), hook)], metrics=["ce", "kl"], controls=["identity"], allow=["*"],
    )  # fmt: skip
    values = results.to_frame().set_index(["name", "quantity"])["value"]
    assert [result.reason for result in results if result.status != "ok"] == []
    assert values["identity", "kl_sae"] == pytest.approx(0, abs=1e-5)
    assert values["identity", "delta_ce"] == pytest.approx(0, abs=1e-5)
    assert values["tinysae", "kl_sae"] > 1e-3


def test_nothing_that_a_block_left_behind_serves_the_next_pass():
    """A block that remembers its keys from pass to pass: the clean pass would make a short one look exact."""
    model = made("phi")
    kept = {}
    first, last = model.model.layers[0].mlp, model.model.layers[3].mlp
    first.register_forward_hook(lambda module, args, out: kept.update(state=out))
    last.register_forward_hook(lambda module, args, out: out + 3 * kept["state"][: len(out)])
    adapter = HuggingFace().wrap(model).load("cpu")
    one, two, hook = tiny_batch(rows=2, length=9), tiny_batch(rows=2, length=9, seed=5), "blocks.2.hook_resid_pre"
    captured = adapter.capture(one, [hook], final=True, resumable=[hook])
    adapter.capture(two, [hook], final=True)
    resumed = adapter.resume(one, captured, hook, captured.activations[hook])
    torch.testing.assert_close(resumed, captured.final, **CLOSE)


REFUSED = {
    "bert": (_COMMON, "BertLMHeadModel is not causal"),
    "roberta": ({**_COMMON, "type_vocab_size": 1}, "RobertaForCausalLM is not causal"),
    "xlm": (
        {"vocab_size": 97, "emb_dim": 32, "n_layers": 4, "n_heads": 4, "max_position_embeddings": 64},
        "XLMWithLMHeadModel has no blocks to hook: it keeps the parts of blocks in separate lists (attentions, layer_norm1",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_resumed_is_refused_in_one_sentence(name):
    arguments, said = REFUSED[name]
    with pytest.raises(SaevalError) as error:
        HuggingFace().wrap(made(name, **arguments)).load("cpu")
    assert said in str(error.value)
    assert "\n" not in str(error.value)
