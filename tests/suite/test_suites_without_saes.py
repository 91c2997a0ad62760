"""A suite whose metrics need SAEs and that names none is a mistake, not a run of nothing."""

from __future__ import annotations

import pytest

from saeval import SaevalError, cli
from saeval.testing import evaluate_tiny

SUITE = """\
suite: none
model: {use: testbed}
data: {use: python-stdlib, context: 32, sequences: 4}
"""
HOOKS = SUITE + "metrics: [kl, perturbation_curve]\nhooks: [%s]\n"
PAIRS = """\
suite: none
model: {use: testbed-reward}
data: {use: testbed-preferences, pairs: 4}
"""


@pytest.mark.parametrize("verb", ["check", "run"])
@pytest.mark.parametrize(
    ("text", "said"),
    [
        (SUITE + "metrics: [l0, ce]\n", "s.yaml:4:11: 'l0', 'ce': evaluated on SAEs, and the suite has none; add 'saes:'"),
        (SUITE + "metrics: [l0]\ncontrols: [mean]\n", "s.yaml:4:11: 'l0': evaluated on SAEs, and the suite has none"),
        (PAIRS + "metrics: [reward_margin, margin_recovered]\n", "s.yaml:4:26: 'margin_recovered': evaluated on SAEs"),
        (PAIRS + "metrics: [reward_margin]\ncontrols: [mean]\n", "s.yaml:5:11: controls are placed at the hooks of SAEs"),
        (HOOKS % "blocks.*.hook_atn_out" + "controls: [zero]\n", "s.yaml:5:9: model 'testbed' has no hook 'blocks.*.hook_atn_out'; did you mean 'blocks.*.hook_attn_out'?"),
        (HOOKS % "blocks.9.hook_mlp_out" + "controls: [zero]\n", "s.yaml:5:9: model 'testbed' has no hook 'blocks.9.hook_mlp_out'; did you mean 'blocks."),
        (HOOKS % "blocks.1.hook_mlp_out", "s.yaml:4:11: 'kl' needs an SAE or control at its hook, and the suite has none; add 'saes:', or controls such as"),
        (HOOKS % "blocks.1.hook_mlp_out" + "controls: [zero, pca]\n", "s.yaml:6:18: control 'pca' is built from an SAE, and the suite has none; use identity, "),
        (HOOKS % "", "s.yaml:5:8: 'hooks': the list is empty"),
        (HOOKS % "3", "s.yaml:5:9: 'hooks.0': input should be a valid string, got 3"),
        (SUITE + "metrics:\n  - l0\nsaes:\n", "s.yaml:6:6: 'saes': input should be a valid list, got None"),
    ],
)  # fmt: skip
def test_the_place_and_the_remedy(tmp_path, capsys, verb, text, said):
    (tmp_path / "s.yaml").write_text(text)
    assert cli.main([verb, str(tmp_path / "s.yaml"), "--out", str(tmp_path / "out")]) == 2
    (line,) = capsys.readouterr().err.strip().replace(f"{tmp_path}/", "").splitlines()
    assert line.startswith(said)
    assert not (tmp_path / "out").exists()


def test_from_python():
    with pytest.raises(SaevalError, match="'l0': evaluated on SAEs, and the suite has none"):
        evaluate_tiny(["l0"], saes=[])


def test_a_metric_of_model_and_data_alone_needs_none(tmp_path, capsys):
    (tmp_path / "s.yaml").write_text(PAIRS + "metrics: [reward_margin]\n")
    assert cli.main(["check", str(tmp_path / "s.yaml"), "--out", str(tmp_path / "out")]) == 0
    assert "1 cell," in capsys.readouterr().out
