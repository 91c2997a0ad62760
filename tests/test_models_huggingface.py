"""The `huggingface` adapter against plain PyTorch: activations, resuming, padding, heads, rewards."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from saeval.errors import SaevalError
from saeval_models import HuggingFace
from tinymodels import (
    FAMILIES,
    MORE_FAMILIES,
    SIX_FAMILIES,
    UNKNOWN_FAMILIES,
    batch_of,
    padded,
    tiny_batch,
    tiny_folder,
    tiny_model,
)

KNOWN = [*SIX_FAMILIES, *MORE_FAMILIES]
CLOSE = {"rtol": 1e-5, "atol": 1e-5}

_LLAMA = ("model.layers", "self_attn", "self_attn.o_proj", "mlp", "mlp.down_proj")
_GEMMA2 = (
    "model.layers",
    "post_attention_layernorm",
    "self_attn.o_proj",
    "post_feedforward_layernorm",
    "mlp.down_proj",
)
_NEOX = ("gpt_neox.layers", "attention", "attention.dense", "mlp", "mlp.dense_4h_to_h")
PLACES = {
    "gpt2": ("transformer.h", "attn", "attn.c_proj", "mlp", "mlp.c_proj"),
    "gptj": ("transformer.h", "attn", "attn.out_proj", "mlp", "mlp.fc_out"),
    "gpt_neox": _NEOX, "gpt_neox-sequential": _NEOX, "gemma2": _GEMMA2, "gemma3_text": _GEMMA2,
    "llama": _LLAMA, "qwen2": _LLAMA, "qwen3": _LLAMA, "mistral": _LLAMA, "gemma": _LLAMA,
}  # fmt: skip
PARALLEL = ("gptj", "gpt_neox")
SUFFIXES = (
    "hook_resid_pre", "hook_resid_mid", "hook_resid_post", "hook_attn_out", "hook_mlp_out", "attn.hook_z", "mlp.hook_post",
)  # fmt: skip
CASES = [(f, s) for f in KNOWN for s in SUFFIXES if not (s == "hook_resid_mid" and f in PARALLEL)]


def place(model, family, block, suffix):
    """The module of a hook and whether the hook is its input, written down apart from the adapter's table."""
    blocks, attn, proj, mlp, down = PLACES[family]
    paths = {
        "hook_resid_pre": ("", True), "hook_resid_post": ("", False), "hook_attn_out": (attn, False),
        "hook_mlp_out": (mlp, False), "attn.hook_z": (proj, True), "mlp.hook_post": (down, True),
    }  # fmt: skip
    path, is_input = paths[suffix]
    return model.get_submodule(f"{blocks}.{block}.{path}".rstrip(".")), is_input


def forward(model, tokens, module=None, is_input=False, change=None, **inputs):
    """The final hidden state of a full pass in which `change` has been applied at a module, and what was there."""
    seen = []

    def apply(tensor):
        seen.append(tensor)
        return tensor if change is None else change(tensor)

    def before(_, args, kwargs):
        if args:
            return (apply(args[0]), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": apply(kwargs["hidden_states"])}

    def after(_, args, output):
        return (apply(output[0]), *output[1:]) if isinstance(output, tuple) else apply(output)

    handle = None
    if module is not None:
        handle = (
            module.register_forward_pre_hook(before, with_kwargs=True)
            if is_input
            else module.register_forward_hook(after)
        )
    with torch.no_grad():
        final = model.base_model(input_ids=tokens, use_cache=False, **inputs).last_hidden_state
    if handle is not None:
        handle.remove()
    return final, seen[0] if seen else None


def truth(model, family, block, suffix, tokens, new=None):
    """The activation at a hook in plain PyTorch, and the final state with `new` in its place."""
    if suffix != "hook_resid_mid":
        change = None if new is None else (lambda tensor: new)
        final, seen = forward(model, tokens, *place(model, family, block, suffix), change)
        return seen, final
    _, before = forward(model, tokens, *place(model, family, block, "hook_resid_pre"))
    attn_out = place(model, family, block, "hook_attn_out")
    final, seen = forward(model, tokens, *attn_out, None if new is None else (lambda tensor: new - before))
    return before + seen, final


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    """A family's tiny model, saved and loaded by the adapter, beside the same weights in plain transformers."""
    made = {}

    def load(family, kind="causal"):
        if (family, kind) not in made:
            folder = tiny_folder(tmp_path_factory.mktemp(family), family, kind)
            spec = HuggingFace().spec({"path": str(folder)})
            made[family, kind] = spec, spec.load("cpu"), tiny_model(family, kind)
        return made[family, kind]

    return load


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
    assert len(names) == 3 * (6 if family in PARALLEL else 7)
    captured = model.capture(batch, names, final=True, resumable=names)
    for name in names:
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
    assert not any(p.requires_grad for p in model.module.parameters())


@pytest.mark.parametrize("suffix", ["hook_resid_mid", "hook_attn_out", "attn.hook_z", "mlp.hook_post"])
def test_the_gradient_inside_a_block_leaves_out_the_path_around_the_hook(loaded, suffix):
    _, model, plain = loaded("gpt2")
    batch, name = tiny_batch(), f"blocks.1.{suffix}"
    captured = model.capture(batch, [name], final=False, resumable=[name])
    start = captured.activations[name].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model.resume(batch, captured, name, start).sum(), start)
    step = 1e-2 * torch.nn.functional.normalize(torch.randn(start.shape), dim=-1)
    ends = [truth(plain, "gpt2", 1, suffix, batch.tokens, start.detach() + s * step)[1].double().sum() for s in (1, -1)]
    assert float((gradient * step).sum()) == pytest.approx(float(ends[0] - ends[1]) / 2, rel=2e-2, abs=1e-3)


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

    for name in names:
        at_real = found.activations[name][wide.real].reshape(expected.activations[name].shape)
        torch.testing.assert_close(at_real, expected.activations[name], **CLOSE)
    torch.testing.assert_close(real(found.final), expected.final, **CLOSE)
    for name in (n for n in names if n.startswith("blocks.1.")):
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


def test_a_classifier_of_two_labels_is_no_reward_model(tmp_path):
    model = tiny_model("gpt2", "reward")
    model.config.num_labels = 2
    model.score = torch.nn.Linear(32, 2, bias=False)
    model.save_pretrained(tmp_path)
    with pytest.raises(SaevalError, match="has 2 labels; a reward model has num_labels 1"):
        HuggingFace().spec({"path": str(tmp_path)}).hooks()


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


@pytest.mark.parametrize(
    ("family", "blocks", "inner", "width"),
    [("opt", "model.decoder.layers", "self_attn.q_proj", 32), ("granite", "model.layers", "mlp.up_proj", 48)],
)
def test_an_unknown_family_has_its_residual_stream_and_module_paths(loaded, family, blocks, inner, width):
    spec, model, plain = loaded(family)
    short = {n for n in spec.hooks() if n.startswith("blocks.")}
    assert short == {f"blocks.{i}.hook_resid_{end}" for i in range(3) for end in ("pre", "post")}
    assert spec.hooks()[f"{blocks}.1.{inner}"] == width
    assert spec.canonical(f"{blocks}.2:in") == "blocks.2.hook_resid_pre"
    batch = tiny_batch()
    for name, path, is_input in (
        ("blocks.1.hook_resid_pre", f"{blocks}.1", True),
        ("blocks.2.hook_resid_post", f"{blocks}.2", False),
        (f"{blocks}.1.{inner}", f"{blocks}.1.{inner}", False),
    ):
        expected, seen = forward(plain, batch.tokens, plain.get_submodule(path), is_input, lambda x: x.flip(-1))
        captured = model.capture(batch, [name], final=False, resumable=[name])
        torch.testing.assert_close(captured.activations[name], seen, **CLOSE)
        torch.testing.assert_close(model.resume(batch, captured, name, seen.flip(-1)), expected, **CLOSE)


def test_a_failed_resume_leaves_the_model_as_it_was(loaded):
    _, model, plain = loaded("gpt2")
    batch, name = tiny_batch(), "blocks.2.hook_mlp_out"
    captured = model.capture(batch, [name], final=False, resumable=[name])
    blocks, modules = list(model.blocks), dict(model.module.named_modules())
    with pytest.raises(RuntimeError):
        model.resume(batch, captured, name, torch.zeros(3, 10, 31))
    with pytest.raises(RuntimeError):
        model.unembed(torch.zeros(4, 31))
    assert all(a is b for a, b in zip(model.blocks, blocks, strict=True))
    assert dict(model.module.named_modules()) == modules
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.module.modules())
    with torch.no_grad():
        torch.testing.assert_close(model.logits(batch), plain(batch.tokens).logits, **CLOSE)


def test_the_dtype_asked_for_is_the_activations(tmp_path):
    model = HuggingFace().spec({"path": str(tiny_folder(tmp_path)), "dtype": "bfloat16"}).load("cpu")
    batch, name = tiny_batch(), "blocks.1.hook_resid_mid"
    captured = model.capture(batch, [name], final=True, resumable=[name])
    assert {model.dtype, captured.activations[name].dtype, captured.final.dtype} == {torch.bfloat16}
    resumed = model.resume(batch, captured, name, captured.activations[name].float())
    torch.testing.assert_close(resumed, captured.final)


def test_rows_of_nothing_real_have_a_reward_all_the_same(loaded):
    _, model, _ = loaded("llama", "reward")
    batch = tiny_batch()
    real = batch.real.clone()
    real[1] = False
    found = model.capture(dataclasses.replace(batch, real=real), [], final=True).final
    assert found.isfinite().all()
