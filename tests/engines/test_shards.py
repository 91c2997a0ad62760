"""A run on many workers: the same bits as on one machine, whatever is cut, killed or lost."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest

from fleet import fleet, run, values
from saeval import SaevalError
from saeval.api import execute, prepare
from saeval.base.run_options import RunOptions
from saeval.plan.blocks import Block, blocks, makespan
from saeval.registry.registry import Registry
from saeval.testing.claims import every, some

SUITE = {
    "suite": "small",
    "model": {"use": "testbed"},
    "data": {"use": "python-stdlib", "sequences": 20, "context": 16},
    "saes": ["testbed/relu-3", "testbed/relu-5"],
    "controls": ["mean"],
    "metrics": ["l0", "ce", "reconstruction", "density", "weights"],
    "batch": 3,
}


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """What one process gives, by block size."""
    found = {}

    def of(block):
        if block not in found:
            found[block] = values(run(SUITE, tmp_path_factory.mktemp("alone"), block=block))
        return found[block]

    return of


@pytest.mark.parametrize("block", [5, 8, 256])
def test_two_workers_give_the_bits_of_one_process(block, alone, tmp_path):
    plugins, asked = fleet()
    results = run(SUITE, tmp_path, "inside:2", plugins, block=block)
    assert values(results) == alone(block)
    rows = [tuple(request["block"]) for _, request in asked if request["do"] == "block"]
    assert every(end - start <= 1.5 * block for start, end in rows)
    assert {name for name, _ in asked} == {"w0", "w1"}
    assert list((tmp_path / "small").glob("shards/*")) == []
    assert list(tmp_path.glob(".workers*")) == []


def test_a_worker_that_ends_is_replaced_and_nothing_is_counted_twice(alone, tmp_path):
    def fails(name, request):
        return "killed by signal 9" if name == "w0" and request["do"] == "block" else None

    plugins, asked = fleet(fails)
    assert values(run(SUITE, tmp_path, "inside:2", plugins, block=5)) == alone(5)
    assert sum(name == "w0" and request["do"] == "block" for name, request in asked) == 1


@pytest.mark.slow
def test_a_driver_that_ends_leaves_its_shards_to_the_next_run_of_any_engine(alone, tmp_path):
    for number, engine in enumerate(some(["inside:2", "local"])):
        count = itertools.count()

        def fails(name, request, count=count):
            if request["do"] == "block" and next(count) == 2:
                raise KeyboardInterrupt
            return None

        out = tmp_path / str(number)
        plugins, _ = fleet(fails)
        with pytest.raises(KeyboardInterrupt):
            run(SUITE, out, "inside:2", plugins, block=5)
        assert len(list(out.glob("small/shards/*.npz"))) == 2
        plugins, _ = fleet()
        assert values(run(SUITE, out, engine, plugins, block=5)) == alone(5)
        assert list(out.glob("small/shards/*")) == []


def test_a_shard_that_fails_three_times_costs_its_cells(tmp_path):
    def fails(name, request):
        return "lost its machine" if request["do"] == "block" and request["block"][0] == 5 and tried(name) else None

    names = []

    def tried(name):
        names.append(name)
        return True

    plugins, _ = fleet(fails)
    results = run({**SUITE, "controls": [], "metrics": ["l0", "weights"]}, tmp_path, "inside:4", plugins, block=5)
    failed = [r for r in results if r.metric == "l0"]
    assert every(
        r.status == "failed" and "after 3 tries" in r.reason and "lost its machine" in r.traceback for r in failed
    )
    assert len(set(names)) == 3
    assert every(r.status != "failed" for r in results if r.metric == "weights")


def test_a_run_without_workers_left_says_so(tmp_path):
    plugins, _ = fleet(lambda name, request: "no such machine" if request["do"] == "preflight" else None)
    with pytest.raises(
        SaevalError, match=r"no worker of engine 'inside' is left.*run again\nworker w0: no such machine"
    ):
        run(SUITE, tmp_path, "inside", plugins)


CHANGES = {
    "version": ({"saeval": "9.9"}, "w0 has saeval .*, and this run needs 9.9"),
    "plugin": ({"plugins": {"other:one": "1"}}, "w0 lacks the plugin other:one of this run; install it there"),
    "weights": (
        {"weights": {"testbed/relu-3": "0" * 64}},
        "w0 finds other weights under the path of SAE 'testbed/relu-3'",
    ),
    "model": ({"model": {"adapter": "other"}}, "w0 finds another model 'testbed'; copy the same files there"),
    "code": (
        {"keys": ["0"]},
        "w0 has other code of saeval, a metric, a format or a model; install the same code on all machines",
    ),
    "rows": ({"rows": "0"}, "w0 reads other rows of the suite's data"),
    "store": ({"present": "/nowhere/present"}, "w0 does not see the files of .*: --out must be a folder that all"),
    "disk": ({"present": "/proc/self/status"}, "w0 cannot write into the shared folder"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_worker_that_would_compute_something_else_is_refused_before_the_first_batch(change, tmp_path, monkeypatch):
    changed, sentence = CHANGES[change]
    plugins, asked = fleet()
    monkeypatch.setattr(
        "json.dumps",
        lambda value, dumps=json.dumps, **o: dumps(
            value | changed if isinstance(value, dict) and value.get("do") == "join" else value, **o
        ),
    )
    with pytest.raises(SaevalError, match=sentence) as raised:
        run(SUITE, tmp_path, "inside", plugins)
    assert "\n" not in str(raised.value)
    assert [request["do"] for _, request in asked] == ["join"]


@pytest.mark.parametrize("change", ["weights", "plugin"])
def test_a_worker_whose_files_differ_is_refused_before_the_first_batch(change, saelens_folder, tmp_path):
    """What the run has planned with is not what its workers find under the same paths."""
    added = tmp_path / "added.py"
    added.write_text("from saeval.plugin import hookimpl\n")
    weights = saelens_folder(name="mine")
    plugins, asked = fleet(files=[added])
    suite = {**SUITE, "saes": [{"use": "saelens", "path": str(weights)}], "controls": []}
    planned = prepare(suite, Registry(plugins), RunOptions(engine="inside", allow=["*"]))
    if change == "weights":
        saelens_folder(name="mine", seed=1)
        sentence = "worker w0 finds other weights under the path of SAE 'mine'; copy the same files to all machines"
    else:
        added.unlink()
        sentence = f"worker w0 lacks a plugin of this run: --plugin {added}: no such file"
    with pytest.raises(SaevalError) as raised:
        execute(planned, tmp_path / "out")
    assert str(raised.value).startswith(sentence)
    assert "\n" not in str(raised.value)
    assert [request["do"] for _, request in asked] == ["join"]


def test_live_objects_do_not_travel():
    from saeval.testing import TinyModel, TinySAE, evaluate_tiny

    with pytest.raises(
        SaevalError, match=r"engine 'local:2': the model that was passed as an object exists in this process alone"
    ):
        evaluate_tiny(["l0"], model=TinyModel(), saes={"a": TinySAE()}, engine="local:2")


def test_blocks_depend_on_the_rows_alone():
    assert blocks(np.array([0, 1, 2, 3, 4]), 2) == [Block(0, 2), Block(2, 4), Block(4, 5)]
    assert blocks(np.array([0, 0, 1, 1, 1, 2]), 4) == [Block(0, 5), Block(5, 6)]  # no document is split
    assert blocks(np.array([0, 1, 0, 1, 0, 1]), 2) == [Block(0, 2), Block(2, 4), Block(4, 6)]  # nor can one be whole
    assert blocks(np.array([0, 1, 2, 3]), 3, [1]) == [Block(0, 1), Block(1, 4)]
    assert blocks(np.array([], dtype=int), 3) == []


def test_the_makespan_waits_at_the_end_of_each_stage():
    assert makespan([[1.0] * 4, [3.0]], 2) == 5.0
    assert makespan([[1.0] * 4, [3.0]], 1) == 7.0
    assert makespan([[], [2.0]], 512) == 2.0
