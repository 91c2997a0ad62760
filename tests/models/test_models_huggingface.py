"""The `huggingface` adapter against plain PyTorch: what it captures, and what it resumes to."""

from __future__ import annotations

import pytest
import torch

from places import forward, suffixes, truth
from saeval.testing.architectures import (
    MORE_FAMILIES,
    SIX_FAMILIES,
    UNKNOWN_FAMILIES,
    tiny_batch,
    tiny_folder,
)
from saeval.testing.claims import every, none, some
from saeval_models import HuggingFace

KNOWN = [*SIX_FAMILIES, *MORE_FAMILIES]
CLOSE = {"rtol": 1e-5, "atol": 1e-5}

CASES = [(family, suffix) for family in KNOWN for suffix in suffixes(family)]


@pytest.fixture
def blocks_run():
    """Counts the runs of each block of a model."""
    handles = []

    def count(model):
        runs = [0] * len(model.blocks)

        def note(index):
            def hook(*_):
                runs[index] += 1

            return hook

        handles.extend(block.register_forward_hook(note(i)) for i, block in enumerate(model.blocks))
        return runs

    yield count
    for handle in handles:
        handle.remove()


@pytest.mark.parametrize(("family", "suffix"), CASES)
def test_captures_what_plain_pytorch_hooks_see(loaded, family, suffix):
    spec, model, plain = loaded(family)
    batch, hook_name = tiny_batch(), f"blocks.1.{suffix}"
    expected, final = truth(plain, family, 1, suffix, batch.tokens)
    captured = model.capture(batch, [hook_name], final=True)
    torch.testing.assert_close(captured.activations[hook_name], expected, **CLOSE)
    torch.testing.assert_close(captured.final, final, **CLOSE)
    assert spec.hooks()[hook_name] == expected.shape[-1]


@pytest.mark.parametrize(("family", "suffix"), CASES)
@pytest.mark.parametrize("block", [0, 2])
def test_resuming_equals_a_full_forward_with_the_activation_replaced(loaded, blocks_run, family, suffix, block):
    _, model, plain = loaded(family)
    batch, hook_name = tiny_batch(), f"blocks.{block}.{suffix}"
    captured = model.capture(batch, [hook_name], final=False, resumable=[hook_name])
    clean = captured.activations[hook_name]
    new = clean + torch.randn(clean.shape, generator=torch.Generator().manual_seed(2))
    _, expected = truth(plain, family, block, suffix, batch.tokens, new)
    model.resume(batch, captured, hook_name, new)  # the first one looks at what may be skipped
    runs = blocks_run(model)
    resumed = model.resume(batch, captured, hook_name, new)
    torch.testing.assert_close(resumed, expected, **CLOSE)
    first = block + 1 if suffix == "hook_resid_post" else block
    assert runs == [0] * first + [1] * (3 - first)
    assert not torch.allclose(expected, forward(plain, batch.tokens)[0], atol=1e-2)


@pytest.mark.parametrize("family", KNOWN)
def test_resuming_with_the_clean_activations_gives_the_clean_final_state(loaded, family):
    spec, model, _ = loaded(family)
    batch = tiny_batch()
    names = [name for name in spec.hooks() if name.startswith("blocks.")]
    assert set(names) == {f"blocks.{i}.{suffix}" for i in range(3) for suffix in suffixes(family)}
    captured = model.capture(batch, names, final=True, resumable=names)
    for name in some(names):
        resumed = model.resume(batch, captured, name, captured.activations[name])
        torch.testing.assert_close(resumed, captured.final, **CLOSE)


@pytest.mark.parametrize("family", [*SIX_FAMILIES, *UNKNOWN_FAMILIES])
def test_a_pass_is_cut_at_the_deepest_hook(loaded, blocks_run, family):
    _, model, _ = loaded(family)
    runs = blocks_run(model)
    captured = model.capture(tiny_batch(), ["blocks.0.hook_resid_pre", "blocks.1.hook_resid_post"], final=False)
    assert (captured.final, runs) == (None, [1, 1, 0])
    model.capture(tiny_batch(), ["blocks.1.hook_resid_pre"], final=False)
    assert runs == [2, 1, 0]
    model.capture(tiny_batch(), [], final=False)
    assert runs == [2, 1, 0]
    model.capture(tiny_batch(), ["blocks.0.hook_resid_pre"], final=True)
    assert runs == [3, 2, 1]


def test_a_pass_is_cut_inside_a_block(loaded):
    _, model, _ = loaded("gpt2")
    ran = []
    handle = model.blocks[1].mlp.register_forward_hook(lambda *_: ran.append(1))
    captured = model.capture(tiny_batch(), ["blocks.1.hook_attn_out"], False, ["blocks.1.hook_attn_out"])
    handle.remove()
    assert ran == []
    assert list(captured.inputs) == [1]
    torch.testing.assert_close(
        captured.inputs[1],
        model.capture(tiny_batch(), ["blocks.1.hook_resid_pre"], False).activations["blocks.1.hook_resid_pre"],
    )


@pytest.mark.parametrize("family", [*SIX_FAMILIES, "granite"])
def test_the_gradient_of_resume_is_that_of_finite_differences(tmp_path, family):
    folder = tiny_folder(tmp_path, family)
    model = HuggingFace().spec({"path": str(folder), "dtype": "float64"}).load("cpu")
    batch, name = tiny_batch(rows=2, length=5), "blocks.1.hook_resid_pre"
    captured = model.capture(batch, [name], final=False)
    start = captured.activations[name].clone().requires_grad_()
    weights = torch.randn(2, 5, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    (gradient,) = torch.autograd.grad((model.resume(batch, captured, name, start) * weights).sum(), start)
    direction = torch.randn(start.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        up, down = ((model.resume(batch, captured, name, start + h * direction) * weights).sum() for h in (1e-3, -1e-3))
    assert float((gradient * direction).sum()) == pytest.approx(float(up - down) / 2e-3, rel=2e-3)
    assert none(p.requires_grad for p in model.module.parameters())


@pytest.mark.parametrize(
    "suffix", ["hook_resid_mid", "hook_attn_out", "attn.hook_z", "mlp.hook_post", "ln2.hook_normalized"]
)
def test_the_gradient_inside_a_block_leaves_out_the_path_around_the_hook(loaded, suffix):
    _, model, plain = loaded("gpt2")
    batch, name = tiny_batch(), f"blocks.1.{suffix}"
    captured = model.capture(batch, [name], final=False, resumable=[name])
    start = captured.activations[name].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model.resume(batch, captured, name, start).sum(), start)
    step = 1e-2 * torch.nn.functional.normalize(torch.randn(start.shape), dim=-1)
    ends = [truth(plain, "gpt2", 1, suffix, batch.tokens, start.detach() + s * step)[1].double().sum() for s in (1, -1)]
    assert float((gradient * step).sum()) == pytest.approx(float(ends[0] - ends[1]) / 2, rel=2e-2, abs=1e-3)


@pytest.mark.parametrize("family", ["gpt2", "llama", "gptj", "gemma2"])
def test_module_paths_are_hooks_too(loaded, family):
    spec, model, plain = loaded(family)
    batch = tiny_batch()
    path = {"gpt2": "transformer.h.1.ln_1", "gptj": "transformer.h.1.ln_1"}.get(
        family, "model.layers.1.input_layernorm"
    )
    expected, seen = forward(plain, batch.tokens, plain.get_submodule(path), False, lambda x: 2 * x)
    captured = model.capture(batch, [path], final=False, resumable=[path])
    torch.testing.assert_close(captured.activations[path], seen, **CLOSE)
    torch.testing.assert_close(model.resume(batch, captured, path, 2 * seen), expected, **CLOSE)
    assert spec.hooks()[path] == spec.hooks()[f"{path}:in"] == 32
    # The norm's input is the residual stream, but replacing it leaves the residual stream itself alone.
    expected, seen = forward(plain, batch.tokens, plain.get_submodule(path), True, lambda x: x.flip(-1))
    captured = model.capture(batch, [f"{path}:in"], final=False, resumable=[f"{path}:in"])
    torch.testing.assert_close(model.resume(batch, captured, f"{path}:in", seen.flip(-1)), expected, **CLOSE)


def test_a_failed_resume_leaves_the_model_as_it_was(loaded):
    _, model, plain = loaded("gpt2")
    batch, name = tiny_batch(), "blocks.2.hook_mlp_out"
    captured = model.capture(batch, [name], final=False, resumable=[name])
    blocks, modules = list(model.blocks), dict(model.module.named_modules())
    with pytest.raises(RuntimeError):
        model.resume(batch, captured, name, torch.zeros(3, 10, 31))
    with pytest.raises(RuntimeError):
        model.unembed(torch.zeros(4, 31))
    assert every(a is b for a, b in zip(model.blocks, blocks, strict=True))
    assert dict(model.module.named_modules()) == modules
    assert none(m._forward_hooks or m._forward_pre_hooks for m in model.module.modules())
    with torch.no_grad():
        torch.testing.assert_close(model.logits(batch), plain(batch.tokens).logits, **CLOSE)


def test_the_dtype_asked_for_is_the_activations(tmp_path):
    model = HuggingFace().spec({"path": str(tiny_folder(tmp_path)), "dtype": "bfloat16"}).load("cpu")
    batch, name = tiny_batch(), "blocks.1.hook_resid_mid"
    captured = model.capture(batch, [name], final=True, resumable=[name])
    assert {model.dtype, captured.activations[name].dtype, captured.final.dtype} == {torch.bfloat16}
    resumed = model.resume(batch, captured, name, captured.activations[name].float())
    torch.testing.assert_close(resumed, captured.final)
