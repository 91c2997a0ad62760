"""Every argument of `evaluate` and `run`, given something that it does not take: one sentence that names it."""

from __future__ import annotations

import dataclasses
import inspect
from pathlib import Path

import pytest
import torch

from saeval import SaevalError, cli, evaluate, run
from saeval.base.run_options import RunOptions
from saeval.testing import TinyModel, TinySAE, register_rows, tiny_plugins, tiny_tokens
from saeval.testing.claims import some

SUITE = {
    "suite": "s", "model": "testbed", "data": {"use": "python-stdlib", "context": 16, "sequences": 4},
    "saes": ["testbed/relu-3"], "metrics": ["l0"],
}  # fmt: skip
ANYTHING = [
    None,
    3,
    -1,
    2.5,
    True,
    float("nan"),
    "text",
    b"x",
    ["a"],
    ["a"] * 10,
    {"a": "b"},
    {3: "b"},
    object(),
    (),
    {},
]
PLUGINS = tiny_plugins()
TAKEN = {
    "groups": ({},),
    "precision": ({},),
    "out": ("text",),
    "name": ("text",),
    "key": ("text",),
    "suite": ({"a": "b"}, {}),
    "metrics": (["a"] * 10,),
    "overrides": ({},),
    "limit": (3,),
    "batch_size": (3,),
    "block": (3,),
    "checkpoint_seconds": (3, 2.5, True),
    "progress": (True,),
    "allow": (["a"], ["a"] * 10),
}
"""Values that an argument takes beside its default, and that are not tried."""


def one_sentence(call, argument, value):
    with pytest.raises(SaevalError) as raised:
        call()
    said = str(raised.value)
    assert len(said.splitlines()) == 1, f"{argument}={value!r}: {said}"
    assert len(said) < 900, f"{argument}={value!r}: {said}"
    assert "object at 0x" not in said, f"{argument}={value!r}: {said}"
    return said


def cases(function):
    defaults = {p.name: p.default for p in inspect.signature(function).parameters.values() if p.kind != p.VAR_KEYWORD}
    if function is evaluate:
        defaults |= {field.name: field.default for field in dataclasses.fields(RunOptions)}
    assert len(defaults) >= 14
    for argument, default in some(defaults.items()):
        taken = [default, *TAKEN.get(argument, ()), *([True] if isinstance(default, bool) else [])]
        tried = [v for v in ANYTHING if not any(v is t or (type(v) is type(t) and v == t) for t in taken)]
        assert len(tried) >= 9
        yield from ((argument, value) for value in tried)


def given(value):
    return repr(value)[:12] if "object at" not in repr(value) else "object"


@pytest.mark.parametrize(("argument", "value"), list(cases(evaluate)), ids=given)
def test_evaluate_refuses_what_it_does_not_take(tmp_path, monkeypatch, argument, value):
    monkeypatch.chdir(tmp_path)
    arguments = {
        "model": TinyModel(), "saes": [TinySAE()], "data": register_rows("arguments", tiny_tokens()), "metrics": ["l0"],
        "plugins": PLUGINS, "allow": ["*"],
    }  # fmt: skip
    one_sentence(lambda: evaluate(**{**arguments, argument: value}), argument, value)
    assert not list(Path().iterdir())


@pytest.mark.parametrize(("argument", "value"), list(cases(run)), ids=given)
def test_run_refuses_what_it_does_not_take(tmp_path, monkeypatch, argument, value):
    monkeypatch.chdir(tmp_path)
    one_sentence(lambda: run(**{"suite": SUITE, "plugins": PLUGINS, argument: value}), argument, value)
    assert not list(Path().iterdir())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"controls": "mean"}, "evaluate: controls is a list of names and of mappings, such as controls=['mean', {'use': 'random'}]; got 'mean'"),
        ({"data": ["text"] * 10}, "for text in memory, pass data={\"texts\": [...], \"context\": 128}; got ['text', 'text'"),
        ({"groups": {"g": "sae-*"}}, "evaluate: groups is a mapping of lists of names, such as groups={'seeds': ['sae-*']}; got {'g': 'sae-*'}"),
        ({"precision": ["ce.delta_ce"]}, "evaluate: precision is a mapping, such as precision={'ce.delta_ce': 0.005}; got ['ce.delta_ce']"),
        ({"saes": (TinySAE(), "blocks.1.hook_resid_pre")}, "evaluate: saes is a list or a mapping by name, such as saes=[(sae,"),
        ({"allow": "tinysae"}, "evaluate: allow must be a list of names or globs, such as allow=['mine']; got 'tinysae'"),
        ({"limit": "8"}, "evaluate: limit must be a number of sequences, such as limit=8; got '8'"),
        ({"batch_size": 0}, "evaluate: batch_size must be a number of sequences or 'auto', such as batch_size=16; got 0"),
        ({"tokenizer": "gpt2"}, "evaluate: tokenizer is a loaded tokenizer; got 'gpt2'"),
        ({"out": 3}, "evaluate: out is a folder, such as out='results'; got 3"),
    ],
)  # fmt: skip
def test_the_sentence_shows_what_to_write(arguments, said):
    common = {
        "model": TinyModel(),
        "saes": [TinySAE()],
        "data": register_rows("arguments", tiny_tokens()),
        "metrics": ["l0"],
    }
    assert said in one_sentence(
        lambda: evaluate(**{**common, "plugins": tiny_plugins(), **arguments}), *next(iter(arguments.items()))
    )


def test_overrides_change_a_mapping_as_they_do_a_file(tmp_path):
    results = run(SUITE, out=tmp_path, overrides=["data.sequences=1", "suite=other"])
    assert results.title == "other"
    assert results[0].cell["data"]["sequences"] == 1
    assert SUITE["suite"] == "s"


def test_devices_of_torch_are_taken():
    arguments = {
        "model": TinyModel(),
        "saes": [TinySAE()],
        "metrics": ["l0"],
        "allow": ["*"],
        "plugins": tiny_plugins(),
    }
    data = register_rows("arguments", tiny_tokens())
    results = evaluate(**arguments, data=data, device=torch.device("cpu"), sae_dtype=torch.float32, limit=2)
    assert results[0].status == "ok"
    assert results[0].provenance["device"] == "cpu"


def test_a_suite_file_beside_its_name_is_suggested(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("base.yaml").write_text("suite: s\n")
    assert cli.main(["run", "base"]) == 2
    assert (
        capsys.readouterr().err
        == f"base: no such file in {tmp_path}, and no suite has this name; did you mean 'base.yaml'?\n"
    )
    assert cli.main(["check", "quickstat"]) == 2
    assert "did you mean 'quickstart'?" in capsys.readouterr().err
    assert cli.main(["check", "none.yaml"]) == 2
    assert capsys.readouterr().err == f"none.yaml: no such file in {tmp_path}\n"
