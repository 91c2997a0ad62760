"""`RunOptions`: one field is an option of `run` and `evaluate`, a flag, and a row of the documentation."""

from __future__ import annotations

import dataclasses
import inspect
import re
from pathlib import Path

import numpy as np
import pytest
import torch

import saeval
from saeval import RunOptions, SaevalError, cli
from saeval.cli import flags, grammar
from saeval.testing import TinyModel, TinySAE, register_rows, tiny_plugins, tiny_tokens

OPTIONS = {option.name: option for option in dataclasses.fields(RunOptions)}
assert len(OPTIONS) > 10
VERBS = {
    "run": ("run", "suite", "model"),
    "check": ("suite", "model"),
    "fetch": ("suite", "model"),
    "doctor": ("model",),
}


def parsed(*words):
    return flags.options(grammar._parser([]).parse_args(list(words)))


def evaluated(**options):
    data = register_rows("run options", tiny_tokens())
    return saeval.evaluate(
        model=TinyModel(), saes=[TinySAE()], data=data, metrics=["l0"], plugins=tiny_plugins(),
        **{"allow": ["*"], **options},
    )  # fmt: skip


@pytest.mark.parametrize("verb", VERBS)
def test_every_option_is_a_flag_of_its_verbs_with_its_default(verb, capsys):
    options = parsed(verb, "suite")
    for name, option in OPTIONS.items():
        default = (
            list(option.default)
            if isinstance(option.default, tuple) and option.metadata["group"] in VERBS[verb]
            else option.default
        )
        assert getattr(options, name) == default, name
    with pytest.raises(SystemExit):
        cli.main([verb, "--help"])
    text = " ".join(capsys.readouterr().out.split())
    for name, option in OPTIONS.items():
        shown = f"{options.called(name)} " in text
        assert shown == (option.metadata["group"] in VERBS[verb]), name
        assert not shown or option.metadata["help"] in text, name


def test_flags_give_what_python_gives():
    words = (
        "--device cpu --dtype bf16 --sae-device cpu --sae-dtype half --limit 3 --batch-size auto --allow a --allow b"
    )
    words += " --fresh --checkpoint-seconds 5 --preflight warn --engine-option a=b"
    given = RunOptions(
        device=torch.device("cpu"), dtype=torch.bfloat16, sae_device="cpu", sae_dtype="half", limit=np.int64(3),
        batch_size="auto", allow=["a", "b"], fresh=True, checkpoint_seconds=5, preflight="warn",
        engine_option=["a=b"],
    )  # fmt: skip
    assert dataclasses.asdict(parsed("run", "suite", *words.split())) == dataclasses.asdict(given)
    assert parsed("run", "suite", "--batch-size", "7", "--skip-failing").batch_size == 7


@pytest.mark.parametrize("function", [saeval.run, saeval.evaluate])
def test_every_option_is_in_the_signature(function):
    parameters = inspect.signature(function).parameters
    assert {name: parameters[name].default for name in OPTIONS} == {n: o.default for n, o in OPTIONS.items()}


def test_options_and_keywords_mean_the_same_and_keywords_win():
    assert [r.cell["data"]["limit"] for r in evaluated(options=RunOptions(limit=2, allow=["*"]))] == [2]
    assert [r.cell["data"]["limit"] for r in evaluated(options=RunOptions(limit=2), limit=3)] == [3]
    assert [r.cell["data"]["limit"] for r in evaluated(limit=2)] == [2]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"limit": "8"}, "limit must be a number of sequences, such as limit=8; got '8'"),
        ({"limit": 10**9 + 1}, "limit must be a number of sequences, such as limit=8; got 1000000001"),
        ({"fresh": 1}, "fresh must be true or false, such as fresh=True; got 1"),
        ({"allow": "mine"}, "allow must be a list of names or globs, such as allow=['mine']; got 'mine'"),
        ({"preflight": "of"}, "preflight must be 'stop', 'warn' or 'off', such as preflight='warn'; got 'of'"),
        (
            {"skip_failing": True, "preflight": "off"},
            "skip_failing=True with preflight='off': these contradict each other",
        ),
    ],
)
def test_a_wrong_option_is_one_sentence(given, said):
    with pytest.raises(SaevalError, match=re.escape(said)):
        RunOptions(**given)


def test_a_wrong_flag_is_named_as_one(capsys):
    assert cli.main(["run", "quickstart", "--checkpoint-seconds", "-1"]) == 2
    said = "--checkpoint-seconds must be a number of seconds, such as --checkpoint-seconds 60; got -1.0\n"
    assert capsys.readouterr().err == said
    assert cli.main(["run", "quickstart", "--limit", str(10**10)]) == 2
    assert capsys.readouterr().err.startswith("--limit must be a number of sequences, such as --limit 8; got")
    assert cli.main(["run", "quickstart", "--skip-failing", "--preflight", "off"]) == 2
    assert capsys.readouterr().err.startswith("--skip-failing with --preflight off: these contradict")


def test_the_documentation_has_a_row_for_each():
    text = (Path(__file__).parents[2] / "docs" / "python.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| `(\S+?)` \|", text, re.MULTILINE)
    assert dict(rows) == {name: repr(option.default) for name, option in OPTIONS.items()}
