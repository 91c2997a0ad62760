"""Prune curves: nothing pruned changes nothing, L0 never rises, and a planted dictionary gives the known order."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch

from saeval.plugin import Encoding, Moments
from saeval.testing import TinyModel, TinySAE, check_metric, evaluate_tiny, tiny_tokens
from saeval.testing.claims import every, some
from saeval_frontier.frontier import QUALITIES, SparsityFrontier, l0_of
from saeval_frontier.pruning import FILLS, ORDERS, Target, prune_orders, pruned

ROWS = {"rows": 60, "documents": 40}


def run(params, *others, sae=None, **options):
    options.setdefault("rows", tiny_tokens(**ROWS))
    results = evaluate_tiny([*others, {"sparsity_frontier": params}], saes=[sae or TinySAE()], **options)
    (frontier,) = [r for r in results if r.metric == "sparsity_frontier"]
    assert frontier.status == "ok", frontier.reason
    return results, {name: record.get("value") for name, record in frontier.values.items()}, frontier


def test_nothing_pruned_is_the_unpruned_cell_bit_for_bit():
    others = ["l0", "reconstruction", {"ce": {"ablation": "mean"}}, {"kl": {"ablation": "mean"}}]
    results, values, _ = run({"fractions": [1.0]}, *others)
    cells = {"delta_ce": "ce.delta_ce", "recovered": "ce.recovered", "kl": "kl.kl_sae"}
    for quality in some(QUALITIES):
        whole = results.value(cells.get(quality, f"reconstruction.{quality}"))
        for order in ORDERS:
            for fill in FILLS:
                point = results.value(f"sparsity_frontier.{quality}_{order}_{fill}@1")
                assert (point["value"], point["stderr"]) == (whole["value"], whole["stderr"])
    assert every(values[f"l0_{order}@1"] == results.value("l0.l0")["value"] for order in ORDERS)


def test_l0_never_rises_along_a_curve_and_reaches_its_targets():
    fractions = [0.9, 0.7, 0.5, 0.3, 0.1]
    _, values, frontier = run({"fractions": fractions, "l0": [2, 1]})
    for order in some(ORDERS):
        left = [values["l0"], *(values[f"l0_{order}@{f:g}"] for f in fractions)]
        assert every(low <= high for high, low in pairwise(left))
        # the fit split has the same rows here
        assert every(values[f"l0_{order}@{f:g}"] <= f * values["l0"] + 1e-9 for f in fractions)
        curve = frontier.values[f"kl_{order}_zero"]
        assert curve["x"] == sorted(curve["x"], reverse=True)
        assert len(curve["x"]) == 8


@pytest.mark.parametrize("share", [0.57, 0.29, 0.58])
def test_rounding_drops_no_feature_more(share):
    """Of 100 features that fire always, this share is left; in float64 it is below a whole number."""
    always = Moments(7, np.full(100, 7.0))
    orders = prune_orders({"acts": always, "fired": always}, torch.eye(100), 0)
    for order in some(ORDERS):
        assert orders.dropped(order, Target(share, True)).sum() == 100 - round(share * 100)


def test_the_orders_of_three_features():
    """Their frequencies are 2/4, 1/4 and 3/4, their mean contributions 1 · 4, |-3| · 1 and 2 · 1."""
    sums = {"acts": Moments(4, np.array([4.0, -12.0, 8.0])), "fired": Moments(4, np.array([2.0, 1.0, 3.0]))}
    W_dec = torch.diag(torch.tensor([4.0, 1.0, 1.0]))
    made = {seed: prune_orders(sums, W_dec, seed) for seed in range(20)}
    orders = {name: order.tolist() for name, order in made[0].orders.items()}
    assert orders["most_frequent"] == [2, 0, 1]
    assert orders["least_frequent"] == [1, 0, 2]
    assert orders["least_contribution"] == [2, 1, 0]
    assert made[0].left["most_frequent"].tolist() == [1.5, 0.75, 0.25, 0]
    assert made[0].reaches(Target(1.5, False))
    assert not made[0].reaches(Target(1.51, False))
    assert len({tuple(of_seed.orders["random"]) for of_seed in made.values()}) == 6  # all orders come up


def test_near_targets_have_names_of_their_own():
    names = SparsityFrontier(fractions=(0.1234567, 0.1234568), l0=(1234567, 1234568)).value_names
    for target in ("0.1234567", "0.1234568", "L0=1234567", "L0=1234568"):
        assert f"l0_random@{target}" in names
    assert len(SparsityFrontier(fractions=(0.1 + 0.2, 0.3)).targets) == 1  # equal but for rounding


class Planted(TinySAE):
    """Features 0 to 7 fire always, with mean 10; 8 to 15 fire on a large coordinate. It decodes both exactly."""

    def __init__(self):
        super().__init__(d_in=16, d_sae=16)
        self.W_dec = torch.eye(16)
        self.calls = 0

    def encode(self, x):
        self.calls += 1
        dense, sparse = x[..., :8] + 10, x[..., 8:]
        return torch.cat([dense, sparse * (sparse > 1.5)], -1)

    def decode(self, acts):
        offset = torch.cat([torch.full((8,), 10.0), torch.zeros(8)])
        return acts - offset


def test_a_planted_dictionary_gives_the_known_order():
    """Zeroing a dense feature costs its mean of 10; a sparse one costs little; a dense one at its mean costs little."""
    _, values, _ = run({"fractions": [0.97, 0.5]}, sae=Planted())
    explained = {(order, fill): values[f"explained_variance_{order}_{fill}@0.97"] for order in ORDERS for fill in FILLS}
    whole = values["explained_variance"]
    for order in ("least_frequent", "least_contribution"):  # both drop sparse ones
        assert whole - 0.2 < explained[order, "zero"] <= whole
    assert explained["most_frequent", "zero"] < whole - 3
    assert whole - 0.3 < explained["most_frequent", "mean"] < whole
    at_half = {order: values[f"explained_variance_{order}_zero@0.5"] for order in ORDERS}
    assert at_half["least_contribution"] >= at_half["most_frequent"] - 1e-9  # both must drop dense ones by now
    assert values["l0_most_frequent@0.97"] < values["l0_least_frequent@0.97"]  # one dense feature, of frequency 1


def test_a_mean_is_a_change_of_b_dec():
    sae, generator = TinySAE(), torch.Generator().manual_seed(1)
    x = torch.randn(4, 6, 16, generator=generator)
    acts = sae.encode(x)
    mask = torch.ones(4, 6, dtype=torch.bool)
    sums = {"acts": Moments.of(acts, mask), "fired": Moments.of((acts != 0).double(), mask)}
    orders = prune_orders(sums, sae.W_dec, 0)
    target = Target(0.5, True)
    adapter = _Adapter(sae)
    keys = np.zeros((4, 6), dtype=np.uint64)
    filled = pruned(adapter, Encoding(acts), x, keys, orders, order="most_frequent", fill="mean", target=target)
    dropped = torch.from_numpy(orders.dropped("most_frequent", target))
    constant = torch.from_numpy(orders.mean).float() * dropped
    expected = (acts * ~dropped) @ sae.W_dec + (sae.b_dec + constant @ sae.W_dec)
    torch.testing.assert_close(filled, expected)


class _Adapter:
    name, device = "mine", None

    def __init__(self, sae):
        self.sae = sae

    def at(self, token_keys):
        return self

    def decode(self, encoding, activations):
        return self.sae.decode(encoding.feature_acts)


def test_a_point_costs_one_resume_and_no_encode():
    counts = {}
    for points, fractions in ((1, [0.5]), (5, [0.9, 0.7, 0.5, 0.3, 0.1])):
        model, sae = TinyModel(), Planted()
        params = {"fractions": fractions, "orders": ["most_frequent"], "fills": ["zero"]}
        run(params, sae=sae, model=model, batch_size=20, preflight="off")
        counts[points] = {**model.passes, "encode": sae.calls}
    batches = 3
    assert counts[5]["resumed"] - counts[1]["resumed"] == 4 * batches
    assert counts[1]["resumed"] == batches * (1 + 2)  # the point, the whole SAE, the ablation
    assert counts[5]["clean"] == counts[1]["clean"] == batches
    assert counts[5]["encode"] == counts[1]["encode"]


def test_a_target_above_the_l0_has_no_point():
    _, values, frontier = run({"fractions": [], "l0": [4, 1000]})
    assert values["delta_ce_random_zero@L0=1000"] is None
    assert "below the target" in frontier.values["delta_ce_random_zero@L0=1000"]["reason"]
    assert values["delta_ce_random_zero@L0=4"] is not None
    assert len(frontier.values["delta_ce_random_zero"]["x"]) == 2
    assert frontier.notes == ["sparsity_frontier: an SAE has a lower L0 than its target 1000"]


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"fractions": (1.5,)}, "fractions must be above 0 and at most 1, got 1.5"),
        ({"l0": (0.0,)}, "l0 must be above 0, got 0"),
        ({"fractions": ()}, "give at least one target in 'fractions' or 'l0'"),
        ({"orders": ("dense",)}, "orders must be from most_frequent, least_frequent, .*, got dense"),
        ({"fills": ()}, "fills must be from zero, mean, got none"),
    ],
)
def test_wrong_parameters_are_refused_in_one_sentence(params, words):
    with pytest.raises(ValueError, match=words):
        SparsityFrontier(**params)


def test_names_of_points():
    assert l0_of("most_frequent_zero@0.5") == "l0_most_frequent@0.5"


def test_the_metric_passes_the_checks():
    check_metric(SparsityFrontier, {"fractions": (0.5,), "orders": ("most_frequent",), "fills": ("mean",)})
