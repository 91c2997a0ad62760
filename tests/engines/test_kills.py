"""Kills in the middle of a run: of a worker, of the run itself, of Ray's head. Nothing is lost and nothing counted twice.

`tests/torture.py workers heads` does the same at random moments, many times over.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from fleet import run, values
from saeval.results.store import Store

TESTS = Path(__file__).parents[1]
SUITE = {
    "suite": "small",
    "model": {"use": "testbed"},
    "data": {"use": "python-stdlib", "sequences": 400, "context": 16},
    "saes": ["testbed/relu-3"],
    "metrics": ["l0", "ce", "weights"],
    "batch": 4,
}
DRIVER = """\
import sys, warnings
warnings.simplefilter("ignore")
sys.path.insert(0, sys.argv[1])
import test_kills
test_kills.run(test_kills.SUITE, sys.argv[2], sys.argv[3], block=4)
"""


def killed(out, engine, victims):
    """Start a run in a process of its own, and kill those of its family that `victims` chooses once shards are done."""
    environment = {**os.environ, "RAY_gcs_rpc_server_reconnect_timeout_s": "5"}
    command = [sys.executable, "-c", DRIVER, str(Path(__file__).parent), str(out), engine]
    with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as driver:
        try:
            while driver.poll() is None and len(list(out.glob("*/shards/*.npz"))) < 2:
                time.sleep(0.02)
            assert driver.poll() is None, "the run ended before anything was killed"
            whole = psutil.Process(driver.pid)
            family = [whole, *whole.children(recursive=True)]
            chosen = [process for process in family if victims(process)]
            assert chosen
            for process in chosen:
                process.send_signal(signal.SIGKILL)
            code = driver.wait(300)
        finally:
            driver.kill()
            for process in family[1:]:  # what Ray leaves where its head has died
                if process.is_running():
                    process.kill()
    return code


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return run(SUITE, tmp_path_factory.mktemp("alone"), block=4)


VICTIMS = {
    "driver": ("local:2", lambda process: "test_kills" in " ".join(process.cmdline())),
    "head": ("ray:2", lambda process: process.name() in ("gcs_server", "raylet")),
}


@pytest.mark.slow
@pytest.mark.parametrize("victim", VICTIMS)
def test_the_same_command_goes_on_after_a_kill(victim, alone, tmp_path):
    engine, chosen = VICTIMS[victim]
    if engine == "ray:2":
        pytest.importorskip("ray")
    assert killed(tmp_path, engine, chosen) not in (0, None)
    assert len(list(tmp_path.glob("small/shards/*.npz"))) >= 2
    results = run(SUITE, tmp_path, block=4)
    assert values(results) == values(alone)
    assert results.forward_passes < alone.forward_passes  # the shards that were there are not computed again
    assert list(tmp_path.glob("small/shards/*")) == []


def test_shards_of_what_is_finished_do_not_stay(tmp_path):
    """A run that ends between its last result and its last step leaves them, and the next one has nothing to sum."""
    run(SUITE, tmp_path, block=4, limit=8)
    store = Store(tmp_path / "small")
    cells = [file.stem for file in store.folder.glob("*.json") if len(file.stem) == 24]
    assert cells
    for number, own in enumerate([cells, [*cells, "0" * 24]]):
        store.write_checkpoint(f"{number}-0-4", {"cells": own, "folds": []}, {}, "shards")
    run(SUITE, tmp_path, block=4, limit=8)
    assert [file.stem for file in (store.folder / "shards").glob("*")] == ["1-0-4"]
