"""The store: nothing half-written, nothing lost, whatever happens to the process."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import sys
import time

import numpy as np
import pytest
import torch
from long_run import work

from saeval import Mean, Metric, SaevalError, Scalar
from saeval.registry.registry import Registry
from saeval.results.leaderboard import boards
from saeval.results.result import Result
from saeval.results.store import Store
from saeval.testing import TinyModel, TinySAE, evaluate_tiny, tiny_plugins, tiny_tokens
from saeval.testing.claims import some


@pytest.mark.slow
def test_kill_minus_nine_ten_times_loses_nothing(tmp_path):
    processes = multiprocessing.get_context("forkserver")
    assert Registry(tiny_plugins()).metrics
    processes.set_forkserver_preload([name for name in sys.modules if name.startswith("saeval")])  # once for all
    out, log = tmp_path / "out", tmp_path / "log"
    chance = random.Random(0)

    def start(out, log):
        process = processes.Process(target=work, args=(out, log))
        process.start()
        return process

    for _ in range(10):
        began = log.stat().st_size if log.exists() else 0
        process = start(out, log)
        # A random moment of work, told by what is done and not by the clock, which runs differently on a busy machine.
        enough = began + chance.randrange(1, 23)
        while process.is_alive() and (not log.exists() or log.stat().st_size < enough):
            time.sleep(0.002)
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        for file in out.rglob("*.json"):
            json.loads(file.read_text())
    quiet, quiet_log = tmp_path / "quiet", tmp_path / "quiet-log"
    for arguments in ((out, log), (quiet, quiet_log)):
        process = start(*arguments)
        process.join()
        assert process.exitcode == 0

    cells = {c["key"]: c["cell"]["alias"] for c in Store(out / "evaluate").manifest()["cells"]}
    assert len(cells) == 15
    arrays = 0
    for key in some(cells):
        disturbed, undisturbed = (Store(d / "evaluate").read(key, arrays=True) for d in (out, quiet))
        assert disturbed.values == undisturbed.values, cells[key]
        assert disturbed.components == undisturbed.components
        for name, array in undisturbed.arrays.items():  # may be empty: they are counted
            np.testing.assert_array_equal(array, disturbed.arrays[name])
            arrays += 1
    assert arrays
    whole = quiet_log.stat().st_size
    assert whole == 3 * 50
    repeated = log.stat().st_size - whole
    # Ten kills may each cost what came after the last checkpoint, never the whole again.
    assert 0 <= repeated < whole / 2, f"{repeated} observations were repeated, the whole is {whole}"
    assert not list((out / "evaluate" / "passes").glob("*"))


def run(out, model=None, metrics=("l0", "ce"), **options):
    options = {"key": "these", **options}
    model = model or TinyModel()
    results = evaluate_tiny(list(metrics), model=model, rows=tiny_tokens(), out=out, **options)
    return results, sum(model.passes.values())


def test_a_second_run_takes_everything_from_the_store(tmp_path):
    first, passes = run(tmp_path)
    assert passes > 0
    again, passes = run(tmp_path)
    assert passes == again.forward_passes == 0
    assert [r.values for r in first] == [r.values for r in again]


def test_batch_size_alias_and_folder_are_not_part_of_a_key_and_parameters_are(tmp_path):
    run(tmp_path)
    _, passes = run(tmp_path, batch_size=3, metrics=["l0", {"ce": {"as": "loss"}}])
    assert passes == 0
    _, passes = run(tmp_path, metrics=[{"ce": {"ablation": "zero"}}])
    assert passes > 0
    _, passes = run(tmp_path, model=TinyModel(seed=1))
    assert passes > 0
    _, passes = run(tmp_path, saes=[TinySAE(seed=5)], key="another")
    assert passes > 0
    _, passes = run(tmp_path, fresh=True)
    assert passes > 0


class WeightNorm(Metric):
    """Norm of the decoder: no token has a part in it."""

    name, version = "weight_norm", 1

    def conclude(self, W_dec):
        return Scalar(float(W_dec.norm()))


@pytest.mark.parametrize("metric", ["l0", "ce", "weight_norm"])
def test_whatever_determines_a_number_is_in_its_key(tmp_path, metric):
    def key(**changed):
        options = {"rows": tiny_tokens(), "saes": {"a": TinySAE()}, "model": TinyModel(), "key": "these"}
        return evaluate_tiny([metric], WeightNorm, out=tmp_path, **{**options, **changed})[0].key

    changes = {
        "tokens": {"rows": tiny_tokens(seed=1)},
        "fewer": {"limit": 5},
        "model": {"model": TinyModel(seed=1)},
        "dtype": {"model": TinyModel(dtype=torch.float64)},
    }
    same = key()
    others = {name: key(**change) for name, change in changes.items()}
    if metric == "weight_norm":
        assert set(others.values()) == {same}
    else:
        assert len({same, *others.values()}) == 5, others
    assert key(key="another") != same
    assert key(saes={"b": TinySAE()}) != same
    assert key(saes={"a": TinySAE(d_sae=33)}) != same


def test_a_limit_is_the_number_of_sequences_that_run(tmp_path):
    model = TinyModel()
    (result,) = evaluate_tiny(["l0"], model=model, limit=5, batch_size=1)
    assert model.passes["cut"] == 5
    assert result.values["l0"]["n"] == sum(int(m.sum()) for m in [tiny_tokens().batch(range(5), "cpu").mask])


def test_a_pass_interrupted_while_it_concludes_is_not_streamed_again(tmp_path):
    class Interrupted(Metric):
        """Stops the run the first time it is to conclude."""

        name, version = "interrupted", 1

        def observe(self, activations, mask):
            return Mean.of(activations.norm(dim=-1), mask)

        def conclude(self, total):
            if not (tmp_path / "stopped").exists():
                (tmp_path / "stopped").touch()
                raise KeyboardInterrupt
            return Scalar(total.value)

    model = TinyModel()
    with pytest.raises(KeyboardInterrupt):
        evaluate_tiny(["interrupted"], Interrupted, model=model, out=tmp_path, key="these")
    passes = dict(model.passes)
    (result,) = evaluate_tiny(["interrupted"], Interrupted, model=model, out=tmp_path, key="these")
    assert result.status == "ok"
    assert model.passes == passes


def test_folds_are_stored_and_reused(tmp_path):
    run(tmp_path, metrics=["ce"])
    model = TinyModel()
    run(tmp_path, model=model, metrics=["ce", "reconstruction"])
    assert model.passes == {"clean": 0, "cut": 2, "resumed": 0}  # no second pass for the mean


def test_failed_cells_are_tried_again_and_undefined_ones_are_an_outcome(tmp_path):
    class Moody(Metric):
        name, version = "moody", 1
        broken = True

        def observe(self, mask):
            return Mean.of(mask.double())

        def conclude(self, total):
            if self.broken:
                raise RuntimeError("planted")
            return Scalar(total.value)

    rows = tiny_tokens()
    first = evaluate_tiny(["moody"], Moody, rows=rows, out=tmp_path)
    assert [r.status for r in first] == ["failed"]
    Moody.broken = False
    second = evaluate_tiny(["moody"], Moody, rows=rows, out=tmp_path)
    assert [r.status for r in second] == ["ok"]

    model = TinyModel()
    evaluate_tiny(["l0"], model=model, rows=rows, out=tmp_path, controls=["zero"], key="these")
    before = dict(model.passes)
    evaluate_tiny(["l0"], model=model, rows=rows, out=tmp_path, controls=["zero"], key="these")
    assert model.passes == before


@pytest.mark.parametrize("damage", [b"", b"{", b'{"schema": 1}', b"\x00\xff"])
def test_damaged_files_count_as_absent(tmp_path, damage):
    first, _ = run(tmp_path)
    folder = tmp_path / "evaluate"
    for file in [*folder.glob("*.json"), *folder.rglob("*.npz")]:
        if file.name != "manifest.json":
            file.write_bytes(damage)
    again, passes = run(tmp_path)
    assert passes > 0
    assert [r.values for r in first] == [r.values for r in again]


def test_a_result_records_what_it_takes_to_check_it(tmp_path):
    results, _ = run(tmp_path)
    record = json.loads((tmp_path / "evaluate" / f"{results[1].key}.json").read_text())
    fields = {"schema", "key", "status", "reason", "cell", "values", "components", "provenance"}
    assert set(record) == fields | {"headline", "arrays", "array_names", "checksum", "file_checksum"}
    assert {"suite", "subjects", "model", "data", "metric", "metric_version", "params"} <= set(record["cell"])
    assert record["cell"]["subjects"][0]["name"] == "tinysae"
    assert record["cell"]["subjects"][0]["hook_name"] == "blocks.1.hook_resid_pre"
    for value in some(record["values"].values()):
        assert {"value", "stderr", "ci95", "n", "unit", "better"} <= set(value)
    parts = {name: c["numerator"] / c["denominator"] for name, c in record["components"].items()}
    assert parts["sae"] - parts["clean"] == pytest.approx(record["values"]["delta_ce"]["value"])
    provenance = record["provenance"]
    assert provenance["libraries"]["torch"]
    assert provenance["tokens_sha256"]
    assert provenance["weights_sha256"] == {"tinysae": None}  # a live object is known by its key
    assert record["cell"]["subjects"][0]["live_key"] == "these"
    assert {"seconds", "batch_size", "device", "dtypes", "peak_memory_mib", "argv", "plugins"} <= set(provenance)


def test_an_unwritable_folder_is_the_users_mistake(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SaevalError, match="cannot be written"):
        run(tmp_path / "file")


def test_limited_runs_stay_out_of_leaderboards(tmp_path):
    store = Store(tmp_path)
    cell = {
        "model": None,
        "data": {"fingerprint": "x", "limit": 4},
        "metric": "m",
        "subjects": [{"name": "a", "hook_name": "h"}],
    }
    value = {"value": 1.0, "stderr": None, "ci95": None, "n": 1, "unit": "", "better": None}
    store.write(Result("k", "ok", cell, values={"m": value}))
    manifest = {"schema": 2, "suite": "s", "limit": 4, "leaderboard": {}, "cells": [{"key": "k", "cell": cell}]}
    store.write_manifest(manifest)
    with pytest.raises(SaevalError, match="limited to 4 sequences"):
        boards([tmp_path])
    (board,) = boards([tmp_path], include_limited=True)
    assert board.limited
    assert board.rows[0].entries["m.m"].value == 1.0


def test_a_folder_without_results_is_the_users_mistake(tmp_path):
    with pytest.raises(SaevalError, match="no manifest"):
        boards([tmp_path])
    assert os.listdir(tmp_path) == []
