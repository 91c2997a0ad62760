"""State kept between calls would make numbers depend on the order of batches and SAEs: it fails the cell."""

from __future__ import annotations

import functools
import itertools

import numpy as np
import pytest
import torch

from saeval import Mean, Metric, Scalar
from saeval.interfaces.substitute import Control, Substitute
from saeval.testing import TinySAE, evaluate_tiny
from saeval.testing.claims import some

SAES = {"a": TinySAE(seed=0), "b": TinySAE(seed=1)}


class Concluding(Metric):
    """A metric whose `observe` each test writes."""

    version = 1

    def conclude(self, total):
        return Scalar(total.value)


class Summing(Concluding):
    """Sums on `self`, as a notebook would."""

    name = "summing"

    def __init__(self):
        self.sum = 0.0

    def observe(self, feature_acts, mask):
        self.sum += float(feature_acts.sum())
        return Mean.of(feature_acts.sum(-1) + self.sum, mask)


class Listing(Concluding):
    name = "listing"

    def __init__(self):
        self.seen = []

    def observe(self, feature_acts, mask):
        self.seen.append(float(feature_acts.sum()))
        return Mean.of(feature_acts.sum(-1) + sum(self.seen), mask)


class OfClass(Concluding):
    name = "of_class"
    seen: dict[str, float] = {}  # noqa: RUF012

    def observe(self, feature_acts, mask):
        self.seen["sum"] = self.seen.get("sum", 0.0) + float(feature_acts.sum())
        return Mean.of(feature_acts.sum(-1) + self.seen["sum"], mask)


class Accumulating(Concluding):
    name = "accumulating"

    def __init__(self):
        self.total = torch.zeros(32)

    def observe(self, feature_acts, mask):
        self.total.numpy()[:] += 1
        return Mean.of(feature_acts.sum(-1) + self.total[0], mask)


class Drawing(Concluding):
    name = "drawing"

    def __init__(self):
        self.random = np.random.default_rng(0)

    def observe(self, feature_acts, mask):
        return Mean.of(feature_acts.sum(-1) * self.random.random(), mask)


class Tally:
    def __init__(self):
        self.count = 0


class Holding(Concluding):
    name = "holding"

    def __init__(self):
        self.tally = Tally()

    def observe(self, feature_acts, mask):
        self.tally.count += 1
        return Mean.of(feature_acts.sum(-1) + self.tally.count, mask)


class Counting(Concluding):
    name = "counting"

    def __init__(self):
        self.numbers = itertools.count()

    def observe(self, feature_acts, mask):
        return Mean.of(feature_acts.sum(-1) + next(self.numbers), mask)


class Late(Concluding):
    """Changes itself in a later batch only."""

    name = "late"

    def __init__(self):
        self.seen = []

    def observe(self, feature_acts, mask, batch):
        if batch.sequence_ids[0] > 0:
            self.seen.append(1)
        return Mean.of(feature_acts.sum(-1) + len(self.seen), mask)


STATEFUL = [Summing, Listing, OfClass, Accumulating, Drawing, Holding, Counting, Late]


@pytest.mark.parametrize("metric", STATEFUL)
def test_a_metric_that_keeps_state_fails_and_the_others_do_not(metric):
    results = evaluate_tiny([metric.name, "l0"], metric, saes=SAES, batch_size=7)
    status = {(r.metric, r.subject): r.status for r in results}
    assert status == {(m, s): "ok" if m == "l0" else "failed" for m in (metric.name, "l0") for s in SAES}
    for result in some(results.failed):
        assert "would depend on their order" in result.reason


def test_the_reason_names_the_attribute_and_the_remedy():
    (failed,) = evaluate_tiny(["summing"], Summing).failed
    assert failed.reason == (
        "StateChangedError: 'summing' sets its attribute 'sum' during a run, but one object serves every batch and "
        "every SAE, so its numbers would depend on their order; return what you count as evidence (Mean, Ratio, ...), "
        "and set constants in __init__"
    )


class Best(Metric):
    """Remembers the best SAE so far in `conclude`."""

    name, version = "best", 1

    def __init__(self):
        self.norms = []

    def conclude(self, W_dec):
        self.norms.append(float(W_dec.norm()))
        return Scalar(max(self.norms))


def test_conclude_keeps_no_state_either():
    results = evaluate_tiny(["best"], Best, saes=SAES)
    assert [r.status for r in results] == ["failed", "failed"]


class Cached(Concluding):
    """A constant that is computed late."""

    name = "cached"

    def __init__(self, factor: float = 2.0):
        self.factor = factor

    @functools.cached_property
    def table(self):
        return torch.full((32,), self.factor)

    def observe(self, feature_acts, mask):
        return Mean.of((feature_acts * self.table).sum(-1), mask)


def test_a_cached_property_is_no_state():
    results = evaluate_tiny(["cached"], Cached, saes=SAES, batch_size=7)
    assert [r.status for r in results] == ["ok", "ok"], results[0].reason


def counted(feature_acts):
    """A quantity that counts its calls on itself."""
    counted.calls = getattr(counted, "calls", 0) + 1
    return feature_acts * counted.calls


class Counted(Concluding):
    name = "counted"

    def observe(self, counted, mask):
        return Mean.of(counted.sum(-1), mask)


def test_a_quantity_keeps_no_state():
    results = evaluate_tiny(["counted", "l0"], Counted, quantities=[counted], saes=SAES, batch_size=7)
    assert {r.metric for r in results.failed} == {"counted"}
    assert "'counted' changes 'calls', which outlives the call" in results.failed[0].reason


def remembered(feature_acts, seen=[]):  # noqa: B006
    """A quantity with a default that it changes."""
    seen.append(1)
    return feature_acts * len(seen)


class Remembered(Concluding):
    name = "remembered"

    def observe(self, remembered, mask):
        return Mean.of(remembered.sum(-1), mask)


def test_a_default_is_no_memory():
    results = evaluate_tiny(["remembered", "l0"], Remembered, quantities=[remembered], saes=SAES, batch_size=7)
    assert {r.metric for r in results.failed} == {"remembered"}
    assert "'remembered' writes in place into 'seen'" in results.failed[0].reason


class Scaled(Substitute):
    name = "scaled"

    def __init__(self, factor):
        self.factor = factor

    def decode(self, encoding, activations):
        return activations * self.factor


class Wandering(Control):
    """Draws in `build` from a generator that `__init__` made: another draw in every pass."""

    name = "wandering"

    def __init__(self):
        self.random = np.random.default_rng(0)

    def build(self, hook_name):
        return Scaled(float(self.random.random()))


def test_a_control_keeps_no_state():
    results = evaluate_tiny(["reconstruction"], control_classes=[Wandering], controls=["wandering"])
    assert [(r.subject, r.status) for r in results] == [("tinysae", "ok"), ("wandering", "failed")]
    assert "would depend on their order" in results[1].reason
