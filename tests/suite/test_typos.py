"""A parameter that a class does not have is refused, whichever class it is, and whether or not it has any."""

from __future__ import annotations

import pytest

from saeval import SaevalError, cli, run
from saeval.registry.discovery import Plugins
from saeval.registry.registry import Registry
from saeval.testing.claims import some

SUITE = {
    "suite": "typos",
    "model": "testbed",
    "data": {"use": "python-stdlib", "context": 16, "sequences": 4},
    "saes": ["testbed/topk-8"],
    "metrics": ["l0"],
}
KINDS = {
    "metrics": lambda name: {"metrics": [{name: {"seedd": 3}}]},
    "controls": lambda name: {"controls": [{"use": name, "seedd": 3}]},
    "data": lambda name: {"data": {"use": name, "context": 16, "sequences": 4, "seedd": 3}},
    "loaders": lambda name: {"saes": [{"use": name, "path": ".", "seedd": 3}]},
    "adapters": lambda name: {"model": {"use": name, "path": ".", "seedd": 3}},
    "models": lambda name: {"model": {"use": name, "seedd": 3}},
}


@pytest.fixture(scope="module")
def plugins():
    return Plugins()


@pytest.mark.parametrize("kind", KINDS)
def test_a_typo_is_refused_by_every_registered_class(kind, plugins, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = getattr(Registry(plugins), kind).names()
    assert len(names) >= 2
    for name in some(names):
        with pytest.raises(SaevalError, match=r"unknown (parameter|key) 'seedd'"):
            run({**SUITE, **KINDS[kind](name)}, out=tmp_path, plugins=plugins)
    assert not list(tmp_path.iterdir())


def test_a_typo_of_a_class_without_parameters_has_its_place(tmp_path, capsys):
    suite = tmp_path / "s.yaml"
    suite.write_text(
        "suite: s\nmodel: testbed\ndata: {use: python-stdlib, context: 16, sequences: 4}\nsaes: [testbed/topk-8]\n"
        "controls:\n  - {use: zero, sed: 3}\nmetrics:\n  - l0: {flor: 0.1}\n"
    )
    assert cli.main(["check", str(suite), "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert f"{suite}:6:" in said
    assert "unknown parameter 'sed' of control 'zero'; it has none" in said
    assert f"{suite}:8:" in said
    assert "unknown parameter 'flor' of metric 'l0'; it has none" in said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("model", "place", "sentence"),
    [
        ("{use: testbet, adapter: huggingface}", "2:14", "unknown model 'testbet'; did you mean 'testbed'?"),
        ("{use: testbed, adapter: hugingface}", "2:32", "unknown model adapter 'hugingface'; did you mean"),
        ("{use: testbed, dtyp: half}", "2:23", "unknown parameter 'dtyp' of the model 'huggingface'; did you mean 'dtype'?"),
        ("{use: testbed, task: rewards}", "2:29", "'task' of the model 'huggingface': input should be 'causal' or 'reward'"),
    ],
)  # fmt: skip
def test_a_typo_in_the_model_has_its_own_place(tmp_path, capsys, model, place, sentence):
    text = (
        f"suite: s\nmodel: {model}\ndata: {{use: python-stdlib, context: 16}}\nsaes: [testbed/relu-3]\nmetrics: [l0]\n"
    )
    (tmp_path / "s.yaml").write_text(text)
    assert cli.main(["check", str(tmp_path / "s.yaml")]) == 2
    assert capsys.readouterr().err.startswith(f"{tmp_path / 's.yaml'}:{place}: {sentence}")
