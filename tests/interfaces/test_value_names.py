"""Metrics declare the names of their values, so that a suite's columns are checked before it runs."""

from __future__ import annotations

import re

import numpy as np
import pytest

from saeval import Mean, Metric, SaevalError, Scalar, Table, cli, evaluate
from saeval.api import prepare
from saeval.base.run_options import RunOptions
from saeval.interfaces.metric import undeclared
from saeval.plugin import Judge, Reply
from saeval.registry.registry import Registry
from saeval.testing import TinyModel, TinySAE, check_metric, evaluate_tiny, tiny_plugins, tiny_tokens
from saeval.testing.claims import some
from saeval.testing.tiny import TinyPairs
from saeval.text.annotations import Annotations
from saeval.text.tokens import TokenDataset

SUITE = """\
suite: mine
model: {use: testbed}
data: {use: python-stdlib, context: 32, sequences: 4}
saes: [testbed/relu-3]
controls: [mean]
metrics:
  - l0
  - ce
  - perturbation: {draws: 1, nulls: [epsilon]}
"""


def refused(tmp_path, capsys, text, verb="check"):
    path = tmp_path / "s.yaml"
    path.write_text(text)
    code = cli.main([verb, str(path), "--out", str(tmp_path / "out")])
    printed = capsys.readouterr()
    assert code == 2, printed.out + printed.err
    assert not (tmp_path / "out").exists()
    return printed.err.strip().replace(f"{tmp_path}/", "").splitlines()


@pytest.mark.parametrize("verb", ["check", "run"])
@pytest.mark.parametrize(
    ("layout", "said"),
    [
        ("leaderboard: {rank_by: ce.deltace}", "10:24: column 'ce.deltace': metric 'ce' has no value 'deltace'; did you mean 'delta_ce'?"),
        ("leaderboard: {columns: [l0.l0, l0.p50]}", "10:32: column 'l0.p50': metric 'l0' has no value 'p50'; did you mean 'l0_p50'?"),
        ("leaderboard: {columns: [l0]}", "10:25: column 'l0': metric 'l0' has several values; name one, as in 'l0.l0'; known: l0, l0_p5"),
        ("leaderboard: {against: {mean: [ce.deltace]}}", "10:32: column 'ce.deltace': metric 'ce' has no value"),
        ("leaderboard: {columns: [perturbation.ratio_shuffled_error]}", "metric 'perturbation' has no value 'ratio_shuffled"),
        ("leaderboard: {columns: [l0.by_position]}", "metric 'l0' has no value 'by_position'"),
        ("precision: {ce.deltace: 0.1}", "10:13: precision: metric 'ce' has no value 'deltace'; did you mean 'delta_ce'?"),
    ],
)  # fmt: skip
def test_a_value_that_no_metric_has_is_found_before_the_run(tmp_path, capsys, verb, layout, said):
    (line,) = refused(tmp_path, capsys, f"{SUITE}{layout}\n", verb)
    assert line.startswith("s.yaml:10:")
    assert said in line


def test_what_a_parameter_adds_may_be_a_column(tmp_path, capsys):
    (tmp_path / "s.yaml").write_text(f"{SUITE}leaderboard: {{columns: [l0.l0, perturbation.ratio_epsilon]}}\n")
    assert cli.main(["check", str(tmp_path / "s.yaml"), "--out", str(tmp_path)]) == 0
    assert "no problems found" in capsys.readouterr().out


def test_wrong_columns_are_told_beside_other_problems(tmp_path, capsys):
    text = SUITE.replace("relu-3", "relu-33") + "leaderboard: {columns: [l0.l0, ce.deltace]}\n"
    assert len(refused(tmp_path, capsys, text)) == 2


def test_show_lists_the_values(capsys):
    assert cli.main(["show", "ce"]) == 0
    assert "delta_ce, recovered" in capsys.readouterr().out.replace("\n", " ")
    assert cli.main(["show", "perturbation"]) == 0
    assert "ratio, ratio_*: " in capsys.readouterr().out


class Thresholds(Metric):
    """Share of tokens on which a feature exceeds each of some thresholds."""

    name, version = "thresholds", 1
    value_names = ("above@*", "l1")

    def observe(self, feature_acts, mask):
        return {
            "above@1": Mean.of((feature_acts > 1).any(-1).double(), mask),
            "above@2": Mean.of((feature_acts > 2).any(-1).double(), mask),
            "l1": Mean.of(feature_acts.double().sum(-1), mask),
        }

    def conclude(self, total):
        return {**{name: Scalar(mean.value) for name, mean in total.items()}, "rows": Table(["a"], [[1]])}


class Undeclared(Thresholds):
    """One of its values is not declared."""

    name, value_names = "undeclared", ("above@*",)


class Absent(Thresholds):
    """It declares a value that it never concludes."""

    name, value_names = "absent", ("above@*", "l1", "below@*")


class Silent(Thresholds):
    """It declares nothing, and is not checked."""

    name, value_names = "silent", None


def test_check_metric_sets_the_declaration_against_the_values():
    check_metric(Thresholds)
    check_metric(Silent)
    with pytest.raises(AssertionError, match=r"undeclared\.value_names lacks l1, which it concludes"):
        check_metric(Undeclared)
    with pytest.raises(AssertionError, match=r"absent\.value_names has below@\*, which it never concludes"):
        check_metric(Absent)


@pytest.mark.parametrize(
    ("column", "said"),
    [
        ("thresholds.above@3", None),
        ("thresholds.l1", None),
        ("thresholds.l2", "metric 'thresholds' has no value 'l2'; did you mean 'l1'?"),
        ("silent.l2", None),
        ("silent", None),
        ("saelens_features.feature_density", "metric 'saelens_features' has no numbers, so it has no column"),
    ],
)
def test_patterns_and_metrics_that_declare_nothing(column, said):
    metrics = ["thresholds", "silent", "saelens_features"]
    suite = {
        "suite": "names", "model": "testbed", "saes": ["testbed/relu-3"], "metrics": metrics,
        "data": {"use": "python-stdlib", "context": 32, "sequences": 4}, "leaderboard": {"columns": [column]},
    }  # fmt: skip
    registry = Registry(tiny_plugins(Thresholds, Silent))
    if said is None:
        assert prepare(suite, registry, RunOptions()).cells
        return
    with pytest.raises(SaevalError) as raised:
        prepare(suite, registry, RunOptions())
    assert said in str(raised.value)


class LabelledPairs(TinyPairs):
    """Pairs that say where the planted pattern of the testbed's preferences would be."""

    supplies = frozenset({"labels"})

    def batch(self, rows, device):
        found = super().batch(rows, device)
        some = np.asarray(rows)
        for side in found.sides:
            planted = np.where(some % 2 == 0, "planted", "neutral")
            side.supplied = {"labels": {"subset": planted, "flipped": np.where(some % 3 == 0, "yes", "no")}}
        return found


PARAMETERS = {
    "perturbation": {"draws": 2, "positions": 1, "nulls": ["epsilon", "shuffled_error"]},
    "perturbation_curve": {"draws": 2, "positions": 1},
    "seed_stability": {"alive_firings": 1, "draws": 1},
    "functional_stability": {"alive_firings": 1, "draws": 1},
    "reward_attribution": {"steps": 2, "tolerance": 10.0, "top": 3, "groups": [1, 2], "random": 3, "contexts": 1},
    "reward_groups": {"steps": 2, "relevant": 6, "random": 20, "cosine": 0.0},
    "counterfactual_audit": {"steps": 2, "top": 3},
    "planted_recovery": {"steps": 2, "sizes": [1, 2]},
    "sparse_probing": {"k": [1, 2], "folds": 2, "refits": 2},
    "tpp": {"n": [1], "draws": 1},
    "scr": {"tasks": ["side", "pair"], "n": [1], "draws": 1},
    "saebench_tpp": {"tasks": ["kind=*"], "n": [1], "epochs": 1},
    "saebench_scr": {"tasks": ["side", "pair"], "n": [1], "epochs": 1},
    "truth_absorption": {"least": 5},
    "token_explanation": {"features": 4, "least_rows": 1},
    "explanation": {"features": 4, "least_rows": 1},
    "detection": {"features": 4, "least_rows": 1, "windows": 4, "repeats": 1},
    "saebench_autointerp": {"latents": 4, "buffer": 2},
    "fuzzing": {"features": 4, "least_rows": 1, "windows": 8, "repeats": 1},
    "absorption": {"at": None, "folds": 2, "least_f1": 0.0, "least_words": 2, "random": 2},
}


class Obliging(Judge):
    """Answers a list of tens of the right length, or a phrase."""

    name = "obliging"

    def identity(self):
        return {}

    def replies(self, prompts):
        for index, prompt in enumerate(prompts):
            asked = re.search(r"list of (\d+) numbers", prompt.messages[1][1])
            yield index, Reply(str([10] * int(asked.group(1))) if asked else "some tokens")


def labelled_tokens() -> TokenDataset:
    """Rows of tokens with labels that change at every or every second row, every fifth for validation."""
    rows = tiny_tokens(rows=40)
    # dictionary_learning's metrics leave no token out
    number = np.arange(len(rows))
    labels = {name: np.where(number // period % 2 == 0, "even", "odd") for name, period in (("side", 1), ("pair", 2))}
    labels["kind"] = np.array(["a", "b", "c"])[number % 3]
    nothing = np.zeros(len(rows), np.uint64)
    annotations = Annotations(labels, number % 5 == 0, [], nothing, np.zeros(rows.tokens.shape, np.uint64))
    return TokenDataset(rows.tokens, rows.documents, rows.clusters, annotations=annotations)


def test_every_metric_concludes_what_it_declares():
    registry = Registry(tiny_plugins())
    classes = {entry.name: entry.thing for entry in registry.metrics}
    assert len(classes) > 20
    assert [name for name, cls in classes.items() if cls().value_names is None] == []
    found: dict[str, list] = {}
    every_result: list = []
    for pairs in (False, True):
        entries = []
        for name, cls in classes.items():
            if (cls.data == "pair") == pairs and not cls.truth:
                over = {"over": "both"} if cls.subject == "group" else {}
                entries.append({name: {**PARAMETERS.get(name, {}), **over}})
        rows = LabelledPairs(pairs=40) if pairs else labelled_tokens()
        results = evaluate_tiny(
            entries, rows=rows, saes={"a": TinySAE(seed=0), "b": TinySAE(seed=1)}, groups={"both": ["a", "b"]},
            controls=["mean"], model=TinyModel(kind="reward" if pairs else "causal"), judge="obliging",
            judge_classes=[Obliging],
        )  # fmt: skip
        every_result += results
    truths = [{name: PARAMETERS.get(name, {})} for name, cls in classes.items() if cls.truth]
    world = {"use": "synthetic", "samples": 2000, "fit_samples": 1000}
    every_result += evaluate(data=world, saes=["synthetic/topk-4"], metrics=truths, plugins=tiny_plugins())
    for result in every_result:
        if result.status == "ok":
            scalars = [name for name, record in result.values.items() if "kind" not in record]
            found.setdefault(result.metric, []).append(scalars)
    assert found.keys() == classes.keys(), "each has a result that is ok"
    for name, cls in some(classes.items()):
        assert undeclared(cls(**PARAMETERS.get(name, {})), found[name]) is None
