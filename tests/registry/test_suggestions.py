"""What a suite says of a path that it names wrongly: the format it looks like, and the folder it was looked up in."""

from __future__ import annotations

import itertools
import json
import re

import pytest
import torch

import examples
from saeval import SaevalError, cli, evaluate
from saeval.api import prepare
from saeval.base.run_options import RunOptions
from saeval.registry.discovery import Plugins
from saeval.registry.format_recognition import readable, written
from saeval.registry.registry import Registry
from saeval.testing import TinyModel, TinySAE, register_rows, tiny_plugins, tiny_tokens
from saeval.testing.claims import none

SUITE = {
    "suite": "s", "model": "testbed", "data": {"use": "python-stdlib", "context": 16, "sequences": 4},
    "saes": ["testbed/relu-3"], "metrics": ["l0"],
}  # fmt: skip
REGISTRY = Registry(Plugins())
ONE_OF_EACH = {example.format: example for example in examples.EXAMPLES if example.format != "mapping"}
"""An example of each format that a path is enough for: an entry of `mapping` names the tensors."""


def said(**changed):
    with pytest.raises(SaevalError) as raised:
        prepare({**SUITE, **changed}, REGISTRY, RunOptions())
    lines = str(raised.value).splitlines()
    assert len(lines) == 1, lines
    return lines[0]


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_format_has_an_example():
    assert {*ONE_OF_EACH, "mapping"} == set(REGISTRY.loaders.names())


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_a_path_among_saes_is_told_its_format(here, name):
    path = here / "run"
    path.mkdir()
    reference = ONE_OF_EACH[name].write(path)
    shown = str(reference["path"])
    message = said(saes=[shown])
    assert f"unknown SAE '{shown}', which is a path" in message
    assert f"'{name}'" in message or f" {name}" in message
    assert f"{{use: {name}, path: {shown}}}" in message or "can be read as" in message


@pytest.mark.parametrize(("name", "wrong"), list(itertools.pairwise([*ONE_OF_EACH, next(iter(ONE_OF_EACH))])))
def test_a_loader_given_another_formats_files_says_what_they_look_like(here, name, wrong):
    path = here / "run"
    path.mkdir()
    reference = dict(ONE_OF_EACH[name].write(path))
    able, unable = readable(str(reference["path"]), REGISTRY)
    assert list(able) == [name]
    assert set(unable) == set(REGISTRY.loaders.names()) - {name}
    assert none(re.match(r"\w+(Error|Exception): ", reason) for reason in unable.values())
    entry = {**reference, "use": wrong, "hook_name": "blocks.1.hook_resid_pre"}
    expected = f"it looks like an SAE of the format '{name}': write {written({'use': name, 'path': reference['path']})}"
    assert said(saes=[entry]).endswith(expected)


def test_a_saelens_folder_read_as_sparsify(here, saelens_folder):
    saelens_folder(name="s600")
    message = said(saes=[{"use": "sparsify", "path": "s600"}])
    assert "no sae.safetensors" in message
    assert message.endswith("it looks like an SAE of the format 'saelens': write {use: saelens, path: s600}")


@pytest.fixture
def apollo_like(here):
    """A file that the format apollo reads too, wrongly: it would scale the decoder's rows to norm 1."""
    tensors = {"encoder.weight": torch.ones(8, 6), "encoder.bias": torch.ones(8), "decoder.weight": torch.ones(6, 8)}
    torch.save({**tensors, "decoder.bias": torch.ones(6)}, here / "my.pt")
    assert "apollo" in readable("my.pt", REGISTRY)[0]
    names = {"W_enc": "encoder.weight.T", "W_dec": "decoder.weight.T", "b_dec": "decoder.bias"}
    return {"use": "mapping", "path": "my.pt", "tensors": names, "activation": "relu"}


@pytest.mark.parametrize(
    ("changed", "fault"),
    [
        ({"activation": {"topk": 99}}, "'activation.topk' is 99, more than the 8 features"),
        ({"activation": "rellu"}, "'activation' has no 'rellu'; did you mean 'relu'?"),
        ({"normalisation": "layer_norm"}, "unknown parameter 'normalisation'"),
        ({"tensors": {"W_enc": "encoder.wieght.T", "W_dec": "decoder.weight.T"}}, "no tensor 'encoder.wieght'"),
        ({"hook_name": None}, "the checkpoint does not say its hook; add 'hook_name: blocks.N.hook_resid_post'"),
    ],
    ids=str,
)
def test_keys_that_mean_a_format_are_not_told_of_another(apollo_like, changed, fault):
    message = said(saes=[{**apollo_like, "hook_name": "blocks.1.hook_resid_post", **changed}])
    assert fault.removesuffix("post'") in message
    assert "apollo" not in message


def test_keys_of_a_format_under_another_name_or_none(apollo_like):
    del apollo_like["activation"], apollo_like["use"]
    assert said(saes=[{**apollo_like, "use": "apollo"}]).endswith("; its keys are those of 'mapping'")
    assert said(saes=[apollo_like]).endswith("; its keys are those of 'mapping'")


def test_a_format_that_needs_keys_and_has_none_is_told_of_another(apollo_like):
    assert said(saes=[{"use": "mapping", "path": "my.pt"}]).endswith("write {use: apollo, path: my.pt}")


def test_a_typo_of_a_value_is_no_sign_of_another_format(apollo_like):
    entry = {
        "use": "dictionary_learning",
        "path": "my.pt",
        "class": "AutoEncodr",
        "hook_name": "blocks.1.hook_resid_pre",
    }
    assert re.search(r"'class': 'AutoEncodr' is not supported; supported: [\w, ]+$", said(saes=[entry]))


def test_a_folder_of_folders_and_a_glob(here, saelens_folder):
    (here / "runs").mkdir()
    for name in ("runs/a", "runs/b"):
        saelens_folder(name=name)
    assert said(saes=["runs"]).endswith('write {use: saelens, path: runs, sites: "*"}')
    assert said(saes=["runs/*"]).endswith('write {use: saelens, path: "runs/*"}')
    assert said(saes=[{"path": "runs/a"}]).endswith("write {use: saelens, path: runs/a}")
    assert "saes.0" not in said(saes=["./runs/a"])


def test_a_folder_that_no_format_reads(here):
    (here / "notes").mkdir()
    assert said(saes=["notes"]).endswith(
        "which is a path; write {use: FORMAT, path: notes}, with a format of `saeval ls formats`"
    )


def test_a_registered_name_that_is_mistaken_is_still_suggested(here):
    assert "did you mean 'testbed/relu-3'?" in said(saes=["testbed/relu-33"])
    assert f"nor is there such a path in {here}; `saeval ls saes` lists" in said(saes=["runs/s600"])
    (here / "testbed").mkdir()  # a folder of the name's first part is no reason to look elsewhere
    assert "did you mean 'testbed/relu-3'?" in said(saes=["testbed/relu-33"])


def test_a_model_and_data_that_are_paths(here):
    (here / "gpt").mkdir()
    (here / "corpus.jsonl").write_text(json.dumps({"text": "a"}) + "\n")
    message = said(model="gpt")
    assert "no registered model is named 'gpt', which is a path; write {use: ADAPTER, path: gpt}" in message
    assert "huggingface" in message
    message = said(data="corpus.jsonl")
    assert "write {use: SOURCE, path: corpus.jsonl}, with a source of " in message
    assert "text, tokens" in message


@pytest.mark.parametrize(
    "changed",
    [
        {"model": {"use": "huggingface", "path": "none"}},
        {"model": {"use": "transformer_lens", "path": "none"}},
        {"data": {"use": "text", "path": "none.jsonl", "context": 8}},
        {"data": {"use": "tokens", "path": "none.npy", "context": 8}},
        {"data": {"use": "preferences", "path": "none.jsonl"}},
        {"data": {"use": "text", "path": "none/*.jsonl", "context": 8}},
        *({"saes": [{"use": name, "path": "none"}]} for name in ONE_OF_EACH),
        *({"saes": [{"use": name, "path": "none/*"}]} for name in ONE_OF_EACH),
    ],
    ids=str,
)
def test_a_relative_path_that_is_missing_says_where_it_was_looked_up(here, changed):
    assert f" in {here}" in said(**changed)


@pytest.mark.parametrize(
    "arguments",
    [["run", "none.yaml"], ["run", "none"], ["ls", "metrics", "--plugin", "none.py"], ["leaderboard", "results/none"]],
    ids=" ".join,
)
def test_so_does_the_command_line(here, capsys, arguments):
    assert cli.main(arguments) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert f" in {here}" in line


def test_an_absolute_path_needs_no_folder(here):
    message = said(data={"use": "text", "path": "/none.jsonl", "context": 8})
    assert "no such file or folder: /none.jsonl; check" in message


# Controls as metrics are written


def control_run(controls):
    results = evaluate(
        model=TinyModel(), saes={"sae": TinySAE()}, data=register_rows("controls", tiny_tokens()),
        metrics=["reconstruction"], controls=controls, plugins=tiny_plugins(), allow=["*"],
    )  # fmt: skip
    return {result.subject: result.values["mse"]["value"] for result in results if result.subject != "sae"}


def test_a_control_takes_its_parameters_as_a_metric_does():
    found = control_run([{"random": {"seeds": 2, "name": "noise"}}, {"zero": None}])
    assert set(found) == {"noise(sae)", "noise(sae)#1", "zero"}
    assert found == control_run([{"use": "random", "seeds": 2, "name": "noise"}, "zero"])


@pytest.mark.parametrize(
    ("controls", "where", "what"),
    [
        ("[random: {sed: 2}]", "5:21", "unknown parameter 'sed' of control 'random'; did you mean 'seed'?"),
        ("[randon: {seeds: 2}]", "5:20", "unknown control 'randon'; did you mean 'random'?"),
        ("[random: 2]", "5:20", "the parameters of 'random' are a mapping, got 2"),
        ("[random: {use: zero}]", "5:12", "a control needs 'use'"),
    ],
)
def test_a_mistake_in_one_has_its_place(here, capsys, controls, where, what):
    (here / "s.yaml").write_text(
        "suite: s\nmodel: testbed\ndata: {use: python-stdlib, context: 16, sequences: 4}\n"
        f"saes: [testbed/relu-3]\ncontrols: {controls}\nmetrics: [l0]\n"
    )
    assert cli.main(["check", "s.yaml"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith(f"s.yaml:{where}: {what}")
