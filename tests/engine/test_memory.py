"""Memory: a batch that does not fit is done again in smaller ones, and nothing else changes."""

from __future__ import annotations

import json
import platform
import subprocess
import sys

import pytest
import torch

from saeval import Mean, Metric, SaevalError, Scalar, cli
from saeval.base import memory
from saeval.results.store import Store
from saeval.testing import TinyModel, TinySAE, evaluate_tiny, tiny_tokens
from saeval.testing.claims import every, numbers

METRICS = ["l0", "density", "reconstruction", "ce", "kl"]
ERRORS = {
    "torch": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    "runtime": RuntimeError("MPS backend out of memory (MPS allocated: 9.0 GB)"),
    "cpu": RuntimeError(
        "[enforce fail at alloc_cpu.cpp:118] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to "
        "allocate 8796093022208 bytes. Error code 12 (Cannot allocate memory)"
    ),
    "numpy": MemoryError("Unable to allocate 8.00 TiB for an array"),
}


def crowded(most, error=ERRORS["torch"], seen=None):
    """A metric and its quantity, which has room for so many sequences."""

    def roomy(activations, batch):
        """The activations, where there is room."""
        if len(activations) > most:
            raise error
        if seen is not None:
            seen.extend(batch.sequence_ids.tolist())
        return activations

    class Crowded(Metric):
        name, version = "crowded", 1

        def observe(self, roomy, mask):
            return Mean.of(roomy.norm(dim=-1), mask)

        def conclude(self, total):
            return Scalar(total.value)

    return {"classes": (Crowded,), "quantities": [roomy]}


def run(most=None, error=ERRORS["torch"], seen=None, **options):
    plugin = crowded(most if most is not None else 10**9, error, seen)
    options = {"rows": tiny_tokens(rows=50, documents=20), "controls": ["mean"], "batch_size": 16, **options}
    return evaluate_tiny([*METRICS, "crowded"], *plugin["classes"], quantities=plugin["quantities"], **options)


def assert_same(found, expected, tolerance=1e-6):
    assert [one.status for one in found] == [other.status for other in expected]
    for _, (record, its) in numbers(expected, found):
        assert its["n"] == record["n"]
        assert its["value"] == pytest.approx(record["value"], abs=tolerance, rel=tolerance)


@pytest.fixture(scope="module")
def roomy():
    return run()


@pytest.mark.parametrize("error", ERRORS.values(), ids=ERRORS)
def test_a_batch_that_does_not_fit_is_halved_and_every_sequence_is_seen_once(roomy, error):
    seen = []
    found = run(5, error, seen, saes=[TinySAE()], controls=[])
    assert sorted(seen) == list(range(50))
    assert {r.status for r in found} == {"ok"}
    provenance = next(r for r in found if r.metric == "crowded").provenance
    assert provenance["out_of_memory"] == [[0, 16, 8], [0, 8, 4]]
    assert provenance["batch_size"] == 4
    assert_same(found, [r for r in roomy if r.subject == "tinysae"])
    assert "out_of_memory" not in roomy[0].provenance


class FullModel(TinyModel):
    """Runs out of memory above so many sequences, in the clean pass or where it resumes."""

    def __init__(self, most, where):
        super().__init__()
        self.most, self.where = most, where
        self.asked = []

    def _room(self, where, count):
        self.asked.append(count)
        if where == self.where and count > self.most:
            raise ERRORS["torch"]

    def capture(self, batch, hooks, final, resumable=()):
        self._room("capture", len(batch.tokens))
        return super().capture(batch, hooks, final, resumable)

    def resumed(self, batch, captured, hook_name, activations, hooks=()):
        self._room("resume", len(batch.tokens))
        return super().resumed(batch, captured, hook_name, activations, hooks)


@pytest.mark.parametrize("where", ["capture", "resume"])
def test_the_model_may_run_out_too(roomy, where):
    model = FullModel(7, where)
    found = run(model=model)
    assert_same(found, roomy)
    # What did not fit in the preflight, on the first batch of the pass for the mean, is not tried again.
    assert model.asked[: 3 + (where == "resume")] == ([16, 8, 4] if where == "capture" else [16, 16, 16, 8])
    assert not [r for r in found if "out_of_memory" in r.provenance]
    assert {r.provenance["batch_size"] for r in found} == {4}


def test_what_runs_out_with_one_sequence_is_one_sentence_and_keeps_what_is_done(tmp_path):
    class Late(TinyModel):
        """Has no room from the thirtieth sequence on."""

        room = 30

        def capture(self, batch, hooks, final, resumable=()):
            if batch.sequence_ids.max() >= self.room:
                raise ERRORS["torch"]
            return super().capture(batch, hooks, final, resumable)

    rows = tiny_tokens(rows=50, documents=20)
    with pytest.raises(SaevalError) as raised:
        evaluate_tiny(["l0"], model=Late(), rows=rows, batch_size=16, out=tmp_path, key="these")
    said = str(raised.value)
    assert "\n" not in said
    assert said.startswith("out of memory with batch size 1 on cpu (CUDA out of memory.")
    assert "shorten data.context" in said
    store = Store(tmp_path / "evaluate")
    (checkpoint,) = store.checkpoints()
    assert store.checkpoint(checkpoint)[0]["place"]["row"] == 30
    model = Late()
    model.room = 50
    (result,) = evaluate_tiny(["l0"], model=model, rows=rows, batch_size=16, out=tmp_path, key="these")
    assert model.passes["cut"] == 20  # goes on, with the batch size it had found
    assert result.values == evaluate_tiny(["l0"], rows=rows, batch_size=16)[0].values


def test_an_interrupted_run_remembers_the_size_that_fits(tmp_path):
    class Stops(FullModel):
        def capture(self, batch, hooks, final, resumable=()):
            if batch.sequence_ids.max() >= 30 and self.where == "capture":
                raise KeyboardInterrupt
            return super().capture(batch, hooks, final, resumable)

    rows = tiny_tokens(rows=50, documents=20)
    with pytest.raises(KeyboardInterrupt):
        evaluate_tiny(METRICS, model=Stops(5, "capture"), rows=rows, batch_size=16, out=tmp_path, key="these")
    again = FullModel(5, "capture")
    found = evaluate_tiny(METRICS, model=again, rows=rows, batch_size=16, out=tmp_path, key="these")
    straight = evaluate_tiny(METRICS, model=FullModel(5, "capture"), rows=rows, batch_size=16)
    assert max(again.asked) <= 4
    assert [r.values for r in found] == [r.values for r in straight]


def test_other_errors_are_still_their_own_cells(roomy):
    found = run(5, RuntimeError("planted"))
    assert {r.metric for r in found.failed} == {"crowded"}
    assert every(r.provenance["batch_size"] == 16 for r in found)
    kept = [r for r in found if r.metric != "crowded"]
    assert_same(kept, [r for r in roomy if r.metric != "crowded"])


def test_a_conclusion_that_runs_out_is_its_own_cells_failure():
    class Greedy(Metric):
        name, version = "greedy", 1

        def observe(self, mask):
            return Mean.of(mask.double())

        def conclude(self, total):
            raise ERRORS["cpu"]

    found = evaluate_tiny(["greedy", "l0"], Greedy)
    assert [r.status for r in found] == ["failed", "ok"]
    assert "can't allocate memory" in found[0].reason


def test_auto_takes_as_many_as_memory_has_room_for(monkeypatch, tmp_path):
    rows = tiny_tokens(rows=50, documents=20)
    first = evaluate_tiny(METRICS, rows=rows, batch_size="auto", out=tmp_path, key="these")
    assert {r.provenance["batch_size"] for r in first} == {32}
    assert {r.provenance["batch_asked"] for r in first} == {"auto"}
    model = TinyModel()
    monkeypatch.setattr("saeval.plan.batch_size.available", lambda device: 0)
    again = evaluate_tiny(METRICS, model=model, rows=rows, batch_size="auto", out=tmp_path, key="these")
    assert sum(model.passes.values()) == 0  # it is part of no key
    assert [r.key for r in again] == [r.key for r in first]
    small = evaluate_tiny(METRICS, rows=rows, batch_size="auto")
    assert {r.provenance["batch_size"] for r in small} == {1}
    assert_same(small, first)


def test_auto_backs_off_where_its_estimate_was_wrong(roomy):
    found = run(5, batch_size="auto")
    assert_same(found, roomy)
    crowded = [r.provenance for r in found if r.metric == "crowded"]
    assert {json.dumps(p["out_of_memory"]) for p in crowded} == {"[[0, 32, 16], [0, 16, 8], [0, 8, 4]]"}


def test_the_free_memory_of_a_container_is_its_own(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    machine = memory.available("cpu")
    assert machine > 2**20
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("700000\n")
    assert memory.available("cpu") > 2**20
    (tmp_path / "memory.max").write_text("1000000\n")
    (tmp_path / "memory.stat").write_text("anon 5\ninactive_file 100000\n")
    assert memory.available("cpu") == 1000000 - 700000 + 100000


SUITE = """\
suite: small
model: {use: testbed}
data: {use: python-stdlib, context: 32, sequences: 12}
saes: [testbed/relu-5]
metrics: [l0]
batch: 4
"""


def test_a_suite_and_the_command_line_say_how_large(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.yaml").write_text(SUITE)

    def sizes(*arguments):
        assert cli.main(["run", "small.yaml", "--fresh", *arguments]) == 0
        records = [json.loads(f.read_text()) for f in (tmp_path / "results" / "small").glob("*.json")]
        capsys.readouterr()
        return {(r["provenance"]["batch_size"], r["key"]) for r in records if "key" in r}

    ((four, key),) = sizes()
    ((two, same),) = sizes("--batch-size", "2")
    ((auto, still),) = sizes("--batch-size", "auto")
    assert (four, two, auto) == (4, 2, 8)
    assert key == same == still
    assert cli.main(["check", "small.yaml", "--set", "batch=auto"]) == 0
    assert "batch size: auto starts with 8 sequences" in capsys.readouterr().out
    assert cli.main(["check", "small.yaml", "--set", "batch=many"]) == 2
    assert "'batch': expected a number of sequences, or auto, got 'many'" in capsys.readouterr().err
    (tmp_path / "small.yaml").write_text(SUITE.replace("batch: 4", "batch: 0"))
    assert cli.main(["check", "small.yaml"]) == 2
    assert capsys.readouterr().err.startswith("small.yaml:6:8: 'batch': expected a number of sequences")
    with pytest.raises(
        SaevalError, match="batch_size must be a number of sequences or 'auto', such as batch_size=16; got 0"
    ):
        evaluate_tiny(["l0"], batch_size=0)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="sets parameters of glibc")
def test_the_pages_of_freed_blocks_are_used_again():
    program = """
import resource
from saeval.base.memory import keep_freed_memory
keep_freed_memory()
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    bytearray(2**26)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(faults(), faults())
"""
    first, second = map(int, subprocess.check_output([sys.executable, "-c", program], text=True).split())
    assert first > 10 * second
