"""The null world: where nothing is true, at most 7% of runs claim anything. `python` with this file measures 200."""

from __future__ import annotations

import os
import sys

import pytest
from scipy import stats

from every_metric import Obliging
from null_worlds import WORLDS, flipped, noise, unabsorbed, unconnected, untrained
from saeval.registry.registry import Registry
from saeval.testing import TinySAE, evaluate_tiny, tiny_plugins
from saeval.testing.claims import some
from tally import Tally, null_of
from worlds import ATTRIBUTION, VOCAB, Choices, Counted, Tokens, unabsorbed_latents

MOST = 0.07
"""Largest share of 200 runs with a false claim: 5%, and the error of the share."""


def most(runs):
    """Largest number of false claims: a smaller number of runs has a larger error."""
    return int(max(MOST * runs, stats.binom.ppf(0.975, runs, 0.05)))


@pytest.fixture(autouse=True)
def _unsynced(monkeypatch):
    """Nothing has to survive a power cut."""
    monkeypatch.setattr(os, "fsync", lambda file: None)


@pytest.mark.slow
@pytest.mark.parametrize("world", WORLDS)
def test_a_world_without_effects_gives_no_claims(world):
    evaluate, _, runs = WORLDS[world]
    tally = Tally()
    for run in range(runs):
        evaluate(tally, run)
    false = {kind: claims for kind, claims in tally.claims.items() if claims > most(tally.runs[kind])}
    assert some(tally.runs)
    assert not false, f"of {dict(tally.runs)} runs"


SMALL = {
    "perturbation": {"draws": 2},
    "perturbation_curve": {"draws": 2},
    "seed_stability": {"alive_firings": 1, "draws": 1},
    "functional_stability": {"alive_firings": 1, "draws": 1},
    "feature_connections": {"levels": [1], "alive_firings": 1, "ablated": 4, "contexts": 0},
    "reward_attribution": {**ATTRIBUTION, "steps": 1},
    "reward_groups": {"baseline": "zero", "steps": 1, "relevant": 6, "random": 20},
    "counterfactual_audit": {"baseline": "zero", "steps": 1, "top": 3},
    "planted_recovery": {"baseline": "zero", "steps": 1, "sizes": [1, 5]},
}

GROUPS = {"feature_connections": "two"}


def declared():
    """The values of all shipped metrics that have a null."""
    classes = {entry.name: entry.thing for entry in Registry(tiny_plugins()).metrics}
    saes = {f"sae-{seed}": TinySAE(seed=seed) for seed in range(4)}
    for seed, sae in enumerate(saes.values()):
        sae.seed = seed
    nulls = set()
    for data, options in {
        "token": {"saes": saes, "groups": {"all": ["*"], "two": ["sae-[01]"]}},
        "pair": {
            "saes": {"sae": Tokens()},
            "rows": Choices(0, pairs=40),
            "model": Counted([1.0] * VOCAB, [1.0] * VOCAB),
        },
    }.items():
        metrics = [
            {name: SMALL.get(name, {}) | ({"over": GROUPS.get(name, "all")} if cls.subject == "group" else {})}
            for name, cls in classes.items()
            if (cls.data == "pair") == (data == "pair")
            and not cls.truth
            and not name.startswith(("saelens", "saebench", "dictionary"))
        ]
        for result in some(
            evaluate_tiny(metrics, preflight="off", judge="obliging", judge_classes=[Obliging], **options)
        ):
            nulls |= {null_of(result.metric, name) for name, record in result.values.items() if record.get("null")}
    for result in some(unabsorbed_latents(0)):
        nulls |= {null_of(result.metric, name) for name, record in result.values.items() if record.get("null")}
    return nulls


@pytest.mark.slow
def test_every_null_is_in_a_world():
    tally = Tally()
    for evaluate in (noise, untrained, unconnected, flipped, unabsorbed):
        evaluate(tally, 0)
    assert set(some(declared())) <= tally.tested, "add the value to a world in null_worlds.py"


if __name__ == "__main__":  # print the table of docs/claims.md
    os.fsync = lambda file: None
    wanted = sys.argv[1:] or list(WORLDS)  # or only these worlds
    print("| world | claim | runs | share of runs with the claim |\n|---|---|---|---|")
    for world, (evaluate, runs, _) in ((world, WORLDS[world]) for world in wanted):
        tally = Tally()
        for run in range(runs):
            evaluate(tally, run)
        for kind, share in tally.shares().items():
            print(f"| {world} | {kind} | {tally.runs[kind]} | {share:.3f} |", flush=True)
