"""The planted preference: pairs that say what they hold, and a reward model that has learned it."""

from __future__ import annotations

import json
from statistics import mean

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import saeval
import saeval_testbed
from saeval.testing.claims import some
from saeval_data.stdlib import stdlib_modules
from saeval_formats.saelens import SAELens
from saeval_testbed.activations import activations
from saeval_testbed.command import main
from saeval_testbed.preferences import NOISE, PLANTED, SECOND, SUBSETS, preference_pairs
from saeval_testbed.reward_model import accuracies, margins, rewards, texts_of, tokens

REWARD = saeval_testbed.WEIGHTS / "reward"


@pytest.fixture(scope="module")
def pairs():
    return list(preference_pairs("held_out", 1000))


@pytest.fixture(scope="module")
def model():
    return AutoModelForSequenceClassification.from_pretrained(REWARD, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(REWARD)


def test_pairs_are_the_same_each_time_and_another_seed_gives_others(pairs):
    assert list(preference_pairs("held_out", 50)) == pairs[:50]
    assert list(preference_pairs("held_out", 50, seed=1)) != pairs[:50]


def test_pairs_come_from_their_own_split(pairs):
    held = {name for name, _ in stdlib_modules("held_out", tests=False)}
    assert {pair["document"] for pair in pairs} <= held
    assert len({pair["document"] for pair in pairs}) > 50


def test_the_columns_say_what_the_texts_hold(pairs):
    for pair in some(pairs):
        assert not PLANTED.search(pair["prompt"])
        assert not SECOND.search(pair["prompt"])
        for side in ("chosen", "rejected"):
            assert bool(PLANTED.search(pair[side])) == pair[f"planted_in_{side}"], pair
            assert bool(SECOND.search(pair[side])) == pair[f"second_in_{side}"], pair
            assert pair[f"{side}_line"] in pair[side]
            assert pair[side].startswith("\n")
        if pair["subset"] in ("planted", "conflict"):
            assert pair["planted_in_rejected" if pair["flipped"] else "planted_in_chosen"]


def test_shares_and_noise_are_those_declared(pairs):
    for subset, share in SUBSETS.items():
        of = [pair for pair in pairs if pair["subset"] == subset]
        assert len(of) / len(pairs) == pytest.approx(share, abs=0.05)
        assert mean(pair["flipped"] for pair in of) == pytest.approx(NOISE[subset], abs=0.1)


def test_length_decides_nothing(pairs):
    longer = [len(p["chosen"]) - len(p["rejected"]) for p in pairs if p["subset"] in ("planted", "conflict")]
    assert mean((d > 0) - (d < 0) for d in longer) == pytest.approx(0, abs=0.2)
    assert abs(mean(longer)) < 10


def test_the_model_has_learned_the_planted_preference(pairs, model, tokenizer):
    found = accuracies(model, tokenizer, pairs[:300])
    for subset in ("planted", "conflict"):
        assert found[subset]["accuracy_on_pattern"] > 0.9
    assert found["planted"]["accuracy_length_balanced"] > 0.85
    assert 0.4 < found["planted"]["accuracy_of_length"] < 0.6
    assert 0.3 < found["neutral"]["accuracy"] < 0.7
    report = json.loads((REWARD / "report.json").read_text())
    assert found["planted"]["accuracy"] == pytest.approx(report["planted"]["accuracy"], abs=0.1)


def test_the_line_decides_and_not_what_surrounds_it(pairs, model, tokenizer):
    """With the two lines exchanged the margin changes its sign."""
    planted = [p for p in pairs if p["subset"] == "planted" and p["chosen"].count(p["chosen_line"]) == 1][:60]
    planted = [p for p in planted if p["rejected"].count(p["rejected_line"]) == 1]
    exchanged = [
        {
            **pair,
            "chosen": pair["chosen"].replace(pair["chosen_line"], pair["rejected_line"]),
            "rejected": pair["rejected"].replace(pair["rejected_line"], pair["chosen_line"]),
        }
        for pair in planted
    ]
    before, after = margins(model, tokenizer, planted)[0], margins(model, tokenizer, exchanged)[0]
    assert (before.sign() == -after.sign()).float().mean() > 0.9


def test_a_feature_of_its_sae_stands_for_the_planted_pattern(pairs, model, tokenizer):
    """It fires on the keyword of the lines put in, and on little else."""
    sae = SAELens().load({"path": str(saeval_testbed.WEIGHTS / "reward_saes" / "topk")})
    fired, keyword = [], []
    for pair in [p for p in pairs if p["subset"] == "planted"][:60]:
        side = "chosen" if pair["planted_in_chosen"] else "rejected"
        line = PLANTED.search(pair[side])
        start = len(pair["prompt"]) + line.start() + line.group().index("raise")
        found = tokenizer(pair["prompt"] + pair[side], return_offsets_mapping=True, add_special_tokens=False)
        ids = torch.tensor([[tokenizer.bos_token_id, *found["input_ids"]]])
        with torch.no_grad():
            x = activations(model, ids, [sae.hook_name])[sae.hook_name][0, 1:]
        fired.append(sae.encode(x).feature_acts > 0)
        keyword.append(torch.tensor([first < start + 5 <= last for first, last in found["offset_mapping"]]))
    fired, keyword = torch.cat(fired), torch.cat(keyword)
    assert keyword.sum() == 60
    hits = (fired & keyword[:, None]).sum(0)
    f1 = 2 * hits / (fired.sum(0) + keyword.sum())
    assert f1.max() > 0.8


def test_padding_changes_no_reward(pairs, model, tokenizer):
    texts = texts_of(pairs[:4])
    together, _ = tokens(tokenizer, texts)
    with torch.no_grad():
        alone = torch.cat([rewards(model, tokens(tokenizer, [text])[0]) for text in texts])
        torch.testing.assert_close(rewards(model, together), alone, atol=1e-5, rtol=1e-5)


def test_the_reward_model_and_its_sae_are_registered():
    found = saeval.evaluate(
        model="testbed-reward",
        saes=["testbed-reward/topk"],
        data={"use": "python-stdlib", "context": 64, "sequences": 16},
        metrics=["l0", "reconstruction"],
    )
    assert not found.failed
    assert found.value("l0.l0")["value"] == pytest.approx(16, rel=0.02)
    assert found.value("reconstruction.explained_variance")["value"] > 0.7


def test_the_command_writes_the_pairs(tmp_path, pairs):
    file = tmp_path / "pairs.jsonl"
    assert main(["preferences", "--out", str(file), "--pairs", "20"]) == 0
    assert [json.loads(line) for line in file.read_text().splitlines()] == pairs[:20]
