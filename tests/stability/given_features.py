"""SAEs of given features, and the numbers of their group."""

from __future__ import annotations

import torch

from saeval.testing import TinySAE

SMALL = {"draws": 2, "alive_firings": 1}
FEW = {**SMALL, "controls": []}
"""The same without a twin of the group."""


class Given(TinySAE):
    """An SAE of chosen weights."""

    def __init__(self, W_dec, W_enc, b_enc, hook_name="blocks.1.hook_resid_pre"):
        self.W_dec, self.W_enc, self.b_enc = W_dec, W_enc, b_enc
        self.b_dec, self.hook_name = torch.zeros(W_dec.shape[1]), hook_name

    @classmethod
    def random(cls, seed, n=32, d=16, bias=-0.5):
        sae = TinySAE(d_in=d, d_sae=n, seed=seed)
        return cls(sae.W_dec, sae.W_enc, torch.full((n,), bias))

    def copy(self, order, scale):
        """The same dictionary with its features in another order and each on another, positive scale."""
        return Given(self.W_dec[order] / scale[:, None], self.W_enc[:, order] * scale, self.b_enc[order] * scale)

    def with_dead(self, extra, seed=9):
        """With features that never fire."""
        more = TinySAE(d_in=self.W_dec.shape[1], d_sae=extra, seed=seed)
        bias = torch.full((extra,), -1e6)
        return Given(torch.cat([self.W_dec, more.W_dec]), torch.cat([self.W_enc, more.W_enc], 1),
                     torch.cat([self.b_enc, bias]))  # fmt: skip


def value(result, name):
    return result.values[name]["value"]


def column(result, table, name, **where):
    """A column of a table, of the rows that have these cells."""
    record = result.values[table]
    columns = record["columns"]
    rows = [r for r in record["rows"] if all(r[columns.index(k)] == v for k, v in where.items())]
    return [r[columns.index(name)] for r in rows]
