"""`saeval schema` accepts every suite that ships and refuses common mistakes; `saeval completion` prints scripts."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
import saeval_suites
import yaml
from jsonschema import Draft202012Validator

from saeval import cli
from saeval.testing.claims import every, some

SUITES = sorted(Path(saeval_suites.__file__).parent.glob("*.yaml"))
GOOD = """
suite: mine
model: {use: huggingface, path: folder, dtype: bfloat16}
data: {use: text, path: corpus.jsonl, context: 128, sequences: 10, exclude: [bos, 7], score_share: 0.5}
saes:
  - testbed/topk-*
  - {use: saelens, path: runs/mine, name: mine, seed: 1, facts: {training_tokens: 5}}
  - {use: saelens, release: gpt2-small-res-jb, ids: "blocks.8.*"}
  - {use: sparsify, repo: org/name, path: ".", sites: ["layers.*"]}
  - {use: random, of: testbed/relu-1, seeds: 2}
judge: {use: openai, model: m, temperature: null, max_requests: 10}
controls: [identity, random: {of: mine}, {use: random, seeds: 5, of: [mine]}]
groups: {all: ["testbed/*"]}
metrics: [l0, ce: {ablation: zero, as: ce_zero}, {seed_stability: {over: all}}, {kl: }]
precision: {ce.delta_ce: 0.01}
batch: auto
leaderboard: {rank_by: ce.delta_ce, columns: [l0.l0], against: {random: [ce.delta_ce]}}
"""


@pytest.fixture(scope="module")
def validator():
    with pytest.MonkeyPatch.context() as patch:
        printed = []
        patch.setattr("builtins.print", lambda text, **_: printed.append(text))
        assert cli.main(["schema"]) == 0
    schema = json.loads(printed[0])
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema)


def test_every_suite_that_ships_is_valid(validator):
    assert len(SUITES) > 20
    faults = {path.name: list(validator.iter_errors(yaml.safe_load(path.read_text()))) for path in SUITES}
    assert every(not errors for errors in faults.values())


def test_every_form_of_an_entry_is_valid(validator):
    assert list(validator.iter_errors(yaml.safe_load(GOOD))) == []


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("suite: mine", "siute: mine"),
        ("[l0, ce", "[l0, cee"),
        ("ablation: zero", "ablatoin: zero"),
        ("ablation: zero", "ablation: 3"),
        ("over: all", "ovre: all"),
        ("use: text,", "use: txt,"),
        ("context: 128", "contex: 128"),
        ("context: 128", "context: long"),
        ("score_share: 0.5", "score_share: 2"),
        ("use: huggingface", "use: hugging"),
        ("dtype: bfloat16", "dtpye: bfloat16"),
        ("use: saelens, path: runs/mine", "use: saelens, pth: runs/mine"),
        ("use: sparsify", "use: sparsfy"),
        ("release: gpt2-small-res-jb", "relase: gpt2-small-res-jb"),
        ("seed: 1", "seed: one"),
        ("seeds: 2", "seed_count: 2"),
        ("[identity,", "[identty,"),
        ("of: [mine]", "off: [mine]"),
        ("seeds: 5", "seeds: many"),
        ("batch: auto", "batch: all"),
        ("rank_by:", "rankby:"),
        ("{ce.delta_ce: 0.01}", "{ce.delta_ce: -1}"),
        ("data: {use", "dta: {use"),
        ("use: openai", "use: opnai"),
        ("temperature: null", "temperature: cold"),
        ("model: m,", "modl: m,"),
        ("max_requests: 10", "max_requests: -1"),
    ],
)
def test_common_mistakes_are_invalid(right, wrong, validator):
    assert right in GOOD
    assert list(validator.iter_errors(yaml.safe_load(GOOD.replace(right, wrong, 1))))


def test_names_and_parameters_are_documented(validator):
    definitions = validator.schema["$defs"]
    assert definitions["metric.ce"]["properties"]["ablation"] == {"default": "mean", "type": "string"}
    assert every(
        definition.get("description") for name, definition in definitions.items() if name.startswith("metric.")
    )
    assert "Number of rows" in definitions["data.text"]["properties"]["sequences"]["description"]


def test_the_parameters_of_a_plugin_file_are_in_it(tmp_path, capsys):
    file = tmp_path / "mine.py"
    file.write_text(
        "from saeval.plugin import Metric, Scalar, hookimpl\n"
        "class Mine(Metric):\n"
        "    name, version = 'mine', 1\n"
        "    def __init__(self, floor: float = 0.5): self.floor = floor\n"
        "    def conclude(self, W_dec): return Scalar(0.0)\n"
        "@hookimpl\n"
        "def saeval_metrics(): return [Mine]\n"
    )
    assert cli.main(["schema", "--plugin", str(file)]) == 0
    definitions = json.loads(capsys.readouterr().out)["$defs"]
    assert definitions["metric.mine"]["properties"]["floor"] == {"default": 0.5, "type": "number"}


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_completion_script_has_all_verbs_and_options(shell, capsys):
    assert cli.main(["completion", shell]) == 0
    script = capsys.readouterr().out
    words = [*cli.VERBS, "frontier", "fail-if", "checkpoint-seconds"]
    assert every(word in script for word in some(words))
    if shell == "bash":
        asked = "\nCOMP_WORDS=(saeval lead)\nCOMP_CWORD=1\n_shtab_saeval\necho ${COMPREPLY[@]}"
        ran = subprocess.run(["bash", "-c", script + asked], capture_output=True, text=True, check=True)
        assert ran.stdout == "leaderboard\n"
