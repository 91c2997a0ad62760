"""The command line, as a user meets it, on the testbed."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys

import pytest

from saeval import cli
from saeval.registry.kinds import LISTED
from saeval.testing.claims import every

SUITE = """\
# A small one
suite: small
model: {use: testbed}
data: {use: python-stdlib, context: 32, sequences: 12}
saes: [testbed/relu-5, testbed/topk-8]
controls: [identity, mean]
metrics: [l0, ce]
leaderboard: {rank_by: ce.delta_ce, columns: [l0.l0, ce.delta_ce, ce.recovered]}
"""


@pytest.fixture
def suite(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.yaml").write_text(SUITE)
    return "small.yaml"


def test_run_check_show_and_leaderboard(suite, tmp_path, capsys):
    assert cli.main(["check", suite]) == 0
    outline = capsys.readouterr().out
    assert "8 cells, 0 of them stored" in outline
    assert not (tmp_path / "results").exists()

    assert cli.main(["run", suite, "--batch-size", "4"]) == 0
    ran = capsys.readouterr()
    assert "testbed/relu-5" in ran.out
    assert "±" in ran.out
    # 3 batches: 3 cut passes for the mean, 3 clean ones, 4 substitutes resumed in each.
    assert "8 cells, 20 forward passes" in ran.err
    assert "forward passes in all: 20" not in outline  # at batch size 16 there is one batch
    assert "forward passes in all: 8" in outline

    assert cli.main(["run", suite]) == 0
    again = capsys.readouterr()
    assert "8 cells, 0 forward passes" in again.err
    assert again.out == ran.out

    assert cli.main(["leaderboard", "results/small"]) == 0
    assert capsys.readouterr().out == ran.out
    assert cli.main(["leaderboard", "results/small", "--format", "json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert isinstance(rows, list)
    by_name = {row["name"]: row for row in rows}
    assert by_name["identity"]["ce.recovered"] == pytest.approx(1, abs=1e-5)
    assert by_name["mean"]["ce.recovered"] == 0
    assert by_name["testbed/relu-5"]["ce.delta_ce.stderr"] > 0
    low, high = by_name["testbed/relu-5"]["ce.delta_ce.ci95"]
    assert low < by_name["testbed/relu-5"]["ce.delta_ce"] < high
    assert "no features" in by_name["identity"]["missing"]["l0.l0"]

    assert cli.main(["leaderboard", "results/small", "--format", "csv"]) == 0
    table = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert {row["name"] for row in table} == set(by_name)
    assert float(table[0]["ce.delta_ce"]) == rows[0]["ce.delta_ce"]

    assert cli.main(["show", "results/small"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert len(shown) == 8
    key = next(line.split()[0] for line in shown if "testbed/relu-5" in line)
    assert cli.main(["show", f"results/small/{key}.json"]) == 0
    assert f"key {key};" in capsys.readouterr().out


def test_limited_runs_are_marked_and_kept_out(suite, capsys):
    assert cli.main(["run", suite, "--limit", "4"]) == 0
    assert "Limited run" in capsys.readouterr().out
    assert cli.main(["leaderboard", "results/small"]) == 2
    assert "limited to 4 sequences" in capsys.readouterr().err
    assert cli.main(["leaderboard", "results/small", "--include-limited"]) == 0
    assert cli.main(["run", suite]) == 0
    whole = capsys.readouterr().out.split("## small")[-1]
    assert cli.main(["run", suite, "--limit", "3"]) == 0  # trying again leaves the whole run's leaderboard as it was
    capsys.readouterr()
    assert cli.main(["leaderboard", "results/small"]) == 0
    assert capsys.readouterr().out == f"## small{whole}"


def test_several_suites_print_one_document(suite, tmp_path, capsys):
    (tmp_path / "other.yaml").write_text(SUITE.replace("suite: small", "suite: other").replace("[l0, ce]", "[l0]"))
    assert cli.main(["run", suite, "other.yaml", "--set", "leaderboard={}", "--format", "json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {row["suite"] for row in rows} == {"small + other"}  # one model and text, so one table


def test_an_excluded_id_beyond_the_vocabulary_is_refused(suite, capsys):
    assert cli.main(["run", suite, "--set", "data.exclude=[99999]"]) == 2
    assert "token id 99999 is beyond the tokenizer's 4096 tokens" in capsys.readouterr().err


def test_a_crashing_metric_exits_1_and_the_table_shows_it(suite, tmp_path, capsys):
    (tmp_path / "crash.py").write_text(
        "from saeval import Mean, Metric, Scalar, hookimpl\n"
        "class Crash(Metric):\n"
        "    name, version = 'crash', 1\n"
        "    def observe(self, feature_acts): raise RuntimeError('planted')\n"
        "    def conclude(self, total): return Scalar(0.0)\n"
        "@hookimpl\n"
        "def saeval_metrics(): return [Crash]\n"
    )
    arguments = ["run", suite, "--plugin", "crash.py", "--set", "metrics=[l0, crash]", "--set", "leaderboard={}"]
    assert cli.main(arguments) == 1
    captured = capsys.readouterr()
    assert "FAILED" in captured.out
    assert "failed: RuntimeError: planted" in captured.out
    assert "Traceback" not in captured.err
    rows = [line for line in captured.out.splitlines() if line.startswith("|") and "testbed/" in line]
    assert every("±" in row for row in rows)


def test_an_interruption_keeps_what_is_done_and_says_how_to_resume(suite, tmp_path, capsys, monkeypatch):
    (tmp_path / "stop.py").write_text(
        "from pathlib import Path\n"
        "from saeval import Mean, Metric, Scalar, hookimpl\n"
        "batches, stopped = [], Path('stopped')\n"
        "class Stop(Metric):\n"
        "    name, version = 'stop', 1\n"
        "    def observe(self, mask):\n"
        "        batches.append(1)\n"
        "        if len(batches) == 5 and not stopped.exists():\n"
        "            stopped.touch()\n"
        "            raise KeyboardInterrupt\n"
        "        return Mean.of(mask.double(), mask)\n"
        "    def conclude(self, total): return Scalar(total.value)\n"
        "@hookimpl\n"
        "def saeval_metrics(): return [Stop]\n"
    )
    arguments = ["run", suite, "--plugin", "stop.py", "--batch-size", "2", "--set", "controls=[]"]
    arguments += ["--set", "metrics=[stop]", "--set", "leaderboard={}"]
    monkeypatch.setattr("sys.argv", ["saeval", *arguments])
    assert cli.main(arguments) == 130
    assert f"Resume with: saeval {' '.join(arguments[:3])}" in capsys.readouterr().err
    assert cli.main(arguments) == 0
    # Two SAEs, six batches: the third batch was interrupted in its first cell, and is all that is repeated.
    assert "from sequence 4" in capsys.readouterr().err


def test_several_suites_are_planned_before_the_first_runs(suite, tmp_path, capsys):
    (tmp_path / "wrong.yaml").write_text(SUITE.replace("l0, ce", "l0, cee"))
    assert cli.main(["run", suite, "wrong.yaml"]) == 2
    assert "did you mean 'ce'?" in capsys.readouterr().err
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize("kind", LISTED)
def test_every_kind_is_listed(kind, capsys):
    assert cli.main(["ls", kind]) == 0
    assert capsys.readouterr().out.strip(), f"`saeval ls {kind}` is empty: a shipped plugin supplies one of each kind"
    assert cli.main(["ls", kind, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert every({"name", "description", "from"} <= set(row) for row in rows)


@pytest.mark.parametrize(
    "name", ["ce", "feature_acts", "activations", "testbed/relu-5", "python-stdlib", "mean", "ce.recovered"]
)
def test_every_name_can_be_shown(name, capsys):
    assert cli.main(["show", name]) == 0
    assert name.split(".")[0] in capsys.readouterr().out


def test_wrong_commands_exit_2(capsys, tmp_path):
    assert cli.main(["show", "cee"]) == 2
    assert "did you mean 'ce'?" in capsys.readouterr().err
    assert cli.main(["leaderboard", str(tmp_path)]) == 2
    capsys.readouterr()
    assert cli.main(["check", "quickstart", "--dtype", "float17"]) == 2
    assert capsys.readouterr().err.startswith("dtype 'float17': ")
    assert cli.main(["run", "quickstart", "--format", "xml"]) == 2
    assert "unknown report format 'xml'" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stopped:
        cli.main(["run", "quickstart", "--limit", "none"])
    assert stopped.value.code == 2
    assert cli.main([]) == 2


def test_fetch_and_offline_on_what_ships(suite, capsys):
    assert cli.main(["fetch", suite]) == 0
    assert "small: 12 sequences, 2 SAEs and the model's files are available offline" in capsys.readouterr().out


def test_offline_a_hub_name_is_refused_at_once(suite, tmp_path):
    text = SUITE.replace("{use: testbed}", "{use: huggingface, name: org/never-downloaded}")
    (tmp_path / "hub.yaml").write_text(text)
    command = [sys.executable, "-m", "saeval.cli", "run", "hub.yaml", "--offline"]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert ran.returncode == 2
    assert "org/never-downloaded" in ran.stderr
    assert "Traceback" not in ran.stderr


def loaded(arguments):
    """Modules loaded by a fresh process that runs a command, which succeeds."""
    script = (
        "import sys\n"
        "from saeval import cli\n"
        "try: code = cli.main(sys.argv[1:])\n"
        "except SystemExit as stopped: code = stopped.code\n"
        "print('\\n'.join(sorted(sys.modules)), file=sys.stderr)\n"
        "sys.exit(code)"
    )
    ran = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    return set(ran.stderr.split())


def test_help_loads_neither_torch_nor_a_plugin():
    modules = loaded(["--help"])
    assert "saeval.cli" in modules
    assert not {"torch", "numpy", "pandas", "transformers", "pluggy", "pydantic"} & modules
    assert not {m for m in modules if m.startswith("saeval_")}


def test_listing_loads_neither_transformers_nor_transformer_lens():
    for kind in ("metrics", "models", "saes", "data"):
        modules = loaded(["ls", kind])
        assert "saeval_fidelity" in modules or kind != "metrics"
        assert not {"transformers", "transformer_lens", "datasets", "sae_lens"} & modules, kind
