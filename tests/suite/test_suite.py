"""Suites: every mistake is one line with its place and a remedy, before anything is loaded."""

from __future__ import annotations

import pytest

from saeval import cli
from saeval.base.errors import SuiteError
from saeval.suite.yaml_marks import override, parse, value_of

GOOD = """\
suite: mine
model: {use: testbed}
data: {use: python-stdlib, context: 32, sequences: 4}
saes:
  - testbed/relu-3
metrics:
  - l0
  - ce: {ablation: mean}
"""


def problems(tmp_path, capsys, monkeypatch, text, *arguments):
    """What `saeval check` prints for a suite; nothing may be loaded for it."""
    monkeypatch.setattr("saeval_models.huggingface.PretrainedSpec.load", refuse)
    monkeypatch.setattr("saeval_formats.saelens.SAELens.load", refuse)
    path = tmp_path / "s.yaml"
    path.write_text(text)
    code = cli.main(["run", str(path), "--out", str(tmp_path / "out"), *arguments])
    captured = capsys.readouterr()
    assert code == 2, captured.err
    assert "Traceback" not in captured.err
    assert not (tmp_path / "out").exists()
    return captured.err.strip().replace(str(tmp_path) + "/", "").splitlines()


def refuse(*_, **__):
    raise AssertionError("weights were loaded for a wrong suite")


@pytest.mark.parametrize(
    ("old", "new", "where", "what"),
    [
        ("- l0", "- lo", "s.yaml:7:5", "unknown metric 'lo'; did you mean 'l0'?"),
        ("ablation: mean", "ablaton: mean", "s.yaml:8:10", "unknown parameter 'ablaton' of metric 'ce'; did you mean 'ablation'?"),
        ("ablation: mean", "ablation: 3", "s.yaml:8:20", "'ablation' of metric 'ce': input should be a valid string, got 3"),
        ("ablation: mean", "ablation: meen", "s.yaml:8:9", "unknown control 'meen'; did you mean 'mean'?"),
        ("relu-3", "relu-33", "s.yaml:5:5", "unknown SAE 'testbed/relu-33'; did you mean 'testbed/relu-3'?"),
        ("testbed/relu-3", "testbed/rulu-*", "s.yaml:5:5", "no registered SAE matches 'testbed/rulu-*'"),
        ("suite: mine", "suite: mine\nsuite: two", "s.yaml:2:1", "duplicate key 'suite', first set in line 1; keep one"),
        ("  - l0", "\t- l0", "s.yaml:7:1", "YAML cannot be indented with tabs; use spaces"),
        ("context: 32", "context: many", "s.yaml:3:37", "'context' of data"),
        ("context: 32", "context: 9999", "s.yaml:3:37", "context 9999 is longer than the 256 positions of"),
        ("context", "contxt", "s.yaml:3:28", "unknown parameter 'contxt' of data 'python-stdlib'; did you mean 'context'?"),
        ("python-stdlib", "python-stdlb", "s.yaml:3:13", "unknown data source 'python-stdlb'; did you mean 'python-stdlib'?"),
        ("use: testbed", "use: testbet", "s.yaml:2:14", "unknown model 'testbet'; did you mean 'testbed'?"),
        ("metrics:", "metrix:", "s.yaml:6:1", "unknown key 'metrix'; did you mean 'metrics'?"),
        ("suite: mine", "suite: a/b", "s.yaml:1:8", "a suite's name becomes a folder"),
        ("  - testbed/relu-3", "  - {use: saelens}", "s.yaml:5:5", "SAE format 'saelens' needs the parameter 'path', the folder with"),
        (
            "  - testbed/relu-3",
            "  - {use: saelens, path: nowhere}",
            "s.yaml:5:5",
            "nowhere",
        ),
    ],
)  # fmt: skip
def test_each_mistake_is_one_line_with_its_place_and_the_remedy(tmp_path, capsys, monkeypatch, old, new, where, what):
    assert old in GOOD
    lines = problems(tmp_path, capsys, monkeypatch, GOOD.replace(old, new, 1))
    fitting = [line for line in lines if line.startswith(f"{where}: ")]
    assert len(fitting) == 1, lines
    assert what in fitting[0]


def test_all_problems_are_told_at_once(tmp_path, capsys, monkeypatch):
    text = GOOD.replace("- l0", "- lo").replace("relu-3", "relo-3").replace("context", "contxt")
    assert len(problems(tmp_path, capsys, monkeypatch, text)) == 3


def test_a_hook_the_model_lacks_and_a_width_that_does_not_fit(tmp_path, capsys, monkeypatch, saelens_folder):
    entry = f"{{use: saelens, path: {saelens_folder(d_in=128)}, hook_name: blocks.9.hook_resid_pre}}"
    (line,) = problems(tmp_path, capsys, monkeypatch, GOOD.replace("testbed/relu-3", entry))
    assert line.startswith(f"s.yaml:5:{5 + entry.index('blocks.9')}: ")
    assert "has no hook 'blocks.9.hook_resid_pre'; did you mean" in line

    entry = f"{{use: saelens, path: {saelens_folder(d_in=64)}}}"
    (line,) = problems(tmp_path, capsys, monkeypatch, GOOD.replace("testbed/relu-3", entry))
    assert line.startswith("s.yaml:5:5: ")
    assert "takes 64 inputs, but blocks.2.hook_resid_pre of model" in line
    assert "is 128 wide" in line


def test_empty_missing_and_foreign_files(tmp_path, capsys, monkeypatch):
    (line,) = problems(tmp_path, capsys, monkeypatch, "")
    assert line.startswith("s.yaml:1:1: the file is empty")
    (line,) = problems(tmp_path, capsys, monkeypatch, "# nothing but a comment\n")
    assert "the file is empty" in line
    (line,) = problems(tmp_path, capsys, monkeypatch, "- a\n- b\n")
    assert line == "s.yaml:1:1: a suite must be a mapping, found a list"
    assert cli.main(["run", str(tmp_path / "none.yaml")]) == 2
    assert "none.yaml: no such file" in capsys.readouterr().err
    assert cli.main(["run", "quickstat"]) == 2
    assert "did you mean 'quickstart'?" in capsys.readouterr().err


def test_nothing_in_a_suite_is_executed(tmp_path, capsys, monkeypatch):
    text = GOOD.replace("mine", f"!!python/object/apply:os.system ['touch {tmp_path}/ran']", 1)
    lines = problems(tmp_path, capsys, monkeypatch, text)
    assert not (tmp_path / "ran").exists()
    assert lines[0].startswith("s.yaml:1:8: ")


def test_aliases_may_not_expand_without_end():
    bomb = "a: &a [x, x, x, x, x, x, x, x, x, x]\n"
    for previous, name in zip("abcdef", "bcdefg", strict=True):
        bomb += f"{name}: &{name} [{', '.join([f'*{previous}'] * 10)}]\n"
    with pytest.raises(SuiteError, match="more than"):
        parse(bomb, "bomb.yaml")


def test_set_overrides_a_value_and_names_itself_in_errors(tmp_path, capsys, monkeypatch):
    data, marks = parse(GOOD, "s.yaml")
    override(data, marks, "data.sequences=64")
    override(data, marks, "metrics.0=kl")
    override(data, marks, "leaderboard.rank_by=ce.recovered")
    assert data["data"]["sequences"] == 64
    assert data["metrics"][0] == "kl"
    assert data["leaderboard"] == {"rank_by": "ce.recovered"}
    (line,) = problems(tmp_path, capsys, monkeypatch, GOOD, "--set", "data.contxt=3")
    assert line.startswith("--set data.contxt=3: unknown parameter 'contxt'")
    entry = "saes=[{use: random, of: testbed/topk-16, seeds: 0}]"
    (line,) = problems(tmp_path, capsys, monkeypatch, GOOD, "--set", entry)
    assert line == f"--set {entry}: control 'random': seeds must be at least 1, got 0"
    (line,) = problems(tmp_path, capsys, monkeypatch, GOOD, "--set", "nonsense")
    assert "expected key=value" in line


def test_an_unknown_leaderboard_column_is_found_before_the_run(tmp_path, capsys, monkeypatch):
    text = GOOD + "leaderboard: {columns: [l0.l0, cee.recovered]}\n"
    (line,) = problems(tmp_path, capsys, monkeypatch, text)
    assert line.startswith("s.yaml:9:32: column 'cee.recovered': no metric 'cee' in this suite; did you mean 'ce'?")


@pytest.mark.parametrize(
    ("against", "said"),
    [
        ("[mean, meen]", "s.yaml:10:31: against: no control 'meen' in this suite's 'controls:'; did you mean 'mean'?"),
        ("{meen: [ce.delta_ce]}", "s.yaml:10:25: against: no control 'meen' in"),
        ("{mean: [cee.delta_ce]}", "s.yaml:10:32: column 'cee.delta_ce': no metric 'cee' in"),
        ("mean", "s.yaml:10:24: 'leaderboard.against': input should be a valid list, got 'mean'"),
    ],
)
def test_an_unknown_control_to_stand_against_is_found_before_the_run(tmp_path, capsys, monkeypatch, against, said):
    text = GOOD + f"controls: [mean]\nleaderboard: {{against: {against}}}\n"
    (line,) = problems(tmp_path, capsys, monkeypatch, text)
    assert line.startswith(said)


def test_saes_that_the_of_of_a_control_leaves_out_are_named_by_check(tmp_path, capsys):
    path = tmp_path / "s.yaml"
    text = GOOD.replace("  - testbed/relu-3\n", "  - testbed/relu-3\n  - testbed/topk-8\n")
    for of, said in (
        ("", ""),
        (
            ", of: testbed/relu-3",
            "warning: against 'random': 1 of 2 SAEs will have no difference, since the control's 'of:' leaves them out: "
            "testbed/topk-8\n",
        ),
    ):
        control = f"{{use: random, seeds: 1{of}}}"
        layout = "leaderboard: {rank_by: ce.delta_ce, against: [random, mean]}"
        path.write_text(f"{text}controls: [mean, {control}]\n{layout}\n")
        assert cli.main(["check", str(path), "--out", str(tmp_path)]) == 0
        assert capsys.readouterr().out.startswith(f"{said}suite mine")


@pytest.mark.parametrize(
    ("old", "new", "what"),
    [
        ("  - l0", "  - l0: {as: [a]}", "'as' of metric 'l0' must be a name without dots"),
        ("  - l0", "  - l0: {as: a.b}", "'as' of metric 'l0' must be a name without dots"),
        ("  - testbed/relu-3", "  - {use: saelens, path: x, name: 3}", "'name' is a name, got 3"),
        ("  - testbed/relu-3", "  - {use: saelens, path: x, hook_name: 3}", "'hook_name' is a name, got 3"),
        ("metrics:", "controls: [{use: random, seeds: 0}]\nmetrics:", "seeds must be at least 1, got 0"),
        ("metrics:", "controls: [{use: random, of: 3}]\nmetrics:", "no SAE of this suite matches"),
        ("metrics:", "controls: [zero, zero]\nmetrics:", "two controls are named 'zero'"),
        ("metrics:", "controls: [zeero]\nmetrics:", "unknown control 'zeero'; did you mean 'zero'?"),
        ("metrics:", "groups: {g: [nothing]}\nmetrics:", "no SAE of 'saes:' matches 'nothing'"),
        ("{use: testbed}", "{use: testbed, adapter: [a]}", "'adapter' is a name"),
        ("suite: mine", "suite: mine\nx: &x [*x]", "deep, or an alias of itself"),
        ("suite: mine", "precision: {ce.delta_ce: 0}\nsuite: mine", "input should be greater than 0, got 0"),
        ("suite: mine", "precision: {ce.delta_ce: .nan}\nsuite: mine", "input should be a finite number, got nan"),
        ("suite: mine", "batch: 0.5\nsuite: mine", "'batch': expected a number of sequences, or auto, got 0.5"),
    ],
)
def test_odd_values_are_mistakes_too(tmp_path, capsys, monkeypatch, old, new, what):
    lines = problems(tmp_path, capsys, monkeypatch, GOOD.replace(old, new, 1))
    assert any(what in line for line in lines), lines


@pytest.mark.parametrize("option", ["--device", "--sae-device"])
@pytest.mark.parametrize(
    ("device", "what"),
    [("cuda:99", "torch cannot use it here"), ("nonsense", "torch knows no such device"), ("meta", "it holds shapes")],
)
def test_a_device_that_is_not_there(tmp_path, capsys, monkeypatch, option, device, what):
    (line,) = problems(tmp_path, capsys, monkeypatch, GOOD, option, device)
    assert line.startswith(f"device '{device}': {what}")


@pytest.mark.parametrize("option", ["--dtype", "--sae-dtype"])
def test_a_dtype_that_is_none(tmp_path, capsys, monkeypatch, option):
    (line,) = problems(tmp_path, capsys, monkeypatch, GOOD, option, "int8")
    assert line == "dtype 'int8': expected one of float32, float64, bfloat16, float16"


def test_numbers_with_an_exponent_need_no_point():
    """PyYAML takes them for text."""
    values = value_of("[1e-3, 1E5, -2e+3, 1.5e3, 1e, e1, 1e5x, '1e-3', 0x1e3]", "")
    assert values == [0.001, 1e5, -2000.0, 1500.0, "1e", "e1", "1e5x", "1e-3", 0x1E3]
