"""Resuming is exact: at every site, under padding on either side, and by the blocks that it must run alone."""

from __future__ import annotations

import re

import pytest
import torch

from places import PLACES, forward, place, truth
from saeval.testing.architectures import SIX_FAMILIES, padded, tiny_batch, tiny_folder, tiny_model
from saeval.testing.claims import every, some
from saeval_fidelity.downstream import later_streams
from saeval_models import HuggingFace

CLOSE = {"rtol": 1e-5, "atol": 1e-5}
LENGTH = 6
PADDING = {"left": ([3, 1], [0, 0]), "right": ([0, 0], [1, 3]), "both": ([2, 0], [0, 3])}


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    """A family's tiny model, saved and loaded by the adapter, beside the same weights in plain transformers."""
    made = {}

    def load(family, kind):
        if (family, kind) not in made:
            spec = HuggingFace().spec({"path": str(tiny_folder(tmp_path_factory.mktemp(family), family, kind))})
            made[family, kind] = spec, spec.load("cpu"), tiny_model(family, kind)
        return made[family, kind]

    return load


def full_pass(model, family, kind, name, tokens, new=None):
    """The activation at a hook and the end of a pass with `new` there, in plain PyTorch, without padding."""
    if name.startswith("blocks."):
        _, block, suffix = name.split(".", 2)
        seen, final = truth(model, family, int(block), suffix, tokens, new)
    else:
        path, _, end = name.partition(":")
        change = None if new is None else (lambda tensor: new)
        final, seen = forward(model, tokens, model.get_submodule(path), end == "in", change)
    return seen.detach(), final.detach() if kind == "causal" else model.score(final[:, -1])[:, 0].detach()


def block_of(family, name):
    """The block a hook is in, read off its name."""
    return int(re.match(r"\d+", name.removeprefix("blocks.").removeprefix(f"{PLACES[family][0]}."))[0])


@pytest.mark.parametrize("side", PADDING)
@pytest.mark.parametrize("kind", ["causal", "reward"])
@pytest.mark.parametrize("family", SIX_FAMILIES)
def test_at_every_site_of_every_block(loaded, family, kind, side):
    spec, model, plain = loaded(family, kind)
    bare = tiny_batch(rows=2, length=LENGTH)
    wide = padded(bare, *PADDING[side])
    after = ("ln_final.hook_normalized", spec.canonical("ln_final.hook_out"))  # which no block runs
    hooks = [name for name in spec.hooks() if name not in after]
    captured = model.capture(wide, hooks, final=True, resumable=hooks)
    runs = [0] * len(model.blocks)

    def entered(index):
        def note(*_):
            runs[index] += 1

        return note

    handles = [block.register_forward_pre_hook(entered(index)) for index, block in enumerate(model.blocks)]
    generator = torch.Generator().manual_seed(5)
    for name in some(hooks):
        clean, _ = full_pass(plain, family, kind, name, bare.tokens)
        found = captured.activations[name]
        torch.testing.assert_close(found[wide.real], clean.flatten(0, 1), **CLOSE)
        new = clean + torch.randn(clean.shape, generator=generator)
        _, expected = full_pass(plain, family, kind, name, bare.tokens, new)
        replaced = found.clone()
        replaced[wide.real] = new.flatten(0, 1)
        model.resume(wide, captured, name, replaced)  # the first one looks at what may be skipped
        runs[:] = [0] * len(runs)
        resumed = model.resume(wide, captured, name, replaced)
        at_real = resumed[wide.real].reshape(expected.shape) if kind == "causal" else resumed
        torch.testing.assert_close(at_real, expected, **CLOSE, msg=lambda text, name=name: f"{name}: {text}")
        first = block_of(family, name) + name.endswith("hook_resid_post")
        assert runs == [0] * first + [1] * (len(runs) - first), name
        # The same hook alone, in a pass that ends there.
        runs[:] = [0] * len(runs)
        alone = model.capture(wide, [name], final=False, resumable=[name])
        assert runs == [1] * (block_of(family, name) + 1) + [0] * (len(runs) - block_of(family, name) - 1), name
        assert torch.equal(alone.activations[name], found)
        again = model.resume(wide, alone, name, replaced)
        assert torch.equal(again[wide.real].reshape(expected.shape) if kind == "causal" else again, at_real)
    for handle in handles:
        handle.remove()


@pytest.mark.parametrize("final", [True, False])
def test_where_a_model_writes_into_what_its_mlp_gave(loaded, final):
    """Falcon's attention is added in place: neither the captured activations nor those resumed with become the sum."""
    _, model, plain = loaded("falcon", "causal")
    batch = tiny_batch(rows=2, length=LENGTH)
    for block in range(2):
        name = f"blocks.{block}.hook_mlp_out"
        seen = []
        with torch.no_grad():
            mlp = plain.get_submodule(f"transformer.h.{block}.mlp")
            handle = mlp.register_forward_hook(lambda m, args, out, seen=seen: seen.append(out.clone()))
            expected = plain.base_model(batch.tokens).last_hidden_state
            handle.remove()
        captured = model.capture(batch, [name], final=final, resumable=[name])
        torch.testing.assert_close(captured.activations[name], seen[0], **CLOSE)
        given = captured.activations[name].clone()
        for _ in range(2):
            torch.testing.assert_close(model.resume(batch, captured, name, given), expected, **CLOSE)
        assert torch.equal(given, captured.activations[name])


@pytest.mark.parametrize("side", PADDING)
@pytest.mark.parametrize("family", SIX_FAMILIES)
def test_a_resumed_pass_keeps_the_streams_that_come_after(loaded, family, side):
    spec, model, plain = loaded(family, "causal")
    bare = tiny_batch(rows=2, length=LENGTH)
    wide = padded(bare, *PADDING[side])
    hooks = [name for name in spec.hooks() if name.startswith("blocks.")]
    captured = model.capture(wide, hooks, final=True, resumable=hooks)
    generator = torch.Generator().manual_seed(7)
    for name in some(hooks):
        later = later_streams(name, hooks)
        found = captured.activations[name]
        replaced = found + torch.randn(found.shape, generator=generator)
        resumed = model.resumed(wide, captured, name, replaced, later)
        assert sorted(resumed.activations) == sorted(later)
        assert torch.equal(resumed.final, model.resume(wide, captured, name, replaced))
        assert later or name.endswith("2.hook_resid_post")
        if later:
            stopped = model.resumed(wide, captured, name, replaced, later, final=False)
            assert stopped.final is None
            assert every(torch.equal(stopped.activations[hook], resumed.activations[hook]) for hook in later)
        if name.split(".", 2)[2] not in ("hook_resid_mid", "ln2.hook_normalized"):  # those are no module's own tensor
            expected = streams(plain, family, name, bare.tokens, replaced[wide.real].reshape(2, LENGTH, -1))
            for hook in later:  # may be empty: at the last hook
                kept = resumed.activations[hook][wide.real].reshape(expected[hook].shape)
                torch.testing.assert_close(
                    kept, expected[hook], **CLOSE, msg=lambda text, at=(name, hook): f"{at}: {text}"
                )


def streams(model, family, name, tokens, new):
    """The residual stream at every block's ends in one plain pass with `new` at a hook, by hook name."""
    _, index, suffix = name.split(".", 2)
    seen, handles = {}, []
    for block, module in enumerate(model.get_submodule(PLACES[family][0])):

        def note(_, args, output, block=block):
            seen[f"blocks.{block}.hook_resid_pre"] = args[0]
            seen[f"blocks.{block}.hook_resid_post"] = output[0] if isinstance(output, tuple) else output

        handles.append(module.register_forward_hook(note))
    forward(model, tokens, *place(model, family, int(index), suffix), lambda _: new)
    for handle in handles:
        handle.remove()
    return seen


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("family", SIX_FAMILIES)
def test_in_half_precision_padding_is_exact_to_its_rounding(tmp_path, family, dtype):
    folder = tiny_folder(tmp_path, family)
    half = HuggingFace().spec({"path": str(folder), "dtype": dtype})
    model, exact = half.load("cpu"), HuggingFace().spec({"path": str(folder)}).load("cpu")
    bare = tiny_batch(rows=2, length=LENGTH)
    reference = exact.capture(bare, [], final=True).final
    tolerance = {"bfloat16": 0.1, "float16": 0.01}[dtype] * float(reference.std())
    for padding in PADDING.values():
        wide = padded(bare, *padding)
        hooks = [name for name in half.hooks() if name.startswith("blocks.")]
        captured = model.capture(wide, hooks, final=True, resumable=hooks)
        assert captured.final.dtype == getattr(torch, dtype)
        final = captured.final[wide.real].float()
        assert float((final - reference.flatten(0, 1)).square().mean().sqrt()) < tolerance
        for name in some(hooks):
            resumed = model.resume(wide, captured, name, captured.activations[name].float())[wide.real].float()
            assert float((resumed - final).square().mean().sqrt()) < tolerance, name
