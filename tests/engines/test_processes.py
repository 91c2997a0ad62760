"""The engines that ship, with real processes: the same bits as in this process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import psutil
import pytest

from fleet import run, values
from saeval.testing.claims import some

SUITE = {
    "suite": "small",
    "model": {"use": "testbed"},
    "data": {"use": "python-stdlib", "sequences": 16, "context": 16},
    "saes": ["testbed/relu-3"],
    "metrics": ["l0", "ce", "weights"],
    "batch": 4,
}
OPTIONS = {"local:2": [], "ray:2": [], "slurm:2": ["cluster=local"]}


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return values(run(SUITE, tmp_path_factory.mktemp("alone"), block=4))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of Ray and submitit, about this machine
@pytest.mark.parametrize("engine", OPTIONS)
def test_an_engine_gives_the_bits_of_one_process(engine, alone, tmp_path):
    pytest.importorskip({"ray:2": "ray", "slurm:2": "submitit"}.get(engine, "saeval"))
    assert values(run(SUITE, tmp_path, engine, block=4, engine_option=OPTIONS[engine])) == alone
    assert list(tmp_path.glob(".workers*")) == []


class Killing:
    """A display that kills one of the workers when the first shard is done."""

    killed = 0

    def started(self, *_):
        pass

    def advanced(self, *_):
        if not self.killed:
            alive = [p for p in psutil.Process().children() if p.status() != psutil.STATUS_ZOMBIE]
            child = some(p for p in alive if "saeval_engines.local" in " ".join(p.cmdline()))[0]
            os.kill(child.pid, signal.SIGKILL)
            self.killed += 1

    def finished(self):
        pass


@pytest.mark.slow
def test_a_killed_worker_loses_nothing(alone, tmp_path):
    progress = Killing()
    assert values(run(SUITE, tmp_path, "local:2", block=4, progress=progress)) == alone
    assert progress.killed == 1


WITHOUT_EXTRAS = """\
import sys
import warnings


class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("ray", "submitit"):
            raise ModuleNotFoundError(name)


sys.meta_path.insert(0, Absent())
import saeval, saeval_engines
assert "torch" not in sys.modules
warnings.simplefilter("ignore")
from saeval import cli
code = cli.main(sys.argv[1:])
assert not {"ray", "submitit"} & {*sys.modules}
sys.exit(code)
"""
"""The command line in an environment that has neither Ray nor submitit."""


def without_extras(*arguments):
    return subprocess.run([sys.executable, "-c", WITHOUT_EXTRAS, *arguments], capture_output=True, text=True)


@pytest.fixture
def suite_file(tmp_path):
    path = tmp_path / "small.yaml"
    path.write_text(json.dumps({**SUITE, "data": {**SUITE["data"], "sequences": 4}, "metrics": ["l0"]}))
    return str(path)


def test_a_run_without_the_extras_knows_nothing_of_them(suite_file, tmp_path):
    ended = without_extras("run", suite_file, "--out", str(tmp_path))
    assert ended.returncode == 0, ended.stderr
    assert "testbed/relu-3" in ended.stdout


@pytest.mark.parametrize(("engine", "library", "extra"), [("ray:2", "Ray", "ray"), ("slurm:2", "submitit", "slurm")])
def test_an_engine_without_its_extra_says_what_to_install(engine, library, extra, suite_file, tmp_path):
    ended = without_extras("run", suite_file, "--out", str(tmp_path), "--engine", engine)
    assert ended.returncode == 2
    name = engine.partition(":")[0]
    assert ended.stderr.splitlines()[-1].endswith(f"engine '{name}' needs {library}: pip install 'saeval[{extra}]'")
