"""Stability between SAEs: weights and activations of groups, their floors and intervals, by planted truths."""

from __future__ import annotations

import itertools
import math
import re

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from scipy.stats import t as student

from given_features import FEW, SMALL, Given, column, value
from saeval import SaevalError
from saeval.testing import TinyModel, TinySAE, check_chart, check_metric, evaluate_tiny, tiny_tokens
from saeval.testing.claims import every, some
from saeval_stability import match
from saeval_stability.functional import FunctionalStability
from saeval_stability.measures import iid_best
from saeval_stability.seeds import SeedStability

BOTH = ["seed_stability", "functional_stability"]


def stability(saes, metrics=BOTH, **options):
    """Values by metric of one group of all `saes`."""
    named = saes if isinstance(saes, dict) else {f"sae-{i}": sae for i, sae in enumerate(saes)}
    entries = [{name: {**FEW, "over": "g", **options.pop(name, {})}} for name in metrics]
    results = evaluate_tiny(entries, saes=named, groups={"g": list(named)}, **options)
    assert [r.status for r in results] == ["ok"] * len(metrics), [(r.reason, r.traceback) for r in results]
    return {r.metric: r for r in results}


def test_a_permuted_rescaled_copy_is_the_same_dictionary():
    sae, order = Given.random(0), torch.randperm(32, generator=torch.Generator().manual_seed(0))
    found = stability([sae, sae.copy(order, 2.0 ** torch.arange(-16, 16))])
    seeds, functional = found["seed_stability"], found["functional_stability"]
    for name in ("decoder_matched", "decoder_abs_matched", "encoder_matched", "shared", "index_agreement",
                 "decoder_found_in_all", "encoder_share_above_0_9"):  # fmt: skip
        assert value(seeds, name) == pytest.approx(1, abs=1e-12), name
    assert value(seeds, "decoder_collisions_a_to_b") == 0
    alive = column(seeds, "members", "decoder_features")
    assert alive[0] == alive[1] > 16
    partner = seeds.array("decoder_indices_0_1")
    matched = partner >= 0
    assert matched.sum() == alive[0]
    np.testing.assert_array_equal(order.numpy()[partner[matched]], np.flatnonzero(matched))
    assert np.isnan(seeds.array("decoder_cosines_0_1")[~matched]).all()
    # A feature that is on for the same tokens, on another scale, correlates perfectly.
    for name in ("pearson_matched", "jaccard_matched", "index_agreement", "pearson_found_in_all"):
        assert value(functional, name) == pytest.approx(1, abs=1e-9), name
    assert value(functional, "pearson_matched_floor") < 0.9


def test_a_sign_flipped_copy_scores_only_without_signs():
    sae = Given.random(0)
    flipped = Given(-sae.W_dec, -sae.W_enc, sae.b_enc)
    found = stability([sae.with_dead(3), flipped.with_dead(3)], ["seed_stability"], seed_stability={"alive_firings": 0})
    assert value(found["seed_stability"], "decoder_matched") < 0.9
    assert value(found["seed_stability"], "encoder_abs_matched") == pytest.approx(1, abs=1e-12)
    only = stability([sae, flipped], ["seed_stability"], seed_stability={"modes": ["abs"]})["seed_stability"]
    assert "decoder_matched" not in only.values
    assert "decoder_abs_indices_0_1" in only.values


def test_dead_features_change_nothing_but_the_tables_of_all_and_dead():
    saes = [Given.random(0), Given.random(1)]
    plain = stability(saes)
    padded = stability([saes[0].with_dead(5), saes[1].with_dead(40, seed=8)])
    for metric in BOTH:
        for name, record in some(plain[metric].values.items()):
            if "kind" not in record:
                assert value(padded[metric], name) == record["value"], name
    pairs = padded["seed_stability"]
    dead = [sum(column(pairs, "pairs", n, view="dead_decoder")) for n in ("n_a", "n_b")]
    alive = column(pairs, "members", "decoder_features")
    assert dead == [32 + 5 - alive[0], 32 + 40 - alive[1]]
    assert column(pairs, "pairs", "n_b", view="all_encoder") == [72]
    assert max(column(pairs, "pairs", "gap")) <= 1e-6


def test_planted_sharing_is_found_and_needs_one_partner_in_encoder_and_decoder():
    model, rows = TinyModel(d_model=64), tiny_tokens(rows=40, documents=20)
    a, b = (Given.random(seed, n=100, d=64, bias=0.0) for seed in (0, 1))
    b.W_dec[:40], b.W_enc[:, :40] = a.W_dec[:40], a.W_enc[:, :40]
    found = stability([a, b], ["seed_stability"], model=model, rows=rows)["seed_stability"]
    assert column(found, "members", "decoder_features") == [100, 100]
    assert value(found, "shared") == value(found, "decoder_share_above_0_7") == pytest.approx(0.4)
    b.W_enc[:, :40] = a.W_enc[:, :40].roll(1, 1)  # the encoders agree, but on other partners
    moved = stability([a, b], ["seed_stability"], model=model, rows=rows)["seed_stability"]
    assert value(moved, "encoder_share_above_0_7") == value(moved, "decoder_share_above_0_7") == pytest.approx(0.4)
    assert value(moved, "shared") == 0


@pytest.mark.parametrize("batch_size", [1, 5, 32])
def test_alive_is_counted_on_the_first_tokens_whatever_the_batches(batch_size):
    rows, model = tiny_tokens(), TinyModel()
    saes = [Given.random(s) for s in (0, 1)]
    batch = rows.batch(range(len(rows)), "cpu")
    x = model.capture(batch, ["blocks.1.hook_resid_pre"], False).activations["blocks.1.hook_resid_pre"]
    first = x[batch.mask][:50]
    expected = [int(((sae.encode(first) != 0).sum(0) >= 7).sum()) for sae in saes]
    options = {"alive_firings": 7, "alive_tokens": 50}
    found = stability(saes, rows=rows, batch_size=batch_size, seed_stability=options, functional_stability=options)
    assert column(found["seed_stability"], "members", "decoder_features") == expected
    assert column(found["functional_stability"], "members", "jaccard_features") == expected
    assert "of the first 50 tokens" in found["seed_stability"].notes[0]


@pytest.mark.parametrize("metric", [SeedStability, FunctionalStability])
def test_numbers_depend_on_neither_batches_nor_order_nor_padding(metric):
    # Floors turn the stream to begin at documents that are drawn by where they begin.
    check_metric(metric, SMALL, by_document=["*floor*", "*_excess", "*_chance_*"])


def test_two_metrics_and_two_groups_share_one_pass_and_a_later_run_needs_none(tmp_path):
    saes = {f"sae-{i}": Given.random(i) for i in range(3)}
    model = TinyModel()
    entries = [{name: {**FEW, "over": g, "as": f"{name}-{g}"}} for name in BOTH for g in ("all", "two")]
    groups = {"all": ["sae-*"], "two": ["sae-0", "sae-1"]}
    options = {"saes": saes, "groups": groups, "model": model, "batch_size": 8, "out": tmp_path, "key": "these"}
    evaluate_tiny(entries, **options)
    assert model.passes == {"clean": 0, "cut": 3, "resumed": 0}
    entries = [{name: {**FEW, "draws": 3, "over": "two"}} for name in BOTH]
    results = evaluate_tiny(entries, **options)
    assert [r.status for r in results] == ["ok", "ok"]
    assert model.passes["cut"] == 3  # counts and activations were kept


def iid_directions(n, d, seed):
    return torch.nn.functional.normalize(torch.randn(n, d, generator=torch.Generator().manual_seed(seed)), dim=1)


@pytest.mark.parametrize("absolute", [False, True])
@pytest.mark.parametrize(("n", "d"), [(1, 3), (200, 2), (200, 24), (3000, 64)])
def test_the_closed_form_is_what_simulation_gives(n, d, absolute):
    drawn = [iid_directions(n, d, s) @ iid_directions(40, d, 10_000 + s).T for s in range(30)]
    cosines = torch.cat(drawn, 1).double().numpy()
    best = (np.abs(cosines) if absolute else cosines).max(0)
    assert iid_best(n, d, absolute) == pytest.approx(best.mean(), abs=4 * best.std() / math.sqrt(best.size) + 1e-6)


def test_the_closed_form_in_one_dimension_is_a_coin():
    assert (iid_best(1, 1, False), iid_best(3, 1, False), iid_best(3, 1, True)) == (0.0, 0.75, 1.0)


def test_floors_of_directions_without_structure_are_the_closed_form_and_the_score_is_its_floor():
    model = TinyModel(d_model=24)
    saes = [Given(x := iid_directions(300, 24, s), x.T.contiguous(), torch.zeros(300)) for s in (0, 1)]
    found = stability(saes, ["seed_stability"], model=model, seed_stability={"draws": 10})["seed_stability"]
    for name in ("decoder_max_a_to_b", "encoder_max_b_to_a", "decoder_abs_max_a_to_b"):
        (closed,), (rotated,), (gaussian,), (spread,), (score,) = (
            column(found, "floors", c, value=name) for c in ("iid", "rotated", "gaussian", "rotated_sd", "found")
        )
        assert rotated == pytest.approx(closed, abs=0.004)
        assert gaussian == pytest.approx(closed, abs=0.01)
        assert score == pytest.approx(rotated, abs=5 * spread)
    matched = column(found, "floors", "rotated", value="decoder_matched")[0]
    assert matched < column(found, "floors", "rotated", value="decoder_max_a_to_b")[0]
    assert value(found, "decoder_matched") == pytest.approx(matched, abs=0.01)
    assert value(found, "shared") < 0.05


def test_a_direction_that_all_features_share_is_in_the_gaussian_floor_alone():
    common = iid_directions(1, 24, 99) * 1.5
    saes = []
    for seed in (0, 1):
        x = iid_directions(300, 24, seed) + common
        saes.append(Given(x, x.T.contiguous(), torch.full((300,), 1.0)))
    found = stability(saes, ["seed_stability"], model=TinyModel(d_model=24), seed_stability={"draws": 5})
    floors = {c: column(found["seed_stability"], "floors", c, value="decoder_matched")[0]
              for c in ("found", "rotated", "gaussian")}  # fmt: skip
    assert floors["gaussian"] == pytest.approx(floors["found"], abs=0.02)
    assert floors["rotated"] < floors["found"] - 0.2
    assert value(found["seed_stability"], "decoder_matched_floor") == floors["gaussian"]


def noisy(seed, scale, base):
    noise = torch.randn(base.W_dec.shape, generator=torch.Generator().manual_seed(seed))
    return Given(base.W_dec + scale * noise, base.W_enc + scale * noise.T, base.b_enc)


def seeded(sae, seed):
    """The SAE, which says its training seed."""
    sae.seed = seed
    return sae


def test_intervals_leave_one_sae_out_and_below_four_there_is_a_range():
    base = Given.random(0, bias=0.0)
    saes = [seeded(noisy(i, 0.05 * (i + 1), base), i) for i in range(5)]
    found = stability(saes, ["seed_stability"], seed_stability={"draws": 0})["seed_stability"]
    record = found.values["decoder_matched"]
    alive = [np.flatnonzero(column(found, "members", "decoder_features")[0] > 0)]
    assert len(alive) == 1
    by_pair = dict(
        zip(itertools.combinations(range(5), 2), column(found, "pairs", "matched", view="decoder"), strict=True)
    )
    assert by_pair[0, 1] == pytest.approx(match(saes[0].W_dec, saes[1].W_dec).over_larger)
    assert record["value"] == pytest.approx(np.mean(list(by_pair.values())))
    without = [np.mean([v for pair, v in by_pair.items() if i not in pair]) for i in range(5)]
    error = math.sqrt(4 / 5 * np.square(np.array(without) - np.mean(without)).sum())
    assert record["stderr"] == pytest.approx(error)
    assert record["ci95"][1] == pytest.approx(record["value"] + student.ppf(0.975, 4) * error)
    three = stability(saes[:3], ["seed_stability"], seed_stability={"draws": 0})["seed_stability"]
    values = column(three, "pairs", "matched", view="decoder")
    assert three.values["decoder_matched"]["ci95"] is None
    assert f"from {min(values):.4g} to {max(values):.4g}" in three.values["decoder_matched"]["reason"]
    assert "decoder_matched_floor" not in three.values
    two = stability(saes[:2], ["seed_stability"])["seed_stability"]
    assert "one pair" in two.values["decoder_matched"]["reason"]


def test_a_feature_is_found_in_all_only_where_every_other_sae_has_it():
    model = TinyModel(d_model=64)
    saes = [Given.random(s, n=100, d=64, bias=0.0) for s in range(3)]
    for other, share in ((1, 60), (2, 30)):
        saes[other].W_dec[:share] = saes[0].W_dec[:share]
    found = stability(saes, ["seed_stability"], model=model, rows=tiny_tokens(rows=40))["seed_stability"]
    assert value(found, "decoder_found_in_all") == pytest.approx(0.3)


def test_kinds_are_compared_within_and_across():
    base = [Given.random(s, bias=0.0) for s in (0, 1)]
    named = {f"{kind}-{i}": noisy(10 * k + i, 0.01, base[k]) for k, kind in enumerate("ab") for i in (0, 1)}
    kinds = {"first": ["a-*"], "second": ["b-*"]}
    found = stability(named, seed_stability={"kinds": kinds}, functional_stability={"kinds": kinds})
    for metric, name in (("seed_stability", "decoder_matched"), ("functional_stability", "pearson_matched")):
        table = {
            (a, b): (n, mean, low, high)
            for a, b, n, mean, low, high in zip(
                *(column(found[metric], "kinds", c, value=name)
                  for c in ("kind_a", "kind_b", "pairs", "mean", "lowest", "highest")), strict=True)
        }  # fmt: skip
        assert table["first", "first"][0] == table["second", "second"][0] == 1
        assert table["first", "second"][0] == 4
        assert table["first", "second"][2] <= table["first", "second"][1] <= table["first", "second"][3]
        assert min(table["first", "first"][1], table["second", "second"][1]) > table["first", "second"][3] + 0.1


def features(saes, rows, model):
    batch = rows.batch(range(len(rows)), "cpu")
    x = model.capture(batch, ["blocks.1.hook_resid_pre"], False).activations["blocks.1.hook_resid_pre"][batch.mask]
    return [sae.encode(x).double().numpy() for sae in saes]


def dense_best(similarity):
    rows, cols = linear_sum_assignment(-similarity)
    return similarity[rows, cols].sum()


def test_functional_matching_equals_a_dense_solver_on_numpys_correlations():
    rows, model = tiny_tokens(rows=60, documents=30), TinyModel()
    saes = [Given.random(0), Given.random(1, n=40)]
    A, B = features(saes, rows, model)
    found = stability(saes, ["functional_stability"], rows=rows, functional_stability={"alive_firings": 10})
    A, B = (x[:, (x != 0).sum(0) >= 10] for x in (A, B))
    n, m = A.shape[1], B.shape[1]
    correlation = np.corrcoef(A.T, B.T)[:n, n:]
    both = ((A != 0).T.astype(float)) @ (B != 0)
    jaccard = both / ((A != 0).sum(0)[:, None] + (B != 0).sum(0)[None] - both)
    result = found["functional_stability"]
    for view, similarity in (("pearson", correlation), ("jaccard", jaccard)):
        assert value(result, f"{view}_matched") == pytest.approx(dense_best(similarity) / max(n, m), abs=1e-9)
        assert value(result, f"{view}_max_a_to_b") == pytest.approx(similarity.max(1).mean(), abs=1e-9)
        assert value(result, f"{view}_max_b_to_a") == pytest.approx(similarity.max(0).mean(), abs=1e-9)


def test_a_feature_that_never_varies_is_unmatched_and_counts():
    class Constant(Given):
        """Its first feature is 1 on every token."""

        def encode(self, x):
            acts = super().encode(x)
            return torch.cat([torch.ones_like(acts[..., :1]), acts[..., 1:]], -1)

    sae = Given.random(0, bias=0.5)
    same = Constant(sae.W_dec, sae.W_enc, sae.b_enc)
    result = stability([same, same.copy(torch.arange(32), torch.ones(32))], ["functional_stability"])[
        "functional_stability"
    ]
    assert column(result, "members", "pearson_features")[0] == 31
    assert column(result, "members", "jaccard_features")[0] == 32
    other = stability([sae, sae.copy(torch.arange(32), torch.ones(32))], ["functional_stability"])[
        "functional_stability"
    ]
    assert value(other, "pearson_matched") == pytest.approx(1)
    # `copy` does not keep the constant, so only the first side has a feature without a partner.
    assert value(result, "pearson_matched") == pytest.approx(31 / 32)
    assert value(result, "pearson_matched_over_smaller") == pytest.approx(1)


def test_shifts_keep_how_often_features_fire_and_lose_what_on():
    """Features that fire independently of each other score their floor; the copy scores far above it."""

    class Random(Given):
        """Features that depend on the token's own hash, not on what the model makes of it."""

        def __init__(self, seed):
            given = Given.random(seed)
            super().__init__(given.W_dec, given.W_enc, given.b_enc)
            self.seed = seed

        def encode(self, x):
            keys = (x.double().abs().sum(-1, keepdim=True) * 1e6 + 7919.0 * self.seed).sin() * 43758.5453
            u = ((keys + torch.arange(32) * 0.618033).sin() * 9973.0).frac().abs()
            return torch.where(u > 0.8, u, 0.0).float()

    rows = tiny_tokens(rows=200, documents=60, context=20)
    result = stability([Random(0), Random(1)], ["functional_stability"], rows=rows,
                       functional_stability={"draws": 20})["functional_stability"]  # fmt: skip
    for name in ("pearson_matched", "jaccard_matched", "pearson_max_a_to_b"):
        (found,), (floor,), (spread,) = (column(result, "floors", c, value=name)
                                         for c in ("found", "shifted", "shifted_sd"))  # fmt: skip
        assert found == pytest.approx(floor, abs=5 * spread)
    one = tiny_tokens(documents=1)
    alone = stability([Random(0), Random(1)], ["functional_stability"], rows=one)["functional_stability"]
    assert "pearson_matched_floor" not in alone.values


def refused(saes, groups, params=None, metric="seed_stability"):
    entry = {metric: {"over": "g", **(params or {})}}
    with pytest.raises(SaevalError) as caught:
        evaluate_tiny([entry], saes=saes, groups={"g": groups})
    return str(caught.value)


@pytest.mark.parametrize("metric", BOTH)
def test_what_cannot_be_compared_is_told_before_anything_runs(metric):
    here, there = Given.random(0), TinySAE("blocks.2.hook_resid_pre")
    told = refused({"a": here}, ["a"], metric=metric)
    assert "group 'g' has one SAE, 'a'" in told
    told = refused({"a": here, "b": there}, ["a", "b"], metric=metric)
    assert "'a' is at blocks.1.hook_resid_pre, 'b' is at blocks.2.hook_resid_pre" in told
    told = refused({"a": here, "b": Given.random(1)}, ["*"], {"kinds": {"one": ["a"]}}, metric=metric)
    assert "'b' matches none of the kinds" in told
    assert "alive_tokens" in refused({"a": here, "b": Given.random(1)}, ["*"], {"alive_tokens": 0}, metric=metric)


def test_weights_that_are_not_finite_and_features_that_never_fire():
    bad = Given.random(1)
    bad.W_dec[3, 0] = torch.nan
    entry = {"seed_stability": {**FEW, "over": "g"}}
    results = evaluate_tiny([entry], saes={"a": Given.random(0), "b": bad}, groups={"g": ["*"]})
    assert results[0].status == "undefined"
    assert results[0].reason == "W_dec of 'b' holds 1 NaN or infinite values of 512"
    dead = Given.random(1, bias=-1e6)
    results = evaluate_tiny([entry], saes={"a": Given.random(0), "b": dead}, groups={"g": ["*"]})
    assert results[0].status == "undefined"
    assert "no feature of 'b' fires on 1 of" in results[0].reason
    with pytest.raises(SaevalError, match="'modes' is empty"):
        evaluate_tiny([{"seed_stability": {"over": "g", "modes": []}}], saes=[Given.random(0)], groups={"g": ["*"]})


def test_a_leaderboard_says_that_the_errors_of_a_group_are_over_its_seeds():
    def board(count):
        saes = {f"sae-{i}": seeded(Given.random(i), i) for i in range(count)}
        results = evaluate_tiny([{"seed_stability": {**FEW, "over": "g"}}], saes=saes, groups={"g": ["*"]})
        return results.leaderboard()

    four, two = board(4), board(2)
    assert "clustered by document, of groups over the seeds of their SAEs;" in four
    assert "| g (4)" in four
    assert "over the seeds" not in two
    assert "the first" in two  # the note says which tokens decide what is alive


def test_sections_hold_the_charts_and_the_tables():
    from saeval_stability.pages import sections

    saes = {f"sae-{i}": Given.random(i) for i in range(3)}
    entries = ["l0", *({name: {**FEW, "over": "g"}} for name in BOTH)]
    results = evaluate_tiny(entries, saes=saes, groups={"g": ["*"]})
    found = {section.name: section for section in sections(list(results))}
    assert set(found) == {"seed-stability-g", "functional-stability-g"}
    drawn = {name: [chart.name for chart in section.charts] for name, section in found.items()}
    shared = ["pairs", "heat-map", "similarities"]
    assert drawn == {"seed-stability-g": [*shared, "matchings"], "functional-stability-g": shared}
    for section in some(found.values()):
        for chart in some(section.charts):
            check_chart(chart)
    tables = {table.name: table for table in found["seed-stability-g"].tables}
    l0 = results.value("l0", "sae-1")["value"]
    assert l0 in next(row for row in tables["members"].rows if row[0] == "sae-1")
    mean = results.value("seed_stability.decoder_matched", "sae-0, sae-1, sae-2")["value"]
    row = next(row for row in tables["means"].rows if row[0] == "decoder_matched")
    assert row[1] == mean
    assert row[2].startswith("pairs range from")
    ranges = {r[0]: (r[1], re.match(r"(\w+) range from ([\d.e-]+) to ([\d.e-]+);", r[2])) for r in tables["means"].rows}
    assert ranges["decoder_found_in_all"][1][1] == "members"
    assert every(float(m[2]) - 1e-3 <= value <= float(m[3]) + 1e-3 for value, m in ranges.values() if m)
    assert sections(list(results)) == list(found.values())  # nothing drawn at random
    assert sections([r for r in results if r.metric == "l0"]) == []


def test_every_pair_is_drawn_with_its_number_and_its_floor():
    from saeval_stability.plots import heat_map, pairs

    saes = {f"sae-{i}": Given.random(i) for i in range(8)}
    (result,) = evaluate_tiny([{"seed_stability": {**FEW, "over": "g"}}], saes=saes, groups={"g": ["*"]})
    stored = {tuple(row[:3]): row[5] for row in result.values["pairs"]["rows"] if row[2] == "decoder"}
    assert len(stored) == 28
    drawn = {
        r["pair"]: r["matched"] for r in pairs(result).data if r["view"].startswith("decoder (") and "group" in r["of"]
    }
    assert drawn == {f"{a} – {b}": matched for (a, b, _), matched in stored.items()}
    cells = [r for r in heat_map(result).data if r["view"].startswith("decoder (")]
    assert {(r["column"], r["row"]): r["matched"] for r in cells} == {(a, b): m for (a, b, _), m in stored.items()}
    assert every(r["excess"] == r["matched"] - r["floor"] for r in cells)
    assert every(r["text"] == f"{r['matched']:.2f} | {r['floor']:.2f}" for r in cells)
