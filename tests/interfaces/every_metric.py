"""A world in which every metric has a result: a plugin file with a tiny model, SAEs and rows, and suites over them.

It is a file so that other processes can have the same world.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import torch

from saeval.interfaces.live_objects import LiveSAE
from saeval.plugin import Judge, ModelAdapter, Reply, SAEInfo, SAELoader, hookimpl
from saeval.registry.discovery import Plugins
from saeval.registry.registry import Registry
from saeval.testing import TinyModel, TinySAE, register_rows, tiny_tokens
from saeval.testing.fixtures import InMemory
from saeval.testing.tiny import TinyPairs
from saeval.text.annotations import Annotations
from saeval.text.tokens import TokenDataset


class TinyAdapter(ModelAdapter):
    """The tiny model, `causal` or `reward`, of any seed and name."""

    name = "tiny"

    def spec(self, reference):
        given = dict(reference)
        name, dtype = given.pop("name", "tiny"), getattr(torch, given.pop("dtype", "float32"))
        model = TinyModel(**given, dtype=dtype)
        model.name = name
        return model


class TinyLoader(SAELoader):
    """The tiny SAE, of any seed."""

    name = "tiny"

    def info(self, reference):
        sae = self._sae(reference)
        digest = f"tiny {reference['seed']}"
        return SAEInfo(sae.hook_name, len(sae.b_dec), len(sae.b_enc), digest, architecture="standard")

    def load(self, reference, device, dtype):
        return LiveSAE(self._sae(reference, dtype))

    def _sae(self, reference, dtype=torch.float32):
        return TinySAE(seed=reference["seed"], dtype=dtype)


class Obliging(Judge):
    """Answers a list of tens of the right length, or a phrase."""

    name = "obliging"

    def identity(self):
        return {}

    def replies(self, prompts):
        for index, prompt in enumerate(prompts):
            asked = re.search(r"list of (\d+) numbers", prompt.messages[1][1])
            yield index, Reply(str([10] * int(asked.group(1))) if asked else "some tokens")


@hookimpl
def saeval_judges():
    return [Obliging]


@hookimpl
def saeval_models():
    return [TinyAdapter]


@hookimpl
def saeval_sae_loaders():
    return [TinyLoader]


@hookimpl
def saeval_data():
    return [InMemory]


class LabelledPairs(TinyPairs):
    """Pairs that say where the planted pattern of the testbed's preferences would be."""

    supplies = frozenset({"labels"})

    def batch(self, rows, device):
        found = super().batch(rows, device)
        some = np.asarray(rows)
        for side in found.sides:
            planted = np.where(some % 2 == 0, "planted", "neutral")
            side.supplied = {"labels": {"subset": planted, "flipped": np.where(some % 3 == 0, "yes", "no")}}
        return found


PARAMETERS = {
    "perturbation": {"draws": 2, "positions": 1, "nulls": ["epsilon", "shuffled_error"]},
    "perturbation_curve": {"draws": 2, "positions": 1},
    "seed_stability": {"alive_firings": 1, "draws": 1},
    "functional_stability": {"alive_firings": 1, "draws": 1},
    "reward_attribution": {"steps": 2, "tolerance": 10.0, "top": 3, "groups": [1, 2], "random": 3, "contexts": 1},
    "reward_groups": {"steps": 2, "relevant": 6, "random": 20, "cosine": 0.0},
    "counterfactual_audit": {"steps": 2, "top": 3},
    "planted_recovery": {"steps": 2, "sizes": [1, 2]},
    "sparse_probing": {"tasks": ["side"], "k": [1, 2], "folds": 2, "refits": 2},
    "saeprobes": {"tasks": ["side"], "k": [1]},
    "saebench_probing": {"tasks": ["side"], "k": [1]},
    "tpp": {"n": [1], "draws": 1},
    "scr": {"tasks": ["side", "pair"], "n": [1], "draws": 1},
    "saebench_tpp": {"tasks": ["kind=*"], "n": [1], "epochs": 1},
    "saebench_scr": {"tasks": ["side", "pair"], "n": [1], "epochs": 1},
    "truth_absorption": {"least": 5},
    "token_explanation": {"features": 4, "least_rows": 1},
    "explanation": {"features": 4, "least_rows": 1},
    "detection": {"features": 4, "least_rows": 1, "windows": 4, "repeats": 1},
    "fuzzing": {"features": 4, "least_rows": 1, "windows": 8, "repeats": 1},
    "saebench_autointerp": {"latents": 4, "buffer": 2},
    "absorption": {"at": None, "folds": 2, "least_f1": 0.0, "least_words": 2, "random": 2},
}


def labelled_tokens() -> TokenDataset:
    """Rows of tokens with labels that change at every or every second row, every fifth for validation."""
    rows = tiny_tokens(rows=40)
    # dictionary_learning's metrics leave no token out
    number = np.arange(len(rows))
    labels = {name: np.where(number // period % 2 == 0, "even", "odd") for name, period in (("side", 1), ("pair", 2))}
    labels["kind"] = np.array(["a", "b", "c"])[number % 3]
    nothing = np.zeros(len(rows), np.uint64)
    annotations = Annotations(labels, number % 5 == 0, [], nothing, np.zeros(rows.tokens.shape, np.uint64))
    return TokenDataset(rows.tokens, rows.documents, rows.clusters, annotations=annotations)


ROWS = {
    "causal": register_rows("every-metric/tokens", labelled_tokens()),
    "reward": register_rows("every-metric/pairs", LabelledPairs(pairs=40)),
}
TRUTH = "truth"
"""The suite over known features, which needs no model."""


def plugins() -> Plugins:
    """All installed plugins and this file."""
    return Plugins([__file__])


def suites(registry: Registry) -> list[dict[str, Any]]:
    """Return suites that hold every metric of the registry: over tokens, over pairs, and over known features."""
    found = []
    for kind in ("causal", "reward", TRUTH):
        metrics = []
        for entry in registry.metrics:
            cls = entry.thing
            if kind == (TRUTH if cls.truth else "reward" if cls.data == "pair" else "causal"):
                over = {"over": "both"} if cls.subject == "group" else {}
                metrics.append({entry.name: {**PARAMETERS.get(entry.name, {}), **over}})
        if kind == TRUTH:
            world = {"use": "synthetic", "samples": 2000, "fit_samples": 1000}
            found.append({"suite": kind, "data": world, "saes": ["synthetic/topk-4"], "metrics": metrics})
            continue
        found.append({
            "suite": kind, "model": {"use": "tiny", "kind": kind}, "data": ROWS[kind], "metrics": metrics,
            "saes": [{"use": "tiny", "name": name, "seed": seed} for seed, name in enumerate("ab")],
            "groups": {"both": ["a", "b"]}, "controls": ["mean"], "judge": "obliging",
        })  # fmt: skip
    return found
