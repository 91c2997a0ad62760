"""What `saeval check` prints: counts in words, the passes of pairs, and where a model that cannot be used was named."""

from __future__ import annotations

import json
import re
import shutil

import pandas as pd
import pytest
from transformers import AutoConfig, AutoModelForCausalLM

from saeval.cli import cost_estimate, main
from saeval.testing.architectures import VOCABULARY, tiny_folder, tiny_tokenizer
from saeval_testbed import WEIGHTS


@pytest.fixture
def check(tmp_path, capsys):
    """Function: the text of a suite -> exit code, standard output and standard error of `check`."""

    def checked(text):
        (tmp_path / "s.yaml").write_text(f"suite: s\n{text}", encoding="utf-8")
        capsys.readouterr()
        code = main(["check", str(tmp_path / "s.yaml"), "--out", str(tmp_path / "out")])
        return code, *capsys.readouterr()

    return checked


def test_one_of_a_thing_is_singular(check):
    code, text, _ = check(
        'model: testbed\ndata: {texts: ["def one(): return 1"], context: 8}\nsaes: [testbed/relu-5]\nmetrics: [l0]\n'
    )
    assert code == 0
    assert "  1 cell, 0 of them stored; 1 substitute\n" in text
    assert "  data: 1 sequence of 1 document; " in text
    assert "  pass 1: 1 cell: 1 clean pass, cut at blocks.2.hook_resid_pre, 0 resumed passes\n" in text


def test_each_side_of_a_pair_is_counted_once(check, tmp_path, monkeypatch):
    """Steps of a gradient resume each side's own tokens: seven steps more are seven passes from the hook on."""
    monkeypatch.setattr(cost_estimate, "operations_a_second", lambda device: 1e6)
    pairs = [{"prompt": "def f(x):\n", "chosen": f"    return x + {i}", "rejected": f"    x += {i}"} for i in range(8)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)), encoding="utf-8")

    def seconds(metric):
        code, text, _ = check(
            f"model: {{use: testbed-reward}}\ndata: {{use: preferences, path: '{tmp_path / 'pairs.jsonl'}', fit_share: 0.5}}\n"
            f"saes: [testbed-reward/topk]\nmetrics: [{metric}]\n"
        )
        assert code == 0
        return int(re.search(r"roughly (\d+) s of passes", text)[1])

    whole = seconds("reward_margin")
    seven, fourteen = (seconds(f"{{reward_groups: {{steps: {n}, largest: 2}}}}") for n in (7, 14))
    after = 1 - 2 / AutoConfig.from_pretrained(WEIGHTS / "reward").num_hidden_layers
    assert fourteen - seven == pytest.approx(7 * after * whole, rel=0.02)


@pytest.fixture
def suite_of(tmp_path, saelens_folder):
    """Function: a model's folder -> a suite whose `path:` of the model stands in line 3."""
    sae = saelens_folder(d_in=32, hook_name="blocks.1.hook_resid_pre")
    return lambda folder: (
        f"model:\n  {{path: '{folder}', use: huggingface}}\ndata: {{texts: ['w1 w2 w3 w4 w5'], context: 4}}\n"
        f"saes: [{{use: saelens, path: '{sae}'}}]\nmetrics: [ce]\n"
    )


BERT = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 48, "max_position_embeddings": 64,
}  # fmt: skip


@pytest.mark.parametrize("family", ["bert", "megatron-bert"])  # attention of today's kind, and of an older one
def test_an_encoder_under_a_language_models_head_is_refused(tmp_path, check, suite_of, family):
    for decoder in (False, True):
        config = AutoConfig.for_model(family, **BERT, is_decoder=decoder)
        AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "model")
        tiny_tokenizer().save_pretrained(tmp_path / "model")
        code, text, errors = check(suite_of(tmp_path / "model"))
        if decoder:
            assert code == 0
            assert "no problems found" in text
        else:
            assert code == 2
            assert f"{tmp_path / 'model' / 'config.json'} does not set 'is_decoder': true" in errors
            assert errors.startswith(f"{tmp_path / 's.yaml'}:3:")
            assert len(errors.splitlines()) == 1
        shutil.rmtree(tmp_path / "model")


def test_a_field_that_a_model_does_not_look_at_is_nothing_to_refuse(tmp_path, check, suite_of):
    folder = tiny_folder(tmp_path / "model", "gpt_neox", is_decoder=False)
    assert check(suite_of(folder))[0] == 0


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"is_causal": False}, "'is_causal': false"),
        ({"num_hidden_layers": 5}, "the weights of"),
        ({"model_type": "nosuch"}, "has model_type 'nosuch'"),
        ({"num_attention_heads": 5}, "config.json"),
    ],
)
def test_what_is_wrong_with_a_models_files_is_said_with_its_place_in_the_suite(
    tmp_path, check, suite_of, changed, message
):
    folder = tiny_folder(tmp_path / "model", "llama")
    config = AutoConfig.from_pretrained(folder).to_dict()
    (folder / "config.json").write_text(json.dumps(config | changed), encoding="utf-8")
    code, _, errors = check(suite_of(folder))
    assert code == 2
    assert message in errors
    assert errors.startswith(f"{tmp_path / 's.yaml'}:3:")


def test_a_table_is_read_without_a_librarys_progress_bar(tmp_path, check):
    (tmp_path / "corpus").mkdir()
    pd.DataFrame({"text": [f"def f{i}(x): return x + {i}" for i in range(20)]}).to_parquet(
        tmp_path / "corpus" / "a.parquet"
    )
    code, text, errors = check(
        f"model: testbed\ndata: {{use: text, path: '{tmp_path / 'corpus'}', context: 8, sequences: 4}}\n"
        "saes: [testbed/relu-5]\nmetrics: [l0]\n"
    )
    assert code == 0
    assert "read: a.parquet" in text
    assert "Generating" not in errors
    assert "examples/s" not in errors
