"""Adapters of peft's: in a model's folder, in one of their own, and on a live model."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import saeval
from saeval.base.errors import SaevalError
from saeval.testing import TinySAE
from saeval.testing.architectures import tiny_batch, tiny_folder, tiny_model
from saeval.testing.claims import none
from saeval_models import HuggingFace, TransformerLens

peft = pytest.importorskip("peft")
HOOK = "blocks.1.hook_resid_pre"
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")  # by peft


def adapted(seed=0, model=None, **config):
    """A tiny model with random LoRA weights in it."""
    torch.manual_seed(seed)
    options = {"r": 4, "target_modules": ["q_proj", "down_proj"], "init_lora_weights": False, **config}
    return peft.get_peft_model(model if model is not None else tiny_model("llama"), peft.LoraConfig(**options)).eval()


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A model's folder, an adapter's folder that names it, and one that holds both."""
    root = tmp_path_factory.mktemp("peft")
    tiny_folder(root / "base", "llama")
    model = adapted()
    model.save_pretrained(root / "adapter")
    rename(root / "adapter", "../base")
    shutil.copytree(root / "base", root / "both")
    for file in (root / "adapter").glob("adapter*"):
        shutil.copy(file, root / "both")
    return root


def rename(folder, base):
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": base}))


@pytest.fixture
def copied(folders, tmp_path):
    shutil.copytree(folders, tmp_path / "copy")
    return tmp_path / "copy"


def spec(path, **options):
    return HuggingFace().spec({"path": str(path), **options})


def test_a_folder_with_an_adapter_is_the_model_with_the_adapter(folders):
    batch = tiny_batch()
    with torch.no_grad():
        expected, bare = adapted()(batch.tokens).logits, tiny_model("llama")(batch.tokens).logits
    assert (expected - bare).abs().max() > 0.1
    for folder in ("adapter", "both"):
        made = spec(folders / folder)
        model = made.load("cpu")
        torch.testing.assert_close(model.logits(batch), expected)
        assert none(parameter.requires_grad for parameter in model.module.parameters())
        assert made.facts()["peft_adapter"] == made.identity()["peft_adapter"] == "LORA"
        assert made.name == folder
        assert dict(made.hooks()) == dict(spec(folders / "base").hooks())
    torch.testing.assert_close(spec(folders / "base").load("cpu").logits(batch), bare)
    assert spec(folders / "adapter").tokenizer().vocab_size == spec(folders / "base").tokenizer().vocab_size


def test_whatever_an_adapted_model_is_read_from_is_in_its_identity(copied):
    found = [spec(copied / folder).identity() for folder in ("base", "adapter", "both")]
    for folder in ("adapter", "both"):
        file = copied / folder / "adapter_model.safetensors"
        save_file({name: tensor * 2 for name, tensor in load_file(file).items()}, file)
    found += [spec(copied / folder).identity() for folder in ("adapter", "both")]
    for folder in ("adapter", "both"):
        config = json.loads((copied / folder / "adapter_config.json").read_text())
        (copied / folder / "adapter_config.json").write_text(json.dumps({**config, "lora_alpha": 99}))
    found += [spec(copied / folder).identity() for folder in ("adapter", "both")]
    tiny_model("llama", seed=1).save_pretrained(copied / "base")
    found += [spec(copied / folder).identity() for folder in ("base", "adapter")]
    digests = {identity["weights"] for identity in found}
    # An adapter alone and beside its model are one model, so long as both were changed alike.
    assert len(digests) == 6


def test_another_adapter_is_computed_anew(copied, tmp_path):
    np.save(tmp_path / "tokens.npy", np.random.default_rng(0).integers(1, 97, (12, 17)))

    def ce():
        (result,) = saeval.evaluate(
            model={"use": "huggingface", "path": str(copied / "both")}, saes={"sae": (TinySAE(d_in=32), HOOK)},
            data={"use": "tokens", "path": str(tmp_path / "tokens.npy"), "context": 16, "bos": False},
            metrics=["ce"], allow=["*"], out=tmp_path, key="k",
        )  # fmt: skip
        assert result.status == "ok", result.traceback
        assert result.cell["model"]["peft_adapter"] == "LORA"
        return result.values["ce_clean"]["value"]

    first = ce()
    file = copied / "both" / "adapter_model.safetensors"
    save_file({name: tensor * 2 for name, tensor in load_file(file).items()}, file)
    assert ce() != first


def test_a_live_peft_model_is_taken_as_it_is():
    live, batch = adapted(lora_dropout=0.5).train(), tiny_batch()
    before = {name: part.training for name, part in live.named_modules()}
    adapter = HuggingFace()
    assert adapter.accepts(live)
    made = adapter.wrap(live)
    model = made.load("cpu")
    with torch.no_grad():
        expected = adapted()(batch.tokens).logits
    torch.testing.assert_close(model.logits(batch), expected)
    captured = model.capture(batch, [HOOK], final=True, resumable=[HOOK])
    torch.testing.assert_close(model.resume(batch, captured, HOOK, captured.activations[HOOK]), captured.final)
    assert {name: part.training for name, part in live.named_modules()} == before
    assert made.facts()["peft_adapters"] == made.identity()["peft_adapters"] == ["default (LORA)"]
    with live.disable_adapter():
        torch.testing.assert_close(model.logits(batch), tiny_model("llama")(batch.tokens).logits)


def disabled(model):
    model.disable_adapters()


def scaled(model):
    for part in model.modules():
        if hasattr(part, "scaling") and isinstance(part.scaling, dict):
            part.scaling["default"] *= 3


@pytest.mark.parametrize("change", [disabled, scaled])
def test_an_adapters_state_is_never_taken_for_what_it_was(tmp_path, change):
    model = tiny_model("llama")
    torch.manual_seed(0)
    model.add_adapter(peft.LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False))
    np.save(tmp_path / "tokens.npy", np.random.default_rng(0).integers(1, 97, (12, 17)))

    def ce():
        (result,) = saeval.evaluate(
            model=model, saes={"sae": (TinySAE(d_in=32), HOOK)}, metrics=["ce"], allow=["*"], out=tmp_path,
            data={"use": "tokens", "path": str(tmp_path / "tokens.npy"), "context": 16, "bos": False},
        )  # fmt: skip
        assert result.status == "ok", result.traceback
        return result.values["ce_clean"]["value"]

    before = ce()
    change(model)
    assert ce() != before


def test_a_prompt_is_refused():
    config = peft.PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM")
    with pytest.raises(SaevalError, match="is a PROMPT_TUNING, which adds tokens that are not in the documents"):
        HuggingFace().wrap(peft.get_peft_model(tiny_model("llama"), config))


def without(name):
    def change(root):
        file = root / "adapter" / "adapter_model.safetensors"
        save_file({key: tensor for key, tensor in load_file(file).items() if name not in key}, file)

    return change


def added(root):
    file = root / "adapter" / "adapter_model.safetensors"
    save_file({**load_file(file), "base_model.model.model.layers.9.mlp.up_proj.lora_A.weight": torch.ones(4, 32)}, file)


def setting(**changed):
    def change(root):
        file = root / "adapter" / "adapter_config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **changed}))

    return change


REFUSED = {
    "no base": (setting(base_model_name_or_path=None), "does not name its base model; set 'base_model_name_or_path'"),
    "base elsewhere": (
        setting(base_model_name_or_path="/no/such/model"),
        "its base model '/no/such/model' was not found",
    ),
    "no weights": (lambda r: (r / "adapter" / "adapter_model.safetensors").unlink(), "no adapter_model.safetensors"),
    "cut off": (
        lambda r: (r / "adapter" / "adapter_model.safetensors").write_bytes(b"\x10"),
        "is truncated or not a safetensors file",
    ),
    "no JSON": (lambda r: (r / "adapter" / "adapter_config.json").write_text("{"), "broken JSON"),
    "no config": (lambda r: (r / "adapter" / "adapter_config.json").write_text("{}"), "has no 'peft_type'"),
    "code": (setting(megatron_config={"a": 1}, megatron_core="this"), "names code to import"),
    "blocks": (setting(layer_replication=[[0, 2], [1, 3]]), "repeats blocks"),
    "folders": (setting(peft_type="XLORA"), "is of an X-LoRA"),
    "lacks": (without("layers.1.self_attn.q_proj.lora_B"), "lacks model.layers.1.self_attn.q_proj.lora_B"),
    "too many": (added, "has weights that do not exist in its base model: "),
    "other shapes": (setting(r=8), "has weights whose shapes differ from its base model's: "),
    "no such module": (setting(target_modules=["nothing"]), "cannot be applied to LlamaForCausalLM"),
    "adapter on adapter": (setting(base_model_name_or_path="../both"), "also holds an adapter; merge that one first"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_an_adapter_that_cannot_be_applied_is_one_sentence(copied, case):
    change, said = REFUSED[case]
    change(copied)
    with pytest.raises(SaevalError) as raised:
        spec(copied / "adapter").load("cpu")
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)
    assert str(copied) in str(raised.value)


def test_what_would_leave_an_adapter_out_is_refused(folders, monkeypatch):
    with pytest.raises(
        SaevalError, match="holds an adapter, which transformer_lens does not support; use 'huggingface'"
    ):
        TransformerLens().spec({"path": str(folders / "both")})
    with pytest.raises(SaevalError, match="whose weights 'center_writing_weights' does not centre"):
        spec(folders / "both", center_writing_weights=True)
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *_: None)
    for folder in ("adapter", "both"):
        with pytest.raises(SaevalError, match="which needs peft: pip install peft, or merge the adapter"):
            spec(folders / folder)


def test_a_reward_head_in_an_adapter_is_loaded(tmp_path):
    tiny_folder(tmp_path / "base", "llama", kind="reward")
    model = adapted(model=tiny_model("llama", kind="reward"), modules_to_save=["score"])
    torch.nn.init.normal_(model.base_model.model.score.modules_to_save["default"].weight)
    model.save_pretrained(tmp_path / "adapter")
    rename(tmp_path / "adapter", str(tmp_path / "base"))
    batch = tiny_batch()
    expected = HuggingFace().wrap(model).load("cpu").capture(batch, [], final=True).final
    bare = spec(tmp_path / "base").load("cpu").capture(batch, [], final=True).final
    found = spec(tmp_path / "adapter").load("cpu").capture(batch, [], final=True).final
    torch.testing.assert_close(found, expected)
    assert (found - bare).abs().max() > 1e-3
