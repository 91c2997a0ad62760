"""The engines that ship, with real processes: the same bits as in this process."""

from __future__ import annotations

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


def test_a_run_without_engines_imports_none():
    code = "import sys, saeval, saeval_engines; sys.exit(bool({'ray', 'submitit', 'torch'} & {*sys.modules}))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
