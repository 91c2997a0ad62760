"""A failure inside a run costs its own cells and holds on to nothing."""

from __future__ import annotations

import gc
import weakref

import pytest

from saeval import Mean, Metric, Scalar
from saeval.testing import TinySAE, evaluate_tiny, tiny_tokens
from saeval.testing.claims import every, some

ALL = ["l0", "density", "reconstruction", "ce", {"ce": {"ablation": "zero", "as": "ce_zero"}}, "kl"]


def test_a_crash_costs_its_own_cells_only():
    class Crash(Metric):
        name, version = "crash", 1

        def observe(self, feature_acts, mask):
            raise RuntimeError("planted")

        def conclude(self, total):
            return Scalar(0.0)

    class LateCrash(Metric):
        name, version = "late_crash", 1

        def observe(self, mask):
            return Mean.of(mask.double())

        def conclude(self, total):
            raise ZeroDivisionError("planted")

    results = evaluate_tiny(["crash", "l0", "late_crash", "ce"], Crash, LateCrash, batch_size=4)
    status = {r.metric: r.status for r in results}
    assert status == {"crash": "failed", "late_crash": "failed", "l0": "ok", "ce": "ok"}
    assert "planted" in results.failed[0].reason
    assert "RuntimeError" in results.failed[0].traceback
    assert "FAILED" in results.leaderboard()
    clean = evaluate_tiny(["l0", "ce"], batch_size=4)
    assert results.value("ce.delta_ce") == clean.value("ce.delta_ce")


def test_evidence_that_does_not_add_up_costs_its_own_cell():
    class Fickle(Metric):
        name, version = "fickle", 1

        def observe(self, mask, batch):
            return {f"from-{batch.sequence_ids[0]}": Mean.of(mask.double())}

        def conclude(self, total):
            return Scalar(0.0)

    class Plain(Metric):
        name, version = "plain", 1

        def observe(self, mask):
            return 3.0

        def conclude(self, total):
            return Scalar(total)

    results = evaluate_tiny(["fickle", "plain", "l0"], Fickle, Plain, batch_size=8)
    assert [r.status for r in results] == ["failed", "failed", "ok"]
    assert "names must not change" in results[0].reason
    assert "return an Evidence" in results[1].reason


def test_a_crashing_sae_spares_the_others_of_its_batch():
    class Broken(TinySAE):
        def decode(self, feature_acts):
            raise RuntimeError("planted")

    results = evaluate_tiny(["ce", "l0"], saes={"good": TinySAE(), "bad": Broken(seed=1)})
    status = {(r.subject, r.metric): r.status for r in results}
    assert status[("bad", "ce")] == "failed"
    assert status[("bad", "l0")] == status[("good", "ce")] == status[("good", "l0")] == "ok"


def broken_sae(value):
    class Broken(TinySAE):
        """One number of its reconstruction is not finite."""

        def decode(self, acts):
            out = super().decode(acts)
            out[0, 1, 0] = value
            return out

    return Broken(seed=3)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_sae_that_gives_no_number_costs_its_own_cells(value):
    results = evaluate_tiny(ALL, saes={"good": TinySAE(), "bad": broken_sae(value)})
    alone = evaluate_tiny(ALL, saes={"good": TinySAE()})
    for result in some(r for r in results if r.subject == "good"):
        (same,) = [r for r in alone if r.metric == result.metric]
        assert result.status == same.status
        assert result.values == same.values
    (reconstruction,) = [r for r in results if (r.metric, r.subject) == ("reconstruction", "bad")]
    assert reconstruction.status == "undefined"
    assert "NaN or infinite values in the reconstruction of " in reconstruction.reason


def test_evidence_that_cannot_be_stored_is_its_own_cells_failure():
    import dataclasses

    from saeval import Evidence

    @dataclasses.dataclass
    class Loose(Evidence):
        things: dict

    class Odd(Metric):
        name, version = "odd", 1

        def observe(self, mask):
            return Loose({"a": 1})

        def conclude(self, total):
            return Scalar(1.0)

    results = evaluate_tiny(["odd", "l0"], Odd, checkpoint_seconds=0.0, batch_size=4)
    assert [r.status for r in results] == ["failed", "ok"]
    assert "cannot be stored" in results[0].reason


@pytest.mark.parametrize("checkpoint_seconds", [0.0, 1e9], ids=["saved", "never-saved"])
def test_a_sum_that_cannot_be_stored_is_its_own_cells_failure_and_is_seldom_asked_for(checkpoint_seconds):
    import dataclasses

    from saeval import Evidence

    asked = []

    @dataclasses.dataclass
    class Growing(Evidence):
        count: int

        def __add__(self, other):
            return Growing(self.count + other.count)

        def state(self):
            asked.append(self.count)
            return {"count": {"a": 1} if self.count > 2 else self.count}

    class Odd(Metric):
        name, version = "odd", 1

        def observe(self, mask):
            return Growing(1)

        def conclude(self, total):
            return Scalar(1.0)

    rows = tiny_tokens()
    results = evaluate_tiny(["odd", "l0"], Odd, rows=rows, checkpoint_seconds=checkpoint_seconds, batch_size=1)
    assert [r.status for r in results] == ["failed", "ok"]
    assert "cannot be stored" in results[0].reason
    batches = len(rows)
    assert batches > 4
    if checkpoint_seconds:  # a state may be costly: of the sums, the last one's alone
        assert asked == [1] * batches + [batches]


def test_a_failure_holds_on_to_no_batch():
    alive = []

    class Leaky(Metric):
        name, version = "leaky", 1

        def observe(self, activations):
            large = activations * 2
            alive.append(weakref.ref(large))
            raise RuntimeError("planted")

        def conclude(self, total):
            return Scalar(0.0)

    class Watch(Metric):
        name, version = "watch", 1

        def observe(self, mask, batch):
            gc.collect()
            if batch.sequence_ids[0] > 0:
                assert every(ref() is None for ref in alive)
            return Mean.of(mask.double())

        def conclude(self, total):
            return Scalar(total.value)

    results = evaluate_tiny(["leaky", "watch"], Leaky, Watch, batch_size=8)
    assert [r.status for r in results] == ["failed", "ok"], results[1].traceback
    assert "large = activations * 2" not in (results[1].traceback or "")
    assert "planted" in results[0].traceback
