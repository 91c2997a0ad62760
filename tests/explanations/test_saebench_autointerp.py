"""SAEBench's detection score: its own functions on the same answers, its file, planted features."""

from __future__ import annotations

import json
import re
import types

import numpy as np
import pytest
from jsonschema import Draft202012Validator

from peer_modules import saebench_modules
from planted_features import RULES, Planted, Rules, fires, texts
from saebench_schemas import schema
from saeval import cli
from saeval.plugin import Judge, Reply
from saeval.testing import evaluate_tiny
from saeval.testing.claims import every
from saeval_compat.saebench_autointerp import RANDOM, Interpretation, read_choice, read_words

TESTED = 2 + 2 + RANDOM
FEATURES = RULES[:4]
"""Those whose activation varies: SAEBench has no other texts of a feature than the strongest if it does not."""


class Chooser(Judge):
    """Explains by the rule that all marked tokens obey, and chooses the texts in which it holds."""

    name = "chooser"
    asked: list = []  # noqa: RUF012  # by all of its objects

    def identity(self):
        return {}

    def replies(self, prompts):
        for index, prompt in enumerate(prompts):
            self.asked.append(prompt)
            yield index, Reply(self.answer(prompt.messages[1][1]))

    def answer(self, user):
        shown = []
        for line in re.findall(r"^\d+\. (.*)$", user, re.MULTILINE):
            parts = re.findall(r"<<(<\d+>)>>|(<\d+>)", line)
            shown.append(([int((a or b)[1:-1]) for a, b in parts], [bool(a) for a, _ in parts]))
        if said := re.search(r"is active on (.*)\.", user):
            if said.group(1) == "noise":
                return "None"
            numbers = [n for n, (t, _) in enumerate(shown, 1) if any(fires(said.group(1), t, i) for i in range(len(t)))]
            return ", ".join(map(str, numbers)) or "None"
        for rule in FEATURES:
            if all(fires(rule, t, i) or i == 0 for t, marks in shown for i, m in enumerate(marks) if m):
                return f"This neuron activates on {rule}."
        return "This neuron activates on noise"


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    folder = tmp_path_factory.mktemp("autointerp")
    Chooser.asked = []
    evaluate_tiny(
        [{"saebench_autointerp": {"latents": 12}}], model=Planted(), saes={"rules": Rules(second=0.5)}, rows=texts(1, rows=200),
        fit=texts(2), judge="chooser", judge_classes=[Chooser], out=folder, name="bench",
    )  # fmt: skip
    return folder / "bench"


@pytest.fixture(scope="module")
def peer():
    (main,) = saebench_modules("sae_bench.evals.autointerp.main")
    return main


def test_planted_features(out):
    (result,) = [r for r in map(json.loads, (f.read_text() for f in out.glob("*.json"))) if "values" in r]
    rows = {row[0]: row[1:] for row in result["values"]["features"]["rows"]}
    assert rows.keys() == {0, 1, 2, 3}
    for feature, rule in enumerate(FEATURES):
        words, chosen, right, score = rows[feature]
        assert words == rule
        # All active texts are chosen. SAEBench counts random texts as not active, also where the feature fires.
        more = set(chosen.split(", ")) - set(right.split(", "))
        assert set(right.split(", ")) <= set(chosen.split(", "))
        assert score == pytest.approx(1 - len(more) / TESTED)
    scores = [row[-1] for row in rows.values()]
    assert result["values"]["autointerp_score"]["value"] == pytest.approx(np.mean(scores))
    assert result["values"]["autointerp_std_dev"]["value"] == pytest.approx(np.std(scores, ddof=1))
    assert result["values"]["features"]["columns"][0] == "feature"


def test_what_the_judge_sees(out):
    explain = [p for p in Chooser.asked if "The texts are" in p.messages[1][1]]
    test = [p for p in Chooser.asked if "The explanation" in p.messages[1][1]]
    assert len(explain) == len(test) == len(FEATURES)
    count = lambda prompt: len(re.findall(r"^\d+\. ", prompt.messages[1][1], re.MULTILINE))  # noqa: E731
    assert {count(p) for p in explain} == {15}
    assert {count(p) for p in test} == {TESTED}
    assert every("<<" in p.messages[1][1] for p in explain)
    assert every("<<" not in p.messages[1][1] for p in test)
    lengths = {
        len(re.findall(r"<\d+>", line))
        for p in test
        for line in re.findall(r"^\d+\. (.*)$", p.messages[1][1], re.MULTILINE)
    }
    assert lengths == {21}


@pytest.mark.parametrize(
    "text", ["1, 2, 14", "None", "3 and 5.", "1,2, and 3", "", "all of them", "1; 2", " 7 ", "None.", "1, two", "-1, 2"]
)
def test_answers_are_read_as_saebench_reads_them(peer, text):
    read = peer.AutoInterp.parse_predictions(None, text)
    found = read_choice(Reply(text))
    assert (None if found is None else list(found)) == read


@pytest.mark.parametrize(
    "text", ["This neuron activates on names of months.", "months", "It activates on a, activates on b"]
)
def test_words_are_read_as_saebench_reads_them(peer, text):
    assert read_words(Reply(text)) == peer.AutoInterp.parse_explanation(None, text)


@pytest.mark.parametrize("seed", range(5))
def test_the_score_is_that_of_saebench(peer, seed):
    draw = np.random.default_rng(seed)
    active, chosen = draw.random(14) < 0.4, tuple(np.flatnonzero(draw.random(14) < 0.5) + 1)
    examples = [types.SimpleNamespace(is_active=bool(is_active)) for is_active in active]
    right = tuple(np.flatnonzero(active) + 1)
    expected = peer.AutoInterp.score_predictions(None, list(chosen), examples)
    assert Interpretation(0, "w", chosen, right, 14).score == pytest.approx(expected)


def test_the_file_is_valid_for_saebench(out, tmp_path):
    assert cli.main(["export", "saebench", str(out), "--to", str(tmp_path)]) == 0
    content = json.loads((tmp_path / "autointerp/rules_eval_results.json").read_text())
    assert list(Draft202012Validator(schema("autointerp")).iter_errors(content)) == []
    assert content["eval_result_metrics"]["autointerp"].keys() == {"autointerp_score", "autointerp_std_dev"}
    one = content["eval_result_unstructured"]["0"]
    assert one["explanation"] == "token 0"
    assert set(one["correct seqs"]) <= set(one["predictions"])
