"""`score_share`: predictions scored at a share of the positions, everything else at all of them."""

from __future__ import annotations

import dataclasses
import re

import numpy as np
import pytest
import torch

from saeval import Mean, Metric, SaevalError, Scalar, cli
from saeval.interfaces.token_scores import score_tokens
from saeval.plan.streams import First, Scored
from saeval.stats.randomness import hashed
from saeval.testing import TinyModel, TinySAE, evaluate, register_rows, tiny_plugins, tiny_tokens
from saeval.testing.claims import every, numbers, some

SAES = {"a": TinySAE(), "b": TinySAE(seed=1)}
METRICS = ["l0", "reconstruction", {"ce": {"ablation": "zero"}}, {"kl": {"ablation": "zero"}}, "sparsity_frontier"]


class CountingModel(TinyModel):
    """Counts the tokens whose logits are computed."""

    unembedded = 0

    def unembed(self, hidden):
        self.unembedded += len(hidden)
        return super().unembed(hidden)


class Checked(Metric):
    """Compares the scores with those of all positions."""

    name, sampled_scores = "checked", True

    def observe(self, model, batch, clean_final, clean_scores, spliced_final, spliced_scores, mask):
        everything = score_tokens(
            model, dataclasses.replace(batch, sampled=None), clean_final, [clean_final, spliced_final]
        )
        for whole, some_scores in zip(everything, [clean_scores, spliced_scores], strict=True):
            chosen = some_scores.mask
            assert not bool((chosen & ~mask).any())
            for name in ("nll", "kl", "top1_agreement", "top1_correct"):
                expected = torch.where(chosen, getattr(whole, name), 0)
                torch.testing.assert_close(getattr(some_scores, name), expected.to(getattr(whole, name).dtype))
        return Mean.of(clean_scores.nll, clean_scores.mask)

    def conclude(self, total):
        return {"nll": Scalar(total.value)}


class Unaware(Metric):
    name = "unaware"

    def observe(self, spliced_scores, mask):
        return Mean.of(spliced_scores.nll, mask)

    def conclude(self, total):
        return {"nll": Scalar(total.value)}


def run(share=None, metrics=METRICS, model=None, **options):
    data = register_rows("rows of score_share", tiny_tokens(rows=40, documents=20))
    share = {} if share is None else {"score_share": share}
    return evaluate(
        model=model or TinyModel(), saes=SAES, data={**data, **share}, metrics=metrics, controls=["mean"],
        plugins=tiny_plugins(Checked, Unaware), allow=("*",), **options,
    )  # fmt: skip


@pytest.fixture(scope="module")
def sampled():
    return run(0.25)


def test_scores_are_computed_at_the_chosen_positions_alone():
    assert not run(0.25, ["checked"]).failed
    models = {share: CountingModel() for share in (0.25, 1)}
    for share, model in some(models).items():
        assert not run(share, ["ce"], model, preflight="off").failed
    assert 0 < models[0.25].unembedded < 0.35 * models[1].unembedded


def test_what_needs_no_scores_stays_on_all_positions(sampled):
    whole = run()
    same = {name for name, (quarter, full) in numbers(sampled, whole) if quarter["value"] == full["value"]}
    assert {"l0.l0", "reconstruction.explained_variance", "sparsity_frontier.l0"} <= same
    assert "sparsity_frontier.explained_variance" in same
    assert every(not name.startswith(("ce.", "kl.")) for name in same)
    n = {result.values["ce_sae"]["n"] for run_ in (sampled, whole) for result in run_ if result.metric == "ce"}
    assert len(n) == 2
    assert 0.15 < min(n) / max(n) < 0.35


def test_the_choice_does_not_depend_on_the_batch(sampled):
    for name, (first, second) in numbers(sampled, run(0.25, batch_size=7)):
        assert second["value"] == pytest.approx(first["value"], rel=1e-5, abs=1e-7), name
        assert second["n"] == first["n"], name


def test_the_choice_depends_on_the_sequence_and_the_position_alone():
    rows = tiny_tokens(rows=30, extra_padding=3)
    whole = Scored(rows, 0.25).batch(range(30), "cpu")
    backwards = Scored(rows, 0.25).batch(range(29, -1, -1), "cpu")
    limited = First(Scored(rows, 0.25), 10).batch(range(10), "cpu")
    more = Scored(rows, 0.5).batch(range(30), "cpu")
    assert torch.equal(whole.sampled, backwards.sampled.flip(0))
    assert torch.equal(whole.sampled[:10], limited.sampled)
    assert torch.equal(whole.sampled & more.sampled, whole.sampled)
    assert torch.equal(whole.sampled & whole.mask, whole.sampled)
    assert 0.15 < int(whole.sampled.sum()) / int(whole.mask.sum()) < 0.35


def test_the_share_is_part_of_the_key_and_1_is_the_default(sampled):
    keys = {
        share: [result.key for result in run(share, preflight="off", limit=4, key="pinned")]
        for share in (None, 1, 0.25)
    }
    assert keys[None] == keys[1]
    assert len({*keys[1], *keys[0.25]}) == 2 * len(keys[1])
    assert {result.cell["data"]["score_share"] for result in some(sampled)} == {0.25}


def test_documents_without_a_chosen_position_count_nothing():
    results = run(0.02, ["ce", "l0"])
    assert not results.failed
    assert 0 < results.value("ce.ce_sae", "a")["n"] < 20


def test_a_share_that_scores_no_position_is_refused():
    with pytest.raises(
        SaevalError, match="'score_share: 1e-09' scores none of the 332 positions in the mask of 40 rows"
    ):
        run(1e-9, ["ce"])


@pytest.mark.parametrize(
    ("metric", "name"),
    [("unaware", "unaware"), ({"perturbation": {"positions": 1}}, "perturbation"), ("saelens_downstream",) * 2],
)
def test_a_metric_that_needs_all_scores_is_refused(metric, name):
    with pytest.raises(SaevalError, match=rf"'{name}' needs the scores of all tokens, but data.score_share is 0.25"):
        run(0.25, ["l0", metric])
    assert not run(1, [metric], preflight="off", limit=4).failed


@pytest.mark.parametrize("share", [0, -0.5, 1.5, "half", True])
def test_a_share_outside_its_range_is_refused(share):
    with pytest.raises(SaevalError, match="'score_share' is a number above 0 and at most 1"):
        run(share)


def test_a_share_that_scores_no_position_is_refused_when_the_suite_is_planned(tmp_path, capsys):
    (tmp_path / "s.yaml").write_text(
        "suite: s\nmodel: testbed\nsaes: [testbed/relu-3]\nmetrics: [l0]\n"
        "data: {use: python-stdlib, context: 16, sequences: 4, score_share: 1e-300}\n"
    )
    assert cli.main(["check", str(tmp_path / "s.yaml")]) == 2
    place, _, said = capsys.readouterr().err.strip().partition(": ")
    assert place == f"{tmp_path / 's.yaml'}:5:68"
    assert re.fullmatch(
        r"'score_share: 1e-300' scores none of the \d\d positions in the mask of 4 rows; choose .*", said
    )


def test_a_mean_over_a_quarter_of_the_positions_is_unbiased_and_its_interval_covers():
    random = np.random.default_rng(0)
    documents, positions, runs, errors = 30, 64, 500, {0.25: [], 1.0: []}
    covered, values = {0.25: 0, 1.0: 0}, []
    for index in range(runs):
        noise = random.standard_normal((documents, positions + 8))
        near = sum(noise[:, lag : lag + positions] for lag in range(8)) / 8**0.5  # neighbours correlate
        x = torch.from_numpy(0.3 * random.standard_normal((documents, 1)) + near)
        keys = hashed("score_share", np.arange(documents)[:, None] + documents * index, np.arange(positions))
        for share in covered:
            estimate = Mean.of(x, torch.from_numpy(keys < share * 2.0**64) if share < 1 else None).value
            low, high = estimate.ci95
            covered[share] += low <= 0 <= high
            errors[share].append(estimate.stderr)
            if share < 1:
                values.append(estimate.value)
    assert abs(np.mean(values)) < 3 * np.std(values) / runs**0.5
    assert np.mean(errors[0.25]) == pytest.approx(np.std(values), rel=0.1)
    assert 0.92 < covered[0.25] / runs < 0.98
    assert 1 < np.mean(errors[0.25]) / np.mean(errors[1.0]) < 1.3  # twice, if positions were independent
