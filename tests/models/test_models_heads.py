"""The `huggingface` adapter's ends against plain PyTorch: padding, heads, rewards."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from places import forward, place
from saeval.testing.architectures import FAMILIES, SIX_FAMILIES, batch_of, padded, tiny_batch
from saeval.testing.claims import some

CLOSE = {"rtol": 1e-5, "atol": 1e-5}


@pytest.mark.parametrize(
    ("family", "kind"),
    [(f, "causal") for f in FAMILIES] + [(f, "reward") for f in (*SIX_FAMILIES, "opt")],
)
@pytest.mark.parametrize(("left", "right"), [([0, 0, 0], [5, 2, 0]), ([5, 2, 0], [0, 3, 5]), ([1, 1, 1], [0, 0, 0])])
def test_padding_changes_nothing_at_real_tokens(loaded, family, kind, left, right):
    spec, model, _ = loaded(family, kind)
    bare = tiny_batch()
    wide = padded(bare, left, right)
    names = [name for name in spec.hooks() if name.startswith("blocks.")]
    expected = model.capture(bare, names, final=True, resumable=names)
    found = model.capture(wide, names, final=True, resumable=names)

    def real(tensor):
        return tensor[wide.real].reshape(3, 10, -1) if kind == "causal" else tensor

    for name in some(names):
        at_real = found.activations[name][wide.real].reshape(expected.activations[name].shape)
        torch.testing.assert_close(at_real, expected.activations[name], **CLOSE)
    torch.testing.assert_close(real(found.final), expected.final, **CLOSE)
    for name in some(n for n in names if n.startswith("blocks.1.")):
        resumed = model.resume(wide, found, name, 2 * found.activations[name])
        again = model.resume(bare, expected, name, 2 * expected.activations[name])
        torch.testing.assert_close(real(resumed), again, **CLOSE)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_head_gives_the_models_own_logits(loaded, family):
    _, model, plain = loaded(family)
    batch = tiny_batch()
    with torch.no_grad():
        expected = plain(batch.tokens).logits
    final = model.capture(batch, [], final=True).final
    torch.testing.assert_close(model.logits(batch), expected, **CLOSE)
    torch.testing.assert_close(model.head(final, batch), expected, **CLOSE)
    torch.testing.assert_close(model.unembed(final[batch.mask]), expected[batch.mask], **CLOSE)


def test_gemma_2s_logits_are_capped(loaded):
    _, model, plain = loaded("gemma2")
    final = model.capture(tiny_batch(), [], final=True).final
    uncapped = final @ plain.get_output_embeddings().weight.detach().T
    assert float(uncapped.abs().max()) > 3
    torch.testing.assert_close(model.head(final, tiny_batch()), 3 * torch.tanh(uncapped / 3), **CLOSE)


@pytest.mark.parametrize("family", SIX_FAMILIES)
def test_a_reward_is_the_score_of_the_last_real_token(loaded, family):
    spec, model, plain = loaded(family, "reward")
    batch = tiny_batch()
    assert (spec.kind, model.kind) == ("reward", "reward")
    with torch.no_grad():
        expected = plain(batch.tokens).logits[:, 0]  # no row holds padding, so this pools the last token
    torch.testing.assert_close(model.capture(batch, [], final=True).final, expected, **CLOSE)
    # A row that ends in real tokens equal to pad_token_id: transformers would pool before them.
    tokens = batch.tokens.clone()
    tokens[0, -2:] = plain.config.pad_token_id
    found = model.capture(batch_of(tokens, batch.real), [], final=True).final
    hidden, _ = forward(plain, tokens)
    torch.testing.assert_close(found, plain.score(hidden[:, -1])[:, 0].detach(), **CLOSE)
    with torch.no_grad():
        assert not torch.isclose(found[0], plain(tokens).logits[0, 0], atol=1e-3)
    name = "blocks.1.hook_resid_pre"
    captured = model.capture(batch, [name], final=False)
    new = 1.5 * captured.activations[name]
    hidden, _ = forward(plain, batch.tokens, *place(plain, family, 1, "hook_resid_pre"), lambda _: new)
    resumed = model.resume(batch, captured, name, new)
    torch.testing.assert_close(resumed, plain.score(hidden[:, -1])[:, 0].detach(), **CLOSE)


def test_rows_of_nothing_real_have_a_reward_all_the_same(loaded):
    _, model, _ = loaded("llama", "reward")
    batch = tiny_batch()
    real = batch.real.clone()
    real[1] = False
    found = model.capture(dataclasses.replace(batch, real=real), [], final=True).final
    assert found.isfinite().all()
