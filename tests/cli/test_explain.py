"""`saeval explain`: the tree of what a metric requests, without a suite and as a suite resolves it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from saeval.cli import main

SUITE = """
suite: small
model: testbed
data: {texts: ["def one():\\n  return 1\\n", "import os\\nprint(os)\\n"], context: 8}
saes: [testbed/relu-3, testbed/topk-8]
metrics: [l0, ce: {as: ce_mean}, ce: {ablation: zero, as: ce_zero}]
"""


@pytest.fixture
def explain(capsys, tmp_path, monkeypatch):
    """Function: words of the command line -> exit code, lines of its output, its errors."""
    (tmp_path / "small.yaml").write_text(SUITE, encoding="utf-8")
    monkeypatch.chdir(tmp_path)

    def explained(*words):
        capsys.readouterr()
        code = main(["explain", *words])
        out, errors = capsys.readouterr()
        return code, out.splitlines(), errors

    return explained


def rows(lines, name):
    """The columns behind the first one, of rows that begin with this name."""
    return [re.split(r"\s{2,}", text.strip())[1:] for text in lines if re.match(rf"\s*{re.escape(name)}(\s|$)", text)]


def test_a_metric_alone_is_explained_with_its_defaults(explain):
    code, lines, errors = explain("ce")
    assert (code, errors) == (0, "")
    assert re.fullmatch(r"metric ce@\d of 'SAE' at blocks.1.hook_resid_pre, in suite example", lines[0])
    assert "  parameters: ablation='mean'" in lines
    assert lines[-1] == "This is an example; for your suite: saeval explain ce SUITE"
    assert [text.split(": ")[1] for text in lines if text.startswith("  pass ")] == [
        "activation_moments over the planned tokens", "1 cell"
    ]  # fmt: skip
    (fold,) = rows(lines, "activation_moments (fold)")
    assert fold[:3] == ["model, hook", "1", "1"]
    (resumed, of_control) = rows(lines, "spliced_pass")
    assert resumed[:4] == of_control[:4] == ["model, batch, hook, subject", "2", "1", "1 resumed pass"]


def test_a_shared_value_is_printed_once(explain):
    _, lines, _ = explain("ce")
    assert rows(lines, "final = clean_final (above)") == [[]]
    once = [text for text in lines if "the clean pass" in text]
    assert [text.split()[0] for text in once] == ["clean_final", "activations"]
    assert len([text for text in lines if re.match(r"\s+clean_final \(above\)", text)]) == 2
    reconstructions = [text.split("  ")[0] for text in map(str.strip, lines) if text.startswith("reconstruction")]
    assert reconstructions == ["reconstruction #1", "reconstruction #2"]


def test_each_quantity_names_the_line_of_its_code(explain):
    _, lines, _ = explain("kl")
    for name in ("spliced_scores #1", "resume", "conclude"):
        file, _, number = rows(lines, name)[0][-1].rpartition(":")
        source = Path(file).read_text(encoding="utf-8").splitlines()[int(number) - 1 :]
        defined = next(text for text in source if text.strip().startswith("def "))
        assert f"def {name.split()[0]}(" in defined


@pytest.mark.parametrize(
    ("metric", "row"),
    [
        ("reward_margin", "margin_rows (fold)"),
        ("seed_stability", "W_dec, and 1 more like it"),
        ("seed_stability", "subject_name = ['SAE', 'SAE-2']"),
        ("reward_groups", "group 0 = spliced_reward_on_b, and 9 more like it"),
        ("perturbation", "fit_covariance (fold over the fit split)"),
    ],
)
def test_pairs_groups_and_interventions_are_shown_once_for_all(explain, metric, row):
    code, lines, _ = explain(metric)
    assert code == 0
    assert rows(lines, row)


def test_a_suite_decides_the_sae_the_parameters_and_the_costs(explain):
    code, lines, _ = explain("ce_zero", "small.yaml", "--sae", "testbed/topk-8")
    assert code == 0
    assert lines[0].endswith(" of 'testbed/topk-8' at blocks.2.hook_resid_pre, in suite small")
    assert [row[:1] for row in rows(lines, "sae 'zero'")] == [["hook, subject"], []]  # printed once, then named
    assert not rows(lines, "activation_moments (fold)")
    assert rows(lines, "spliced_pass #1")[0][3] == "1 resumed pass: 0.50"  # two of four blocks
    assert int(rows(lines, "clean_final")[0][2]) > 4  # other metrics and SAEs use it too


def test_a_registered_sae_needs_no_suite(explain):
    code, lines, _ = explain("l0", "--sae", "testbed/relu-3")
    assert code == 0
    assert "'testbed/relu-3' at blocks.2.hook_resid_pre" in lines[0]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["cee"], "unknown metric 'cee'; did you mean 'ce'?"),
        (["l0", "--sae", "testbed/relu"], "--sae: 'testbed/relu' is no registered SAE; did you mean"),
        (["kl", "small.yaml"], "suite 'small' has no metric 'kl'"),
        (["ce", "small.yaml"], "suite 'small' has the metric 'ce' as ce_mean, ce_zero; use one of these names"),
        (["l0", "small.yaml", "--sae", "topk-8"], "metric 'l0' of suite 'small' has no SAE 'topk-8'; did you mean"),
    ],
)
def test_a_wrong_name_is_one_sentence(explain, words, message):
    code, lines, errors = explain(*words)
    assert (code, lines) == (2, [])
    assert message in errors
    assert len(errors.splitlines()) == 1
