"""Worlds and SAEs worked out by hand."""

from __future__ import annotations

import itertools

import numpy as np
import torch

from saeval import evaluate
from saeval.testing import register_rows, tiny_plugins
from saeval_synthetic.rows import FIT, WorldRows
from saeval_synthetic.source import Synthetic
from saeval_synthetic.world import Tree, World

_names = itertools.count()

PLAIN = {"correlation_rank": 0, "groups": 0, "roots": 0, "noise": 0.0, "magnitude_spread": 0.0}
"""Settings of features that have nothing to do with each other."""


def world(n=16, d=16, probability=0.2, parent=None, group=None, factor=None, directions=None):
    """Orthonormal directions, features of activation 1 and no bias."""
    tree = Tree.none(n)
    tree.parent[:] = -1 if parent is None else parent
    tree.group[:] = -1 if group is None else group
    return World(
        np.eye(n, d, dtype=np.float32) if directions is None else np.asarray(directions, np.float32),
        np.zeros(d, np.float32), np.broadcast_to(np.float64(probability), n).copy(), np.ones(n, np.float32),
        np.zeros(n, np.float32), np.zeros((n, 0), np.float32) if factor is None else np.asarray(factor, np.float32), tree,
    )  # fmt: skip


class Given:
    """An SAE with these decoder rows, which fires where the projection on its encoder's column is large enough."""

    hook_name = "activations"

    def __init__(self, W_dec, W_enc=None, threshold=0.4, silent=None, dead=()):
        self.W_dec = torch.as_tensor(np.asarray(W_dec), dtype=torch.float32)
        self.W_enc = self.W_dec.T.clone() if W_enc is None else torch.as_tensor(np.asarray(W_enc), dtype=torch.float32)
        self.b_enc, self.b_dec = torch.zeros(len(self.W_dec)), torch.zeros(self.W_dec.shape[1])
        self.threshold, self.silent, self.dead = threshold, silent or {}, list(dead)

    def encode(self, x):
        acts = x @ self.W_enc
        acts = torch.where(acts > self.threshold, acts, 0.0)
        acts[..., self.dead] = 0
        for latent, others in self.silent.items():
            acts[..., latent][(acts[..., others] != 0).any(-1)] = 0
        return acts

    def decode(self, acts):
        return acts @ self.W_dec + self.b_dec


def rows_of(made, samples=4000, **options):
    """Rows of a world, and a fit split."""
    return [
        WorldRows(lambda: made, made.d, f"world {next(_names)}", samples, first=first, **options) for first in (0, FIT)
    ]


def evaluated(made, saes, metrics, **options):
    """Results on samples of a world, which is a `World` or a suite's `data:`."""
    data = made
    if isinstance(made, World):
        rows, fit = rows_of(made, options.pop("samples", 4000))
        data = register_rows(f"world-{next(_names)}", rows, fit)
    options.setdefault("preflight", "off")
    results = evaluate(data=data, saes=saes, metrics=metrics, plugins=tiny_plugins(), **options)
    assert not results.failed, results.failed[0].traceback
    return results


def values_of(made, sae, metric, **options):
    """The numbers of one metric of one SAE."""
    (result,) = evaluated(made, {"sae": sae}, [metric], **options)
    return {name: record["value"] for name, record in result.values.items() if "value" in record}


def firing(settings, samples=20_000):
    """Which features of a world fire on each sample, and its source."""
    source = Synthetic(**{**PLAIN, **settings}, samples=samples, context=500)
    rows = source.dataset("evaluation")
    parts = [rows.batch([i], "cpu").supplied["true_features"].dense()[0] for i in range(len(rows))]
    return torch.cat(parts).numpy(), source
