"""Objects as they stand in other people's code: wrapped, on a device that is not here, in a dtype that overflows."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from saeval import SaevalError, cli
from saeval.base.run_options import named_device
from saeval.testing import TinySAE, evaluate_tiny, tiny_tokens
from saeval.testing.architectures import tiny_model
from saeval.testing.claims import every, some

ROWS = {"rows": tiny_tokens(vocab=97), "allow": ("*",), "batch_size": 24}


class LinearSAE(nn.Module):
    hook_name = "blocks.1.hook_resid_pre"

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.W_enc = nn.Parameter(torch.randn(32, 64, generator=generator))
        self.W_dec = nn.Parameter(torch.randn(64, 32, generator=generator))

    def encode(self, x):
        return torch.relu(x @ self.W_enc)

    def decode(self, feature_acts):
        return feature_acts @ self.W_dec

    def forward(self, x):
        return self.decode(self.encode(x))


class FullyShardedDataParallel(nn.Module):
    """As torch's, which cannot be made without processes."""

    def __init__(self, module):
        super().__init__()
        self.module = module


WRAPPERS = {
    "parallel": nn.DataParallel,
    "compiled": torch.compile,
    "both": lambda module: torch.compile(nn.DataParallel(module)),
    "parallel of compiled": lambda module: nn.DataParallel(torch.compile(module)),
}


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # torch's own, where compile is first imported
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_wrapped_models_and_saes_are_what_they_wrap(wrapper):
    wrap, plain = WRAPPERS[wrapper], LinearSAE()
    model = tiny_model("gpt2")
    expected = evaluate_tiny(["l0"], model=model, saes={"sae": plain}, **ROWS)
    found = evaluate_tiny(["l0"], model=wrap(model), saes={"sae": wrap(plain)}, **ROWS)
    assert not expected.failed
    assert [r.values for r in found] == [r.values for r in some(expected)]


def test_what_cannot_be_unwrapped_says_how():
    with pytest.raises(
        SaevalError, match=r"of type FullyShardedDataParallel; .*; unwrap it: pass its 'module', of GPT2"
    ):
        evaluate_tiny(["l0"], model=FullyShardedDataParallel(tiny_model("gpt2")), saes=[LinearSAE()], **ROWS)
    with pytest.raises(
        SaevalError, match=r"needs the method 'encode'; .*; unwrap it: pass its 'module', of LinearSAE$"
    ):
        evaluate_tiny(["l0"], saes=[FullyShardedDataParallel(LinearSAE())], **ROWS)


def test_a_live_sae_without_values_is_one_sentence_before_anything_is_streamed():
    with torch.device("meta"):
        empty = LinearSAE()
    with pytest.raises(SaevalError, match=r"^empty: the SAE's weights are not in memory \(on the meta device\); load"):
        evaluate_tiny(["l0"], model=tiny_model("gpt2"), saes={"empty": empty}, **ROWS)


@pytest.mark.parametrize("device", ["mps", "meta", "vulkan", "xla", "cuda:7", "banana"])
def test_a_device_that_is_not_here_is_one_short_sentence(device, capsys):
    if device in ("mps", "cuda:7") and torch.device(device).type in str(
        getattr(torch.accelerator, "current_accelerator", str)()
    ):
        pytest.skip("it is here")
    with pytest.raises(SaevalError) as caught:
        named_device(device)
    said = str(caught.value)
    assert said.startswith(f"device '{device}': ")
    assert said.endswith("; choose another, or 'auto' for the best one")
    assert len(said) < 250
    assert len(said.splitlines()) == 1
    assert cli.main(["check", "quickstart", "--device", device]) == 2
    assert said in capsys.readouterr().err


TOKEN = 7


def test_a_half_precision_model_that_overflows_before_the_hook_leaves_nothing_defined():
    model = tiny_model("gpt2").half()
    with torch.no_grad():
        model.transformer.wte.weight[TOKEN] = torch.inf  # as 6e4 + 6e4 is
    rows = ROWS["rows"]
    batch = rows.batch(range(len(rows)), "cpu")
    with torch.no_grad():
        states = model.transformer(batch.tokens, output_hidden_states=True).hidden_states[1]
    bad, tokens = int((~states.isfinite().all(-1) & batch.mask).sum()), int(batch.mask.sum())
    assert 0 < bad < tokens
    metrics = ["l0", "density", "reconstruction"]
    results = evaluate_tiny(metrics, model=model, saes={"sae": TinySAE(d_in=32)}, **ROWS)
    hook = "blocks.1.hook_resid_pre"
    assert [r.status for r in results] == ["undefined"] * 3
    assert {r.reason for r in results} == {
        f"NaN or infinite values in the activations at {hook} of {bad} of {tokens} tokens"
    }
    first = {"sae": TinySAE("blocks.0.hook_resid_pre", d_in=32)}
    ahead = evaluate_tiny(metrics, model=model, saes=first, **ROWS)
    alone = int(((batch.tokens == TOKEN) & batch.mask).sum())
    assert every(f"of {alone} of {tokens} tokens" in r.reason for r in ahead)


def test_where_the_final_state_overflows_too_the_run_stops_and_names_the_dtype():
    model = tiny_model("gpt2").half()
    with torch.no_grad():
        model.transformer.wte.weight[TOKEN] = torch.inf
    with pytest.raises(SaevalError, match=r"gives NaN or infinite final states for \d+ of \d+ tokens .*: try float32"):
        evaluate_tiny(["ce"], model=model, saes={"sae": TinySAE(d_in=32)}, **ROWS)
