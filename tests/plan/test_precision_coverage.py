"""What adaptive stopping does to intervals, on the testbed's real losses: 200 orders of one text, 2,000 larger texts.

One run of the testbed with every sequence as a document of its own gives each sequence's loss; any order of the
sequences, and the stop in it, then follows by arithmetic.
"""

from __future__ import annotations

import numpy as np
import pytest

import saeval
from saeval import Mean
from saeval.base.run_options import RunOptions
from saeval.plan.plan import plan
from saeval.plan.precision import precise, stopping_points
from saeval.registry.discovery import Plugins
from saeval.registry.registry import Registry
from saeval.suite.schema import validate
from saeval.suite.yaml_marks import Marks
from saeval.testing import evaluate, register_rows, tiny_plugins
from saeval.testing.claims import some
from saeval.text.tokens import TokenDataset

pytestmark = pytest.mark.slow

SUITE = {
    "suite": "adaptive",
    "model": {"use": "testbed"},
    "data": {"use": "python-stdlib", "context": 32, "sequences": 1024},
    "saes": ["testbed/topk-32", "testbed/relu-1"],
    "metrics": ["ce"],
}
TARGET = {"ce.delta_ce": 0.01}


class Text:
    """Sequences of known documents, with each subject's added loss (nats) and the tokens of each."""

    def __init__(self, clusters, losses, tokens):
        self.clusters, self.losses, self.tokens = clusters, losses, tokens
        self.truth = losses.sum(0) / tokens.sum()

    def estimates(self, rows, documents=None):
        """Of every subject, from these sequences alone."""
        documents = self.clusters[rows] if documents is None else documents
        count = int(documents.max()) + 1
        n = np.bincount(documents, self.tokens[rows], count)
        above = np.stack([np.bincount(documents, loss, count) for loss in self.losses[rows].T], axis=1)
        evidence = Mean(above, np.repeat(n[:, None], above.shape[1], axis=1), n.astype(int))
        return [evidence[k].value for k in range(len(evidence))]

    def stopped(self, rows, targets, documents=None):
        """Where a stream in this order stops, by the engine's own rule, and the estimates there; None at its end."""
        documents = self.clusters[rows] if documents is None else documents
        history = []
        for look in stopping_points(documents):
            end = look.sequences
            found = self.estimates(rows[:end], documents[:end])
            history.append({"ce.delta_ce": max(one.stderr for one in found)})
            if precise(history, targets):
                return end, found
        return None

    def covered(self, found):
        return [one.ci95[0] <= truth <= one.ci95[1] for one, truth in zip(found, self.truth, strict=True)]


@pytest.fixture(scope="module")
def text():
    streams = plan(validate(SUITE, Marks("s")), Registry(Plugins()), RunOptions()).streams
    rows = streams.evaluation
    apart = TokenDataset(rows.tokens, rows.documents, np.arange(len(rows)), rows.excluded)
    data = register_rows("each-its-own", apart, streams.fit)
    results = evaluate(
        model="testbed", saes=SUITE["saes"], data=data, metrics=["ce"], plugins=tiny_plugins(), batch_size=32
    )
    assert not results.failed
    tokens = apart.batch(range(len(apart)), "cpu").mask.sum(1).numpy()
    estimates = [result.estimate("delta_ce") for result in results]
    losses = [one.value * tokens.sum() - one.without * (tokens.sum() - tokens) for one in estimates]
    return Text(np.asarray(rows.clusters), np.stack(losses, axis=1), tokens)


def test_a_real_run_stops_early_and_where_its_losses_say(text, tmp_path):
    results = saeval.run({**SUITE, "precision": TARGET}, out=tmp_path)
    assert not results.failed
    end, estimates = text.stopped(np.arange(1024), TARGET)
    assert results.sample["stopped_adaptively"]
    assert results.sample["sequences"] == end < 1024
    assert results.sample["tokens"] == text.tokens[:end].sum()
    for result, one in some(zip(results, estimates, strict=True)):
        assert result.values["delta_ce"]["value"] == pytest.approx(one.value, abs=1e-6)
        assert result.values["delta_ce"]["stderr"] == pytest.approx(one.stderr, abs=1e-6)
        assert result.values["delta_ce"]["stderr"] <= 0.01
    print(f"\nstopped at {end} of 1024 sequences, {results.sample['documents']} documents")


def test_intervals_of_200_orders_of_one_text_cover_the_value_of_all_of_it(text):
    covered, ends = [], []
    for seed in range(200):
        stop = text.stopped(np.random.default_rng(seed).permutation(1024), TARGET)
        ends.append(1024 if stop is None else stop[0])
        covered += [text.covered(stop[1])] if stop else []
    print(f"\n200 orders: {len(covered)} stop early, after {np.mean(ends):.0f} sequences; {np.mean(covered):.3f} cover")
    assert len(covered) > 150
    assert np.mean(covered) > 0.95


@pytest.mark.parametrize("target", [0.008, 0.006])
def test_intervals_cover_the_value_of_a_text_far_larger_than_what_is_taken(text, target):
    """2,000 streams of documents drawn from the text's own, as from a corpus of that kind without end."""
    own = [np.flatnonzero(text.clusters == c) for c in range(text.clusters.max() + 1)]
    covered, taken, fixed = [], [], []
    for seed in range(2000):
        drawn = np.random.default_rng(seed).integers(0, len(own), 1025)
        rows = np.concatenate([own[c] for c in drawn])
        documents = np.repeat(np.arange(1025), [len(own[c]) for c in drawn])
        end, found = text.stopped(rows, {"ce.delta_ce": target}, documents)
        covered.append(text.covered(found))
        first = documents < 256
        fixed.append(text.covered(text.estimates(rows[first], documents[first])))
        taken.append(documents[end - 1] + 1)
    counts = dict(zip(*np.unique(taken, return_counts=True), strict=True))
    print(f"\n± {target}: {np.mean(covered):.4f} cover, of a fixed 256 documents {np.mean(fixed):.4f}; stops {counts}")
    assert 0.93 <= np.mean(covered) <= 0.97
