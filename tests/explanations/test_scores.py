"""Words for planted features, tested by a judge that knows them: scores, controls, costs."""

from __future__ import annotations

import json

import pytest

from planted_features import EACH, RULES, Oracle, Planted, Rules, texts
from saeval import SaevalError, api
from saeval.testing import evaluate_tiny
from saeval.testing.claims import every

MANY = {"features": 12, "least_rows": 5, "windows": 16, "shown": 6, "per_prompt": 5}
EXPLAINED = {name: MANY[name] for name in ("features", "least_rows", "shown")}


def judged(*metrics, judge="oracle", **options):
    Oracle.asked = []
    results = evaluate_tiny(
        list(metrics), model=Planted(), saes=[Rules()], rows=texts(1), fit=texts(2), judge=judge,
        judge_classes=[Oracle], **options,
    )  # fmt: skip
    return {result.metric: result for result in results}


def by_kind(result, column):
    table = result.values["features"]
    place, feature = table["columns"].index(column), table["columns"].index("feature")
    found = {"token": [], "pair": [], "noise": []}
    for row in table["rows"]:
        found[RULES[row[feature]].split()[0]].append(row[place])
    return found


@pytest.fixture(scope="module")
def both():
    return judged(
        {"detection": MANY},
        {"fuzzing": MANY},
        {"explanation": {k: MANY[k] for k in ("features", "least_rows", "shown")}},
    )


@pytest.mark.parametrize("metric", ["detection", "fuzzing"])
def test_right_words_tell_where_features_fire(both, metric):
    scores = by_kind(both[metric], "auc own")
    assert every(score == 1 for score in scores["token"] + scores["pair"])
    assert every(score == 0.5 for score in scores["noise"])
    assert len(scores["token"]) == len(scores["pair"]) == len(scores["noise"]) == EACH


def test_words_of_another_feature_tell_nothing(both):
    values = both["detection"].values
    scalar = values["auc_shuffled"]
    assert abs(scalar["value"] - 0.5) <= 3 * scalar["stderr"] + 0.02
    assert values["lead_shuffled"]["ci95"][0] > 0
    right = [1, 1, 0.5]
    assert values["auc"]["value"] == pytest.approx(sum(right) / 3)
    assert values["unread"]["value"] == values["unexplained"]["value"] == 0


def test_a_list_of_tokens_is_enough_for_a_feature_of_tokens_alone(both):
    scores = by_kind(both["detection"], "auc tokens")
    assert every(score == 1 for score in scores["token"])
    assert every(score < 1 for score in scores["pair"])


@pytest.mark.parametrize("metric", ["detection", "fuzzing"])
def test_a_judge_that_always_says_yes_tells_nothing(metric):
    values = judged({metric: MANY}, judge={"use": "oracle", "manner": "yes"})[metric].values
    assert values["auc"]["value"] == values["balanced_accuracy"]["value"] == 0.5
    assert values["lead_shuffled"]["value"] == 0


def test_tokens_explain_features_of_tokens_and_not_those_of_pairs():
    found = judged({"token_explanation": {"features": 12, "least_rows": 5}}, judge=None)["token_explanation"]
    of_list, of_pairs = by_kind(found, "auc list"), by_kind(found, "auc pairs")
    assert every(score == 1 for score in of_list["token"])
    assert every(score < 1 for score in of_list["pair"])
    precision = by_kind(found, "precision")
    assert every(share == 1 for share in precision["token"])
    assert every(0.4 < share < 0.75 for share in precision["pair"])  # about half of its tokens stand after another one
    assert every(score > 0.99 for score in of_pairs["pair"])
    assert every(abs(score - 0.5) < 0.08 for score in of_list["noise"])
    rows = found.values["features"]["rows"]
    lists = {RULES[row[0]]: row[-1] for row in rows}
    assert sorted(lists["token 2"].split()) == ["'<5>'", "'<6>'"]


def test_the_words_are_the_rules(both):
    words = {RULES[row[0]]: row[3] for row in both["explanation"].values["features"]["rows"]}
    known = {rule: said for rule, said in words.items() if not said.startswith("no idea")}
    assert known == {rule: rule for rule in RULES if not rule.startswith("noise")}
    assert both["explanation"].values["distinct"]["value"] == 1


def test_what_a_run_asks_is_foretold(monkeypatch):
    plans = []

    def execute(planned, *arguments, **options):
        plans.append(planned)
        return run(planned, *arguments, **options)

    run = api.execute
    monkeypatch.setattr(api, "execute", execute)
    judged({"detection": {**MANY, "repeats": 1}}, {"fuzzing": {**MANY, "repeats": 1}}, {"explanation": EXPLAINED})
    (planned,) = plans
    foretold = planned.questions(planned.cells)
    # 12 explanations; 4 times 12 features with 16 windows, and with 8, of which 5 are in a prompt
    assert foretold.requests == len(Oracle.asked) == 12 + 4 * 12 * (4 + 2)
    asked = sum(len(text) for prompt in Oracle.asked for _, text in prompt.messages)
    assert foretold.tokens > asked / 4


def test_equal_results_for_any_batch_size(both):
    other = judged({"detection": MANY}, {"fuzzing": MANY}, {"explanation": EXPLAINED}, batch_size=7)
    assert every(other[name].values == both[name].values for name in both)


def test_words_from_a_file(tmp_path):
    file = tmp_path / "rules.jsonl"
    lines = [json.dumps({"feature": i, "explanation": rule}) for i, rule in enumerate(RULES) if i != 3]
    file.write_text("\n".join(lines) + "\n")
    found = judged({"detection": {**MANY, "path": str(tmp_path / "{sae}.jsonl")}}, key="rules")["detection"]
    assert every(score == 1 for score in by_kind(found, "auc own")["token"])
    assert 3 not in [row[0] for row in found.values["features"]["rows"]]
    assert every("one short phrase" not in prompt.messages[1][1] for prompt in Oracle.asked)
    exported = [{"index": str(i), "description": rule} for i, rule in enumerate(RULES) if i != 3]
    file.write_text(json.dumps(exported))
    again = judged({"detection": {**MANY, "path": str(tmp_path / "{sae}.jsonl")}}, key="rules")["detection"]
    assert again.values["auc"] == found.values["auc"]
    assert again.key != found.key


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ('{"feature": 1, "explanation": "x"}\n{"feature": 2', "line 2: this is no JSON"),
        ('{"feature": "one", "explanation": "x"}', "expected an object such as"),
        ('[{"index": "1"}]', "entry 1: expected an object such as"),
    ],
)
def test_a_wrong_file_of_words(tmp_path, content, fault):
    (tmp_path / "words.jsonl").write_text(content)
    found = judged({"detection": {**MANY, "path": str(tmp_path / "words.jsonl")}})["detection"]
    assert found.status == "failed"
    assert fault in found.reason


def test_no_file_of_words(tmp_path):
    with pytest.raises(SaevalError, match="no such file"):
        judged({"detection": {**MANY, "path": str(tmp_path / "nothing.jsonl")}})


def test_a_metric_that_asks_needs_a_judge():
    with pytest.raises(SaevalError, match="needs a judge, and this suite has none; add 'judge:'"):
        judged({"detection": MANY}, judge=None)
