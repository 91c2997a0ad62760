"""Connections between SAEs of two hooks: maps, weights and interventions on planted truths, and their cost."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.sparse import csc_array

from saeval import SaevalError
from saeval.testing import TinyModel, TinySAE, check_metric, evaluate_tiny
from saeval.testing.claims import every, some
from saeval_connections import place
from saeval_connections.connections import FeatureConnections, _edge_table, _over_features
from saeval_connections.edges import Edges
from saeval_connections.effects import Effects
from saeval_connections.maps import _Sums, fit, predicted

SMALL = {"levels": [1, 4], "fit_tokens": 1000, "alive_firings": 2, "ablated": 4, "contexts": 0}
EARLY, LATE = "blocks.0.hook_resid_pre", "blocks.2.hook_resid_pre"


def codes(tokens, width, seed):
    random = np.random.default_rng(seed)
    return np.where(random.random((tokens, width)) < 0.08, random.gamma(2, 1, (tokens, width)), 0)


def planted(width=40, later=30, sources=3):
    random, W = np.random.default_rng(1), np.zeros((later, width))
    for row in W:
        row[random.choice(width, sources, replace=False)] = random.uniform(0.5, 1.5, sources)
    return W


def fitted(F1, F2, levels=(1, 8)):
    return fit(csc_array(F1), csc_array(F2), levels, 1e-3, 10)


def fvu(map_, maps, F1, F2):
    error = np.square(F2 - predicted(map_, torch.from_numpy(F1)).numpy()).sum(0)
    return error / np.square(F2 - maps.mean).sum(0)


@pytest.mark.parametrize(("noise", "most"), [(0.0, 1e-20), (0.3, 0.12)])
def test_a_planted_sparse_map_is_recovered_with_its_support(noise, most):
    W, F1, new = planted(), codes(4000, 40, 0), codes(1000, 40, 2)
    random = np.random.default_rng(3)
    later, held_out = (F @ W.T + noise * (F @ W.T).std(0) * random.standard_normal((len(F), len(W))) for F in (F1, new))
    maps = fitted(F1, later)
    widest = maps.widest()
    np.testing.assert_array_equal(widest.W.toarray() != 0, W != 0)  # precision and recall 1, also with noise
    assert fvu(widest, maps, new, held_out).max() < most
    np.testing.assert_allclose(widest.W.toarray(), W, atol=1e-12 if not noise else 0.06)


def test_a_planted_relu_map_is_recovered_by_the_relu_fit_alone():
    W, F1, new = planted(), codes(4000, 40, 0), codes(1000, 40, 2)
    maps = fitted(F1, np.maximum(F1 @ W.T - 1, 0))
    held_out = np.maximum(new @ W.T - 1, 0)
    assert fvu(maps.widest(relu=True), maps, new, held_out).max() < 1e-20
    assert fvu(maps.widest(), maps, new, held_out).mean() > 0.02


def test_a_source_that_is_0_on_the_rows_of_a_step_gets_no_weight():
    X = codes(60, 8, 0)
    X[:, 3] = 0
    weights, intercept = _Sums.of(X, X.sum(1) + 1).solution(8)
    np.testing.assert_allclose(weights, np.arange(8) != 3, atol=1e-9)
    assert intercept == pytest.approx(1)


def test_shuffled_rows_are_not_explained():
    W, F1, new = planted(), codes(4000, 40, 0), codes(1000, 40, 2)
    shuffled = (F1 @ W.T)[np.random.default_rng(0).permutation(4000)]
    maps = fitted(F1, shuffled)
    assert every(fvu(m, maps, new, new @ W.T).mean() > 0.99 for m in maps.maps)


def test_unrelated_features_get_no_source():
    """However small a gain is asked for: the best of 40 always explains something."""
    maps = fit(csc_array(codes(400, 40, 0)), csc_array(codes(400, 200, 5)), (4,), 1e-9, 10)
    with_source = np.diff(maps.widest().W.tocsr().indptr) > 0
    assert with_source.mean() < 0.2


def test_an_sae_against_itself_is_the_identity_map():
    F1 = codes(4000, 40, 0)
    for map_ in some(fitted(F1, F1).maps):
        np.testing.assert_allclose(map_.W.toarray(), np.eye(40), atol=1e-12)
        assert map_.W.nnz == 40


class Linear(TinyModel):
    """Blocks that multiply each token's state by a matrix."""

    def _block(self, index, x, real=None):
        self.blocks_run[index] += 1
        matrix = torch.randn(16, 16, generator=torch.Generator().manual_seed(index)) / 8
        return x + x @ matrix


def connections(model, first, second, metric=None, **options):
    entry = {"feature_connections": {**SMALL, **(metric or {}), "over": "g", "controls": []}}
    saes = {"first": first, "second": second}
    groups = options.pop("groups", {"g": ["first", "second"]})
    (result,) = evaluate_tiny([entry], model=model, saes=saes, groups=groups, **options)
    assert result.status == "ok", (result.reason, result.traceback)
    return result


class Threshold(TinySAE):
    """A later SAE in the linear range of its ReLU."""

    def encode(self, x):
        return (x - self.b_dec) @ self.W_enc + 100


def column(result, name):
    table = result.values["edges"]
    return np.array([row[table["columns"].index(name)] for row in some(table["rows"])], dtype=float)


def test_intervention_on_a_linear_model_equals_the_weights_through_the_block():
    result = connections(Linear(), TinySAE(EARLY), Threshold(LATE, seed=1))
    np.testing.assert_allclose(column(result, "intervention"), column(result, "block"), rtol=1e-3, atol=1e-4)
    assert np.abs(column(result, "intervention") - column(result, "direct")).max() > 0.05
    assert result.values["precision_block"]["value"] == 1
    assert result.values["rank_correlation_block"]["value"] == pytest.approx(1, abs=1e-3)


def test_intervention_at_the_same_hook_equals_decoder_times_encoder():
    result = connections(Linear(), TinySAE(EARLY), Threshold(EARLY, seed=1))
    np.testing.assert_allclose(column(result, "intervention"), column(result, "direct"), rtol=1e-3, atol=1e-4)
    assert result.values["resumes"]["value"] == 0


def test_one_resume_per_batch_and_ablated_feature_that_ends_at_the_later_hook():
    model = TinyModel(layers=4)
    result = connections(model, TinySAE("blocks.1.hook_resid_pre"), TinySAE(LATE, seed=1), batch_size=24,
                         preflight="off")  # fmt: skip
    assert result.values["resumes"]["value"] == model.passes["resumed"] == 4
    assert model.passes == {"clean": 0, "cut": 2, "resumed": 4}  # the fit split, and the evaluated rows
    assert model.blocks_run == [2, 6, 0, 0]


def test_numbers_do_not_depend_on_batches_order_or_padding():
    check_metric(FeatureConnections, SMALL)


@pytest.mark.parametrize(
    ("hooks", "group", "message"),
    [
        (
            (LATE, EARLY),
            ["first", "second"],
            "lists its SAEs in the wrong order: 'first' at blocks.2.hook_resid_pre is",
        ),
        (
            (EARLY, LATE),
            ["first"],
            "metric 'feature_connections': needs a group of at least 2 different SAEs, not of 1 SAE",
        ),
        ((EARLY, LATE), ["first", "second", "third"], "has 3 SAEs"),
    ],
)
def test_groups_other_than_an_earlier_and_a_later_sae_are_refused(hooks, group, message):
    saes = {"first": TinySAE(hooks[0]), "second": TinySAE(hooks[1], seed=1), "third": TinySAE(LATE, seed=2)}
    with pytest.raises(SaevalError, match=message):
        evaluate_tiny([{"feature_connections": {**SMALL, "over": "g"}}], saes=saes, groups={"g": group})


def test_embeddings_are_before_all_blocks_and_the_rest_after_them():
    mixed = ["ln_final", "blocks.1.hook_resid_pre", "blocks.0.hook_mlp_out", "hook_embed", "blocks.0.hook_resid_pre"]
    assert sorted(mixed, key=place) == [mixed[3], mixed[4], mixed[2], mixed[1], mixed[0]]


def test_equal_strengths_share_a_rank_and_documents_are_counted():
    change = np.array([[0.0, 4.0, -8.0, 0.0, 4.0], [0.0] * 5])
    acts, fires = np.array([[2.0, 0], [0, 0], [2, 0]]), np.array([[2, 0], [0, 0], [1, 0]])
    pairs = np.array([(0, j) for j in range(5)] + [(1, 0)])
    by_document = np.zeros((3, 6))
    by_document[0, :5] = change[0]
    values = {way: np.ones((2, 5)) for way in ("direct", "block", "data")}
    edges = Edges(np.array([7, 8]), values, pairs, [["data"]] * 6, [False] * 6, np.ones((2, 5)))
    table = _edge_table(Effects(change, acts, fires, by_document, 1), edges)
    rows = [dict(zip(table.columns, row, strict=True)) for row in table.rows]
    ranks = {(row["earlier"], row["later"]): row["rank"] for row in rows}
    assert ranks == {(7, 2): 1, (7, 1): 2, (7, 4): 2, (7, 0): 4, (7, 3): 4, (8, 0): None}
    assert {(row["tokens"], row["documents"]) for row in rows if row["earlier"] == 7} == {(3, 2)}


def test_parts_of_a_block_are_in_the_order_in_which_it_computes_them():
    parts = ["hook_resid_pre", "attn.hook_z", "hook_attn_out", "hook_resid_mid", "ln2.hook_normalized",
             "mlp.hook_post", "hook_mlp_out", "hook_resid_post"]  # fmt: skip
    places = [place(f"blocks.3.{part}") for part in parts]
    assert places == sorted(set(places))
    assert place("blocks.2.hook_resid_post") < places[0]


def test_the_null_of_an_agreement_is_that_between_different_features_tested_one_sided():
    alike = np.array([[0.9, 0.1, 0.2], [0.3, 0.8, 0.1], [0.2, 0.3, 0.7]])
    agreement = _over_features(alike, "correlation", "ordered more alike than")
    assert agreement.value == pytest.approx(0.8)
    assert agreement.null.value == pytest.approx(0.2)
    assert agreement.null.p < 0.01
    assert _over_features(alike[:, ::-1][[2, 1, 0]][:, [1, 2, 0]], "correlation", "more").null.p > 0.5


class Rescaled(TinySAE):
    """The same SAE with another scale for each feature."""

    def __init__(self, hook, seed=0):
        super().__init__(hook, seed=seed)
        scale = torch.linspace(0.2, 5, self.W_enc.shape[1])
        self.W_enc, self.b_enc, self.W_dec = self.W_enc * scale, self.b_enc * scale, self.W_dec / scale[:, None]


def test_the_scale_of_features_changes_no_fvu_strength_or_agreement():
    first, second = (connections(Linear(), sae(EARLY), sae(LATE, seed=1)) for sae in (TinySAE, Rescaled))
    np.testing.assert_allclose(column(first, "strength"), column(second, "strength"), rtol=1e-3, atol=1e-6)
    for name in ("fvu_linear_4", "fvu_relu_1", "precision_direct", "rank_correlation_block"):
        assert first.values[name]["value"] == pytest.approx(second.values[name]["value"], rel=1e-3), name
