"""Live models whose modules their owner wrapped, compiled, quantised or put elsewhere; folders that are hard to load."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from accelerate import cpu_offload
from torch import nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, ProphetNetConfig, ProphetNetForCausalLM

import saeval
from odd_architectures import EXACT, made
from saeval.base.errors import SaevalError
from saeval.testing.architectures import tiny_batch, tiny_folder, tiny_model, tiny_tokenizer
from saeval.testing.claims import some
from saeval.testing.tiny import TinySAE
from saeval_models import HuggingFace

HOOKS = ("blocks.1.hook_resid_pre", "blocks.1.hook_resid_post", "blocks.1.attn.hook_z", "blocks.1.hook_mlp_out")
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


@pytest.fixture
def evaluated(tmp_path):
    """Evaluates SAEs at `hooks` of a model; returns the values."""
    np.save(tmp_path / "tokens.npy", np.random.default_rng(0).integers(1, 97, (6, 13)))

    def run(model, hooks=HOOKS, **options):
        results = saeval.evaluate(
            model=model, data={"use": "tokens", "path": str(tmp_path / "tokens.npy"), "context": 12, "bos": False},
            saes={hook: (TinySAE(d_in=32), hook) for hook in hooks}, metrics=["ce", "reconstruction"], allow=["*"],
            **options,
        )  # fmt: skip
        assert [r.reason for r in results if r.status != "ok"] == []
        values = results.to_frame().set_index(["name", "metric", "quantity"])["value"]
        assert len(values) > len(hooks)
        return values.to_dict()

    return run


def blocks_compiled(model):
    for index, block in enumerate(model.transformer.h):
        model.transformer.h[index] = torch.compile(block, backend="eager")
    return model


def blocks_compiled_in_place(model):
    for block in model.transformer.h:
        block.compile(backend="eager")
    return model


def a_part_compiled(model):
    model.transformer.h[1].mlp = torch.compile(model.transformer.h[1].mlp, backend="eager")
    return model


def whole_compiled(model):
    return torch.compile(model, backend="eager")


def whole_compiled_in_place(model):
    model.compile(backend="eager")
    return model


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # said by torch.compile itself
@pytest.mark.parametrize(
    "compiled", [blocks_compiled, blocks_compiled_in_place, a_part_compiled, whole_compiled, whole_compiled_in_place]
)
def test_a_compiled_model_has_the_numbers_of_the_plain_one(evaluated, compiled):
    model = compiled(tiny_model("gpt2"))
    model(tiny_batch().tokens)  # compiled code does not see hooks that come later
    assert evaluated(model) == pytest.approx(evaluated(tiny_model("gpt2")), rel=1e-4, abs=1e-6, nan_ok=True)


class Wrapped(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return 2 * self.inner(x)


def test_a_wrapped_mlp(evaluated):
    model = tiny_model("gpt2")
    model.transformer.h[1].mlp = Wrapped(model.transformer.h[1].mlp)
    hooks = HuggingFace().wrap(model).hooks()
    assert "blocks.1.mlp.hook_post" not in hooks  # the family keeps it in a module that is not there any more
    assert {"blocks.2.mlp.hook_post", "transformer.h.1.mlp.inner.c_proj:in"} <= set(hooks)
    evaluated(model)
    with pytest.raises(SaevalError, match=r"blocks\.1\.mlp\.hook_post"):
        evaluated(model, ["blocks.1.mlp.hook_post"])
    batch, hook = tiny_batch(), "blocks.1.hook_mlp_out"
    captured = HuggingFace().wrap(model).load("cpu").capture(batch, [hook], final=False)
    seen = []
    model.transformer.h[1].mlp.register_forward_hook(lambda module, args, out: seen.append(out))
    model(batch.tokens)
    torch.testing.assert_close(captured.activations[hook], seen[0])


def test_weights_that_are_not_in_memory(evaluated):
    for model in (cpu_offload(tiny_model("gpt2"), torch.device("cpu")), tiny_model("gpt2").to("meta")):
        with pytest.raises(SaevalError, match=r"^the live model's weights are not in memory .*; load them all$"):
            evaluated(model)


def test_a_model_whose_first_weights_are_whole_numbers():
    """As quantised ones have: their dtype is that of the others."""
    model = tiny_model("gpt2")
    model.transformer.wte.register_parameter("codes", nn.Parameter(torch.zeros(3, dtype=torch.uint8), False))
    model.transformer.wte._parameters = dict(reversed(model.transformer.wte._parameters.items()))
    assert next(model.parameters()).dtype == torch.uint8
    adapter, batch, hook = HuggingFace().wrap(model).load("cpu"), tiny_batch(), "blocks.1.hook_mlp_out"
    assert adapter.dtype == torch.float32
    captured = adapter.capture(batch, [hook], final=True, resumable=[hook])
    torch.testing.assert_close(
        adapter.resume(batch, captured, hook, captured.activations[hook]), captured.final, **CLOSE
    )


@pytest.mark.parametrize("bits", ["load_in_8bit", "load_in_4bit"])
def test_a_model_that_bitsandbytes_quantised(tmp_path, bits):
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    folder = tiny_folder(tmp_path / "model", "llama", hidden_size=64, intermediate_size=128)
    model = AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=BitsAndBytesConfig(**{bits: True}), device_map="cpu", dtype=torch.float32
    )
    spec, batch = HuggingFace().wrap(model), tiny_batch()
    hooks = [hook for hook in spec.hooks() if hook.startswith("blocks.")]
    assert len(hooks) == 3 * 10
    adapter = spec.load("cpu")
    captured = adapter.capture(batch, hooks, final=True, resumable=hooks)
    torch.testing.assert_close(adapter.head(captured.final, batch), model(batch.tokens).logits, **CLOSE)
    for hook in some(hooks):
        resumed = adapter.resume(batch, captured, hook, captured.activations[hook])
        torch.testing.assert_close(resumed, captured.final, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["modernbert-decoder", "llama4_text", "openai-gpt"])
def test_a_folder_is_what_its_live_model_is(tmp_path, evaluated, name):
    model = made(name)
    model.save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    hooks = ["blocks.1.hook_resid_post", f"{EXACT[name][0]}.2.mlp"]
    if name == "llama4_text":
        hooks[1] = "model.layers.2.self_attn"
    found = evaluated({"use": "huggingface", "path": str(tmp_path / "model")}, hooks)
    assert found == pytest.approx(evaluated(model, hooks), rel=1e-4, abs=1e-6, nan_ok=True)


def test_a_head_that_reads_more_than_the_final_state():
    with pytest.raises(SaevalError) as error:
        HuggingFace().wrap(prophet()).load("cpu")
    assert "the head of ProphetNetForCausalLM reads more than the final hidden state" in str(error.value)


def prophet():
    """ProphetNet's head reads the streams of its n-grams."""
    sizes = {
        "vocab_size": 97, "hidden_size": 32, "num_encoder_layers": 2, "num_decoder_layers": 2,
        "num_encoder_attention_heads": 4, "num_decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48,
        "max_position_embeddings": 64, "is_decoder": True, "is_encoder_decoder": False,
    }  # fmt: skip
    return ProphetNetForCausalLM(ProphetNetConfig(**sizes)).eval()


def test_a_model_that_gives_no_numbers_is_not_called_an_encoder():
    model = tiny_model("gpt2")
    model.transformer.h[1].mlp.c_fc.weight.data[:] = float("nan")
    adapter = HuggingFace().wrap(model).load("cpu")
    assert adapter.capture(tiny_batch(), [], final=True).final.isnan().all()
