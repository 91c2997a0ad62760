"""Limits that only a mistake meets: checked before memory is taken, each one sentence and exit code 2."""

from __future__ import annotations

import json
import os

import pytest
import yaml

from saeval import cli, evaluate, run
from saeval.base import text_files
from saeval.base.errors import SaevalError
from saeval.base.text_files import read_json
from saeval.interfaces.substitute import Control
from saeval.registry.discovery import Plugins
from saeval.registry.hookspecs import hookimpl
from saeval.testing.architectures import tiny_folder, tiny_tokenizer
from saeval.testing.claims import some
from saeval.text import packing
from saeval.text.tokens import TokenOptions, build_tokens
from saeval_data import files
from saeval_data.preferences import Preferences
from saeval_data.text import Text, Texts
from saeval_data.tokens import Tokens

HUGE = "0x" + "f" * 6000
"""A number that Python refuses to write out."""


def check(tmp_path, capsys, *flags, **changed):
    """What `saeval check` says of a suite with these entries, given as YAML."""
    entries = {
        "suite": "s", "model": "testbed", "data": "{use: python-stdlib, context: 16, sequences: 4}",
        "saes": "[testbed/relu-1]", "metrics": "[l0]",
    }  # fmt: skip
    path = tmp_path / "s.yaml"
    path.write_text("".join(f"{key}: {value}\n" for key, value in (entries | changed).items()))
    code = cli.main(["check", str(path), "--out", str(tmp_path / "out"), *flags])
    return code, capsys.readouterr().err.strip()


def data(**changed):
    entries = {"use": "python-stdlib", "context": 16, "sequences": 4, **changed}
    return "{" + ", ".join(f"{key}: {value}" for key, value in entries.items()) + "}"


LARGE = "is a number of more than 64 bits, which is too large"
MISTAKES = {
    "context": ({"data": data(context=2**31 - 1)}, "'context' of data 'python-stdlib': input should be less than or equal to 1048576"),
    "context of the model": ({"data": data(context=2**20)}, "context 1048576 is longer than the 256 positions of 'testbed'"),
    "digits": ({"data": data(context=HUGE)}, LARGE),
    "seed": ({"data": data(seed=HUGE)}, LARGE),
    "sequences": ({"data": data(sequences=10**15)}, "'sequences' of data 'python-stdlib': input should be less than or equal to"),
    "fit_sequences": ({"data": data(fit_sequences=10**15)}, "'fit_sequences' of data 'python-stdlib': input should be less than or equal to"),
    "bos_id": ({"data": data(bos_id=2**31)}, "'bos_id' of data 'python-stdlib': input should be less than 2147483648"),
    "seeds": ({"controls": "[{use: random, seeds: 100000000}]"}, "'seeds' of control 'random': input should be less than"),
    "a control's seed": ({"controls": f"[{{use: random, seed: {HUGE}}}]"}, LARGE),
    "draws": ({"metrics": "[{perturbation: {draws: 100000000}}]"}, "'draws' of metric 'perturbation': input should be"),
    "interventions": (
        {"metrics": "[{perturbation: {draws: 10000, positions: 10000}}]"}, "draws times positions is 100000000, at most 10000",
    ),
    "batch": ({"batch": 10**12}, "'batch': expected a number of sequences up to 1000000000, or auto, got 1000000000000"),
    "batch of many digits": ({"batch": HUGE}, LARGE),
}  # fmt: skip


@pytest.mark.parametrize("what", MISTAKES)
def test_a_number_that_would_fill_the_machine(tmp_path, capsys, what):
    changed, sentence = MISTAKES[what]
    code, said = check(tmp_path, capsys, **changed)
    assert code == 2
    assert sentence in said
    assert len(said.splitlines()) == 1
    assert len(said) < 600


def test_numbers_of_options(tmp_path, capsys):
    assert check(tmp_path, capsys, "--set", "data.context=2147483647")[0] == 2
    assert check(tmp_path, capsys, "--batch-size", str(10**12))[0] == 2
    with pytest.raises(SaevalError, match="batch_size must be a number of sequences or 'auto'"):
        run(str(tmp_path / "s.yaml"), out=tmp_path / "out", batch_size=10**12)
    with pytest.raises(SaevalError, match="'steps' of metric 'reward_attribution'"):
        evaluate(
            model="testbed-reward", saes=["testbed/relu-1"], data={"use": "testbed-preferences"},
            metrics=[{"reward_attribution": {"steps": 10**9}}],
        )  # fmt: skip


def test_a_plugins_control_has_a_limit_of_copies(tmp_path):
    class Copied(Control):
        """Many copies."""

        name, version, per = "copied", 1, "hook"

        @property
        def copies(self):
            return 10**9

        def build(self, hook_name, copy):
            raise AssertionError

    class Plugin:
        @hookimpl
        def saeval_controls(self):
            return [Copied]

    plugins = Plugins()
    plugins.add(Plugin(), "mine")
    with pytest.raises(SaevalError, match="'copies' is 1000000000; it must be a whole number from 1 to 10000"):
        evaluate(
            model="testbed", saes=["testbed/relu-1"], controls=["copied"], metrics=["l0"], plugins=plugins,
            data={"use": "python-stdlib", "context": 16, "sequences": 4},
        )  # fmt: skip


def test_rows_that_do_not_fit_in_memory_are_refused_before_they_are_made(monkeypatch):
    texts = Texts([" ".join(f"w{i % 90}" for i in range(3, 60))] * 4)

    def rows(**options):
        return build_tokens(texts, TokenOptions(context=8, **options), tiny_tokenizer, None, "evaluation")

    made = len(rows())
    monkeypatch.setattr("saeval.base.memory.available", lambda device: 2 * 8 * 9 * (made - 1))
    with pytest.raises(SaevalError, match=f"rows of context 8 .* no more than {made - 1} of them fit in memory"):
        rows()
    assert len(rows(sequences=made - 1)) == made - 1


def read(source, path):
    made = source(path=path)
    return list(made.records() if source is Preferences else made.documents("evaluation"))


@pytest.mark.parametrize("kind", ["device", "pipe", "folder"])
def test_what_is_no_file_is_not_read(tmp_path, capsys, kind):
    places = {}
    for name in ("a.txt", "a.jsonl", "a.npy", "suite.yaml"):
        place = places[name] = tmp_path / name
        if kind == "folder":
            place.mkdir()
        elif kind == "pipe":
            os.mkfifo(place)
        else:
            place.symlink_to("/dev/zero")
    what = f"expected a file, found a {kind}"
    assert cli.main(["check", str(places["suite.yaml"])]) == 2
    assert what in capsys.readouterr().err
    for source, name in (
        (Text, "a.txt"),
        (Text, "a.jsonl"),
        (Tokens, "a.jsonl"),
        (Tokens, "a.npy"),
        (Preferences, "a.jsonl"),
    ):
        with pytest.raises(SaevalError) as raised:
            read(source, str(places[name]))
        assert "\n" not in str(raised.value)
        assert name in str(raised.value)


def test_a_pipe_that_a_glob_matches_is_not_read(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "x", "tokens": [1, 2], "chosen": "a", "rejected": "b"}\n')
    os.mkfifo(tmp_path / "b.jsonl")
    for source in (Text, Tokens, Preferences):
        with pytest.raises(SaevalError, match=r"b\.jsonl: expected a file, found a pipe"):
            read(source, str(tmp_path / "*.jsonl"))


def sparse(path, size=2**30):
    with path.open("wb") as file:
        file.truncate(size)
    return path


def test_a_config_of_a_gigabyte_is_not_read(tmp_path, capsys):
    tiny_folder(tmp_path / "model")
    sparse(tmp_path / "model" / "config.json")
    code, said = check(tmp_path, capsys, model=f"{{use: huggingface, path: '{tmp_path}/model'}}")
    assert code == 2
    assert "bytes, but at most 67,108,864 are read; check the path" in said
    folder = tmp_path / "sae"
    folder.mkdir()
    sparse(folder / "cfg.json")
    code, said = check(tmp_path, capsys, saes=f"[{{use: saelens, path: '{folder}'}}]")
    assert code == 2
    assert "bytes, but at most 67,108,864 are read" in said
    assert cli.main(["check", str(sparse(tmp_path / "big.yaml"))]) == 2
    assert "big.yaml: 1,073,741,824 bytes" in capsys.readouterr().err


def test_a_line_of_json_without_an_end(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "MOST_LINE", 1000)
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "short"}\n{"text": "' + "x" * 2000 + '"}\n')
    with pytest.raises(SaevalError, match=r"a.jsonl:2: longer than .* MiB; each line is one record"):
        list(Text(path=str(path)).documents("evaluation"))


SIZES = {
    "n_layer": (10**9, "'n_layer' is 1000000000, more than the maximum of 4096"),
    "vocab_size": (
        10**9,
        "describes 32,0.*,.* parameters, but the weights beside it have only .* bytes; check its sizes",
    ),
    "n_positions": (10**10, "describes 320,0.*,.* parameters, but the weights beside it"),
}


@pytest.mark.parametrize("name", SIZES)
def test_a_model_config_far_beyond_its_weights(tmp_path, name):
    value, sentence = SIZES[name]
    folder = tiny_folder(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, name: value}))
    with pytest.raises(SaevalError, match=sentence) as raised:
        evaluate(
            model={"use": "huggingface", "path": str(folder)}, saes=["testbed/relu-1"], metrics=["l0"],
            data={"texts": ["w1 w2 w3 w4"] * 20, "context": 8},
        )  # fmt: skip
    assert "\n" not in str(raised.value)


DEEP = "[" * 100_000 + "]" * 100_000
NUMBER = "1" * 5000


@pytest.mark.parametrize(("value", "why"), [(DEEP, "nested too deeply"), (NUMBER, "a number with thousands of digits")])
def test_json_that_python_cannot_hold(tmp_path, value, why):
    path = tmp_path / "a.jsonl"
    path.write_text(f'{{"text": {value}, "tokens": {value}, "chosen": {value}, "rejected": {value}}}\n')
    for made in (Text(path=str(path)), Tokens(path=str(path))):
        with pytest.raises(SaevalError, match=rf"a.jsonl:1: broken JSON \({why}\)"):
            list(made.documents("evaluation"))
    with pytest.raises(SaevalError, match=why):
        list(Preferences(path=str(path)).records())
    for name in some(["config.json", "adapter_config.json", "model.safetensors.index.json"]):
        folder = tmp_path / name.removesuffix(".json")
        tiny_folder(folder)
        if "index" in name:
            (folder / "model.safetensors").unlink()
        (folder / name).write_text(f'{{"model_type": "gpt2", "x": {value}}}')
        with pytest.raises(SaevalError, match=rf"{name}: broken JSON \({why}\)"):
            evaluate(
                model={"use": "huggingface", "path": str(folder)}, saes=["testbed/relu-1"], metrics=["l0"],
                data={"texts": ["w1 w2"], "context": 8},
            )  # fmt: skip
    (tmp_path / "cfg.json").write_text(value)
    with pytest.raises(SaevalError, match=why):
        read_json(tmp_path / "cfg.json")


def test_rewards_that_no_float_holds(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text(f'{{"chosen_reward": {"1" * 400}, "rejected_reward": 2}}\n')
    source = Preferences(path=str(path), chosen_reward="chosen_reward", rejected_reward="rejected_reward")
    with pytest.raises(SaevalError, match=r"p.jsonl:1: expected a number in 'chosen_reward', found 1{200}\.\.\.$"):
        list(source.records())


def test_nested_lists_among_token_ids(tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_text(f'{{"tokens": [1, {"[" * 400}{"]" * 400}]}}\n')
    with pytest.raises(SaevalError, match="expected integer token ids, found") as raised:
        list(Tokens(path=str(path)).documents("evaluation"))
    assert len(str(raised.value)) < 500


def test_ordinary_numbers_are_as_before(tmp_path, capsys):
    """The limits are far from what suites ask for."""
    texts = '{texts: ["def f(x):\\n    return x", "import os, sys, re"], context: 256, seed: -7}'
    code, said = check(tmp_path, capsys, controls="[{use: mean}]", batch=256, data=texts)
    assert (code, said) == (0, "")
    assert packing.LONG == text_files.LONG == 2**20
    assert yaml.safe_load(HUGE) > 2**63
