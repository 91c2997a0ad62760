"""Heads and tensors beside a model's own: a value head is used or refused, what nothing reads is named."""

from __future__ import annotations

import json
import logging

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import saeval
from saeval import SaevalError, cli
from saeval.testing.architectures import padded, tiny_batch, tiny_folder, tiny_model
from saeval.testing.claims import some
from saeval_models import HuggingFace, TransformerLens

HEAD = {"v_head.summary.weight": torch.randn(1, 32, generator=torch.Generator().manual_seed(0)), "v_head.summary.bias": torch.full((1,), 3.0)}  # fmt: skip


def with_tensors(folder, tensors, pickled=False):
    """The folder with more tensors among its weights."""
    file = folder / "model.safetensors"
    found = {**load_file(file), **tensors}
    if pickled:
        file.unlink()
        torch.save(found, folder / "pytorch_model.bin")
    else:
        save_file(found, file, metadata={"format": "pt"})
    return folder


@pytest.fixture
def folder(tmp_path):
    return with_tensors(tiny_folder(tmp_path / "model"), HEAD)


def expected_rewards(batch):
    states = tiny_model("gpt2").transformer(batch.tokens).last_hidden_state[:, -1].detach()
    return (states @ HEAD["v_head.summary.weight"].T + 3.0)[:, 0]


def test_a_value_head_that_nobody_mentions_is_refused_with_both_remedies(folder):
    for adapter in (HuggingFace, TransformerLens):
        with pytest.raises(SaevalError) as caught:
            adapter().spec({"path": str(folder)}).hooks()
        said = str(caught.value)
        assert (
            "also hold v_head.summary.weight [1, 32], a head with one output that GPT2LMHeadModel does not use" in said
        )
        assert "add 'task: reward' to 'model' to read the reward" in said
        assert "'task: causal' to ignore it" in said
        assert len(said.splitlines()) == 1


@pytest.mark.parametrize("pickled", [False, True])
def test_a_value_head_gives_the_reward_of_the_last_token(tmp_path, pickled):
    folder = with_tensors(tiny_folder(tmp_path / "model"), HEAD, pickled)
    spec = HuggingFace().spec({"path": str(folder), "task": "reward"})
    assert (spec.kind, spec.warnings()) == ("reward", [])
    model, batch, name = spec.load("cpu"), tiny_batch(), "blocks.1.hook_resid_pre"
    for rows in (batch, padded(batch, [0, 0, 0], [2, 0, 1]), padded(batch, [1, 0, 2], [0, 3, 1])):
        captured = model.capture(rows, [name], True, [name])
        torch.testing.assert_close(captured.final, expected_rewards(batch))
        resumed = model.resume(rows, captured, name, captured.activations[name])
        torch.testing.assert_close(resumed, captured.final)
    other = HuggingFace().spec({"path": str(folder), "task": "causal"})
    assert other.identity()["task"] == "causal"
    (said,) = other.warnings()
    assert "hold tensors that GPT2LMHeadModel does not use: v_head.summary.bias, v_head.summary.weight" in said
    torch.testing.assert_close(other.load("cpu").logits(batch), tiny_model("gpt2")(batch.tokens).logits.detach())


def test_a_live_model_with_a_value_head_is_a_reward_model():
    class PreTrainedModelWrapper(nn.Module):
        """As trl's."""

        __module__ = "trl.models"

        def __init__(self):
            super().__init__()
            self.pretrained_model, self.v_head = tiny_model("gpt2"), nn.Module()
            self.v_head.summary = nn.Linear(32, 1)
            self.v_head.summary.load_state_dict({k.rpartition(".")[2]: v for k, v in HEAD.items()})

    live = PreTrainedModelWrapper()
    assert HuggingFace().accepts(live)
    spec = HuggingFace().wrap(live)
    assert spec.kind == "reward"
    batch = tiny_batch()
    torch.testing.assert_close(spec.load("cpu").capture(batch, [], True).final.detach(), expected_rewards(batch))


def test_another_head_of_one_output_is_refused_and_other_tensors_are_a_warning(tmp_path):
    folder = with_tensors(tiny_folder(tmp_path / "a", "llama"), {"score.weight": torch.ones(1, 32)})
    with pytest.raises(SaevalError, match=r"also hold score\.weight \[1, 32\], .* name its class in 'architectures'"):
        HuggingFace().spec({"path": str(folder)}).hooks()
    assert HuggingFace().spec({"path": str(folder), "task": "causal"}).hooks()
    extra = {f"extra.{i}": torch.ones(2, 32) for i in range(5)}
    spec = HuggingFace().spec({"path": str(with_tensors(tiny_folder(tmp_path / "b"), extra))})
    assert spec.warnings() == [
        "the weights of 'b' hold tensors that GPT2LMHeadModel does not use: extra.0, extra.1, extra.2 and 2 more"
    ]
    assert HuggingFace().spec({"path": str(tiny_folder(tmp_path / "c"))}).warnings() == []
    with pytest.raises(SaevalError, match="remove 'task: reward'"):
        HuggingFace().spec({"path": str(tmp_path / "c"), "task": "reward"})


PAIRS = [{"prompt": "w1 w2 ", "chosen": f"w{i} w{i + 1} w{i + 2} w3", "rejected": f"w{i + 5}"} for i in range(10, 30)]


def suite(tmp_path, folder, data="", model="", metrics="reward_margin"):
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, PAIRS)))
    path = tmp_path / "s.yaml"
    path.write_text(
        f"suite: s\nmodel: {{use: huggingface, path: {folder}{model}}}\nmetrics: [{metrics}]\n"
        f"data: {{use: preferences, path: {tmp_path / 'pairs.jsonl'}, prompt: prompt{data}}}\n"
    )
    return str(path)


def test_check_and_run_name_what_the_model_does_not_use(tmp_path, capsys, caplog):
    folder = with_tensors(tiny_folder(tmp_path / "model", "gpt2", "reward"), {"extra.weight": torch.ones(3)})
    path, sentence = (
        suite(tmp_path, folder),
        "hold a tensor that GPT2ForSequenceClassification does not use: extra.weight",
    )
    assert cli.main(["check", path, "--out", str(tmp_path / "out")]) == 0
    assert f"warning: the weights of 'model' {sentence}" in capsys.readouterr().out
    with caplog.at_level(logging.WARNING, "saeval"):
        assert cli.main(["run", path, "--out", str(tmp_path / "out")]) == 0
    assert caplog.text.count(sentence) == 1


def test_a_log_likelihood_says_that_it_is_in_nats_and_asks_of_no_exchange(tmp_path, capsys):
    causal, reward = tiny_folder(tmp_path / "causal"), tiny_folder(tmp_path / "reward", "gpt2", "reward")
    units, notes = {}, {}
    for name, folder in (("causal", causal), ("reward", reward)):
        results = saeval.run(suite(tmp_path, folder, metrics="reward_margin"), out=tmp_path / name)
        (result,) = results
        assert result.status == "ok", result.reason
        kinds = {n: v["unit"] for n, v in result.values.items() if "better" in v}
        units[name] = {kinds[n] for n in ("margin", "margin_sd", "reward_chosen", "reward_rejected")}
        assert kinds["accuracy"] == "share of pairs"
        notes[name] = " ".join(result.values["warnings"]["notes"])
    assert units == {"causal": {"reward, nats"}, "reward": {"reward"}}
    assert (
        "worse than chance: this reward is a language model's log-likelihood (nats), summed over tokens"
        in notes["causal"]
    )
    assert "exchanged" not in notes["causal"]


@pytest.mark.parametrize(("eos", "count"), [("true", 40), ("false", 0)])
def test_a_text_that_ends_with_the_padding_token_is_said_to_be_read_there(tmp_path, capsys, eos, count):
    folder = tiny_folder(tmp_path / "model", "gpt2", "reward")  # whose EOS is its padding
    path = suite(tmp_path, folder, f", eos: {eos}")
    assert cli.main(["check", path, "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    sentence = (
        f"warning: {count} of 40 texts end with token 0, which is also the padding of 'model': saeval reads the reward at "
        "it, transformers at the token before; to do as transformers does, add 'reward_at: before_padding' to 'model'"
    )
    assert (sentence in said) == bool(count)
    assert cli.main(["check", suite(tmp_path, folder, f", eos: {eos}", ", reward_at: before_padding")]) == 0
    assert "which is also the padding" not in capsys.readouterr().out


def test_before_padding_is_where_transformers_reads(tmp_path):
    folder = tiny_folder(tmp_path / "model", "gpt2", "reward")
    batch = tiny_batch()
    batch.tokens[:, -1] = 0
    batch.tokens[1, -2] = 0
    theirs = tiny_model("gpt2", "reward")(batch.tokens).logits[:, 0].detach()
    specs = {at: HuggingFace().spec({"path": str(folder), "reward_at": at}) for at in ("last_token", "before_padding")}
    assert specs["last_token"].identity() != specs["before_padding"].identity()
    assert specs["last_token"].identity() == HuggingFace().spec({"path": str(folder)}).identity()
    ours = {at: spec.load("cpu").capture(batch, [], True).final for at, spec in specs.items()}
    torch.testing.assert_close(ours["before_padding"], theirs)
    assert (ours["last_token"] - theirs).abs().min() > 1e-3
    right = padded(batch, [0, 0, 0], [2, 0, 1])
    torch.testing.assert_close(specs["before_padding"].load("cpu").capture(right, [], True).final, theirs)


def test_before_padding_is_refused_where_it_says_nothing(tmp_path):
    with pytest.raises(
        SaevalError, match="'reward_at' is for reward models, and 'a' is a language model; leave it out"
    ):
        HuggingFace().spec({"path": str(tiny_folder(tmp_path / "a")), "reward_at": "before_padding"})
    folder = tiny_folder(tmp_path / "b", "gpt2", "reward")
    raw = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({k: v for k, v in raw.items() if k != "pad_token_id"}))
    with pytest.raises(SaevalError, match=r"needs a padding token, and .*config\.json has no 'pad_token_id'"):
        HuggingFace().spec({"path": str(folder), "reward_at": "before_padding"})
    for word in some(["before", 3]):
        with pytest.raises(SaevalError, match="'reward_at' of the model"):
            HuggingFace().spec({"path": str(folder), "reward_at": word})


def test_a_check_with_a_task_lets_none_without_pass(tmp_path, folder):
    def spec(**task):
        found = HuggingFace().spec({"path": str(folder), **task})
        found.code = "a plugin's, so that what it finds is kept"
        return found

    for _ in range(2):
        assert spec(task="causal").hooks()
        with pytest.raises(SaevalError, match="a head with one output"):
            spec().hooks()


def test_a_value_head_stays_in_float32_beside_a_model_in_half_precision(folder):
    model = HuggingFace().spec({"path": str(folder), "task": "reward", "dtype": "bfloat16"}).load("cpu")
    states = model.module.transformer(tiny_batch().tokens).last_hidden_state[:, -1].detach().float()
    rewards = model.capture(tiny_batch(), [], True).final
    assert rewards.dtype == torch.float32
    torch.testing.assert_close(rewards, (states @ HEAD["v_head.summary.weight"].T + 3.0)[:, 0])


def test_a_value_head_is_read_without_an_architecture_and_refused_in_another_shape(tmp_path, folder):
    config = folder / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "architectures": None}))
    assert HuggingFace().spec({"path": str(folder), "task": "reward"}).kind == "reward"
    assert HuggingFace().spec({"path": str(folder), "task": "reward"}).hooks()
    wrong = with_tensors(tiny_folder(tmp_path / "wrong"), {"v_head.summary.weight": torch.ones(32)})
    with pytest.raises(SaevalError, match=r"v_head.summary.weight is \[32\], expected \[1, 32\]"):
        HuggingFace().spec({"path": str(wrong), "task": "reward"}).hooks()
