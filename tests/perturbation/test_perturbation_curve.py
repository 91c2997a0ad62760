"""The metric `perturbation_curve`: points, cosine bins, what is refused, and the pages of both metrics."""

from __future__ import annotations

import json
import re
from itertools import product

import numpy as np
import pytest
import torch

from perturbations import PLUGIN, Planted, Readout, run, values
from saeval.cli import main
from saeval.plugin import chart_files
from saeval.results.paired_tests import holm
from saeval.results.verdicts import verdicts_on
from saeval.stats.evidence import Stamp
from saeval.testing import TinyModel, TinySAE, check_chart, tiny_tokens
from saeval.testing.claims import every, some
from saeval_perturbation.bins import COLUMNS, EDGES, by_cosine, in_bins
from saeval_perturbation.pages import sections
from saeval_perturbation.plots import curve_chart, site_and_layer


def saes(count, hook_name="blocks.1.hook_resid_pre"):
    return {f"sae-{hook_name[7]}-{i}": TinySAE(hook_name, seed=i) for i in range(count)}


@pytest.mark.parametrize("cosines", [[0.5], [0.0, 0.5, 0.9, 0.99]])
def test_m_points_cost_m_resumes_a_batch_and_hook_and_no_clean_pass_more(cosines):
    rows, before, after = tiny_tokens(rows=20), TinyModel(), TinyModel()
    several = {**saes(2), **saes(1, "blocks.2.hook_resid_pre")}
    draws = {"draws": 2, "positions": 1}
    run(["kl", {"perturbation": draws}], model=before, rows=rows, saes=several, batch_size=4)
    curve = {"perturbation_curve": {"cosines": cosines, **draws}}
    run(["kl", {"perturbation": draws}, curve], model=after, rows=rows, saes=several, batch_size=4)
    points = len(cosines) + 1  # and c = 1
    # The draws are those of `perturbation`; the points belong to the hook: 2 hooks, 5 batches.
    assert after.passes["resumed"] - before.passes["resumed"] == 5 * 2 * points
    assert (after.passes["clean"], after.passes["cut"]) == (before.passes["clean"], before.passes["cut"])


def test_points_are_what_their_equation_says():
    """x' = r‖x‖(c·u + s·v): the scale point is exact, and small angles cost ½ δᵀHδ."""
    model, rows = Readout(), tiny_tokens(rows=60, documents=40)
    sae = TinySAE("blocks.0.hook_resid_pre")
    cosine = 1 - 1e-8
    entries = [
        {"perturbation_curve": {"as": "unit", "cosines": [cosine, -1, 0, 0.5], "norm_ratio": 1}},
        {"perturbation_curve": {"as": "scaled", "norm_ratio": 0.9}},
    ]
    found = run(entries, model=model, rows=rows, saes=[sae])
    unit, scaled = values(found, "unit", "tinysae"), values(found, "scaled", "tinysae")
    assert unit["kl_floor"] == pytest.approx(0, abs=1e-12)
    batch = rows.batch(range(len(rows)), "cpu")
    x = model.embed[batch.tokens[batch.mask]]
    p = (x @ model.head_weight).softmax(-1)

    def kl(new):
        return float((p * (p.log() - (new @ model.head_weight).log_softmax(-1))).sum(-1).mean())

    assert scaled["kl_floor"] == pytest.approx(kl(0.9 * x), rel=1e-9)
    curve = next(r for r in found if r.metric == "unit").values["kl"]
    assert curve["x"] == [-1, 0, 0.5, cosine, 1]
    assert curve["y"][0] == pytest.approx(kl(-x), rel=1e-9)
    assert curve["y"][1] > curve["y"][2] > curve["y"][3] > 0
    # Averaged over v, uniform among the 15 directions perpendicular to u: E[vᵀHv] = (tr H − uᵀHu)/15.
    w, u = model.head_weight, x / x.norm(dim=1, keepdim=True)
    hessian = torch.einsum("av,tv,bv->tab", w, p, w) - torch.einsum("ta,tb->tab", p @ w.T, p @ w.T)
    across = hessian.diagonal(dim1=1, dim2=2).sum(1) - torch.einsum("ta,tab,tb->t", u, hessian, u)
    expected = 0.5 * (1 - cosine**2) * float((x.norm(dim=1).square() * across / 15).mean())
    assert curve["y"][3] == pytest.approx(expected, rel=0.1)


def test_the_saes_point_stands_beside_noise_matched_to_it_alone():
    found = run([{"perturbation_curve": {"draws": 3}}, {"perturbation": {"draws": 3}}, "reconstruction"], saes=saes(2))
    for name in ("sae-1-0", "sae-1-1"):
        mine = values(found, "perturbation_curve", name)
        noise, geometry = values(found, "perturbation", name), values(found, "reconstruction", name)
        for value in ("kl_sae", "kl_cosine_matched", "delta_ce_sae", "delta_ce_cosine_matched", "ratio"):
            assert mine[value] == noise[value]
        assert mine["cosine"] == pytest.approx(geometry["cosine"])
        assert mine["norm_ratio"] == pytest.approx(geometry["norm_ratio"])
    first, second = [r.values["kl"] for r in found if r.metric == "perturbation_curve"]
    assert first == second  # of the hook, whatever the SAE
    assert first["x"][-1] == 1
    assert len(first["x"]) == 13


def binned(cosine, difference, documents):
    """The table of made-up differences, one row a sequence."""
    where = torch.ones(cosine.shape, dtype=torch.bool)
    stamp = Stamp(np.arange(len(cosine)), documents, int(documents.max()) + 1)
    total = {name: part.stamp(stamp) for name, part in in_bins(difference, cosine, where).items()}
    return [dict(zip(COLUMNS, row, strict=True)) for row in by_cosine(total, "").record()["rows"]]


def test_bins_find_a_planted_crossing_and_leave_thin_bins_undefined():
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(80, 10, generator=generator, dtype=torch.float64)
    cosine = torch.full((80, 10), 0.6).double()
    cosine[:, 5:] = 0.985
    cosine[:3, 0] = -0.2
    cosine[0, 9] = 1.0
    cosine[1, 9] = torch.nan  # no direction
    difference = torch.where(cosine < 0.9, -1.0, 0.5) + noise
    rows = binned(cosine, difference, np.arange(80) // 2)
    assert [(r["from"], r["to"]) for r in rows] == [(-1.0, 0.0), (0.5, 0.7), (0.98, 0.99), (0.99, 1.0)]
    thin, low, high, one = rows
    assert thin["difference"] is thin["p"] is one["p"] is None
    assert thin["reason"] == "1.8 effective documents have a token in this bin; 20 are needed"
    assert (one["tokens"], low["documents"], low["tokens"]) == (1, 40, 397)
    assert low["ci95_low"] < -1 < low["ci95_high"] < 0 < high["ci95_low"] < 0.5 < high["ci95_high"]
    assert max(low["p"], high["p"]) < 1e-6
    assert low["share_worse"] < 0.25 < 0.6 < high["share_worse"]


def test_a_bin_in_which_all_documents_agree_has_the_p_value_of_the_sign_test():
    cosine, documents = torch.full((80, 10), 0.6).double(), np.arange(80) // 2
    (same,) = binned(cosine, torch.full((80, 10), -1.0).double(), documents)
    assert (same["stderr"], same["p"]) == (0, 2.0**-39)
    (none,) = binned(cosine, torch.zeros(80, 10).double(), documents)
    assert none["p"] is None


def test_a_bin_that_one_document_fills_is_not_tested():
    difference = torch.randn(80, 10, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    where = torch.zeros(80, 10, dtype=torch.bool)
    where[:60] = True
    where[60:, 0] = True
    documents = np.concatenate([np.zeros(60, dtype=np.int64), np.arange(1, 21)])
    total = {
        name: part.stamp(Stamp(np.arange(80), documents, 21))
        for name, part in in_bins(difference, torch.full((80, 10), 0.6).double(), where).items()
    }
    (row,) = by_cosine(total, "").record()["rows"]
    assert row[COLUMNS.index("documents")] == 21
    assert row[COLUMNS.index("p")] is row[COLUMNS.index("ci95_low")] is None
    assert row[COLUMNS.index("reason")].startswith("1.07 effective documents")


def test_a_bin_that_few_positions_decide_is_not_tested():
    difference = torch.randn(80, 10, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    cosine = torch.full((80, 10), 0.6).double()
    assert binned(cosine, difference, np.arange(80))[0]["p"] is not None
    difference[:5, 0] *= 50
    (row,) = binned(cosine, difference, np.arange(80))
    assert row["p"] is row["difference"] is None
    assert re.fullmatch(r"the mean rests on \d\d effective positions; 100 are needed", row["reason"])


def test_the_test_by_bin_is_false_five_times_in_a_hundred():
    """1,000 runs of 40 documents of two correlated sequences, with no difference anywhere."""
    generator = torch.Generator().manual_seed(0)
    documents = np.arange(80) // 2
    found = 0
    for _ in range(1000):
        difference = torch.randn(40, 1, generator=generator).double().repeat_interleave(2, 0)
        difference = difference + torch.randn(80, 4, generator=generator)
        (row,) = binned(torch.full((80, 4), 0.93).double(), difference, documents)
        found += row["p"] < 0.05
    assert 30 <= found <= 70


def test_single_positions_tell_an_ignored_error_from_a_harmful_one_bin_by_bin():
    entry = {"perturbation_curve": {"positions": 3}}
    planted = [
        {"use": "planted", "name": "ignored", "dimension": 15, "size": 2.0},
        {"use": "planted", "name": "harmful", "dimension": 0, "size": 2.0},
    ]
    rows = tiny_tokens(rows=120, documents=60)
    found = run(
        [entry], model=Readout(loud=5), rows=rows, saes=[TinySAE("blocks.0.hook_resid_pre")],
        control_classes=[Planted], controls=planted,
    )  # fmt: skip
    for subject, sign, share in (("ignored", -1, 0), ("harmful", 1, 0.8)):
        (result,) = [r for r in found if r.subject == subject]
        for name in ("by_cosine", "by_cosine_later"):
            rows_of = [dict(zip(COLUMNS, row, strict=True)) for row in result.values[name]["rows"]]
            tested = [row for row in rows_of if row["p"] is not None]
            assert tested
            assert sum(row["tokens"] for row in rows_of) <= 3 * 120
            for row in some(tested):
                assert sign * row["difference"] > 0
                assert row["p"] < 1e-3
                assert row["share_worse"] == share if share == 0 else row["share_worse"] > share
    # Positions see only themselves here, so what is summed over later ones is the same.
    assert result.values["by_cosine"] == result.values["by_cosine_later"]
    assert [EDGES[0], EDGES[-1]] == [-1, 1]


def test_sections_hold_the_charts_and_the_tables_of_each_metric():
    several = {**saes(2), **saes(1, "blocks.2.hook_resid_pre")}
    found = run(
        [{"perturbation": {"positions": 1}}, {"perturbation_curve": {"positions": 4, "as": "curve"}}],
        saes=several, controls=["mean"], rows=tiny_tokens(rows=120, documents=60),
    )  # fmt: skip
    damage, curve = sections(list(found))
    assert [chart.name for chart in (*damage.charts, *curve.charts)] == ["kl", "ratio", "curve", "matched"]
    for chart in some([*damage.charts, *curve.charts]):
        check_chart(chart)
    tables = {table.name: table for table in damage.tables}
    assert list(tables) == ["differences", "without-tail", "percentiles", "kl", "ratios", "alone"]
    record = next(r for r in found if r.subject == "sae-1-1").values["kl_shuffled_error"]
    rows = {name: next(row for row in table.rows if row[0] == "sae-1-1") for name, table in tables.items()}
    assert float(rows["kl"][5].split("±")[0]) == pytest.approx(record["value"], abs=record["stderr"])
    for name in ("percentiles", "kl", "ratios", "alone"):
        assert ["mean", "blocks.1.hook_resid_pre"] in [list(row[:2]) for row in tables[name].rows]
    claims = [v for v in verdicts_on(list(found)) if v.row.name == "sae-1-1" and v.claimed]
    assert str(rows["differences"]).count("harmful") == len(some(claims))
    assert damage.summary[0].startswith("perturbation.difference")
    assert str(rows["without-tail"]).count("%)") == len(claims)
    (bins,) = curve.tables
    lines = [dict(zip(bins.headers, row, strict=True)) for row in bins.rows]
    assert {(line["subject"], line["of"]) for line in lines} == set(
        product(several, ("position", "position and later"))
    )
    assert len({line["hook"] for line in lines}) == 2
    raw = [line["p"] for line in lines]
    assert sum(p is not None for p in raw) >= 4
    assert [line["p_holm"] for line in lines] == holm(raw)
    assert sections([r for r in found if r.metric == "nothing"]) == []
    drawn = {r["SAE"]: r for r in damage.charts[0].data if r["of"] == "SAE"}
    for result in some([r for r in found if r.metric == "perturbation" and r.subject in several]):
        assert drawn[result.subject]["kl"] == result.values["kl_sae"]["value"]


def test_an_sae_has_no_height_beside_the_curve_of_its_mean_cosine():
    found = run([{"perturbation_curve": {"positions": 4, "as": "curve"}}], saes=saes(2))
    chart = curve_chart(list(found))
    marked = [r for r in chart.data if r["of"] == "mean cosine of an SAE"]
    assert {r["SAE"] for r in marked} == set(saes(2))
    assert every(r["kl"] is None for r in marked)
    svg = chart_files.svg(chart).decode()
    assert svg.count('aria-roledescription="tick"') == 2


@pytest.mark.parametrize(
    ("hook", "place"),
    [
        ("blocks.3.hook_resid_pre", ("resid_pre", 3)),
        ("blocks.11.attn.hook_z", ("attn.z", 11)),
        ("transformer.h.7", ("transformer.h", 7)),
        ("hook_embed", ("hook_embed", 0)),
    ],
)
def test_a_hook_has_a_place_in_the_plots(hook, place):
    assert site_and_layer(hook) == place


SUITE = """
suite: wrong
model: {{use: testbed}}
data: {{use: python-stdlib, context: 16, sequences: 4}}
saes:
  - {sae}
metrics:
  - {metric}
"""


@pytest.mark.parametrize(
    ("metric", "said"),
    [
        ("perturbation_curve: {cosines: [0.5, 1.5]}", "8:5: metric 'perturbation_curve': cosines must be between -1 and 1, got 1.5"),
        ("perturbation_curve: {cosines: [-1.01]}", "8:5: metric 'perturbation_curve': cosines must be between -1 and 1, got -1.01"),
        ("perturbation_curve: {norm_ratio: 0}", "8:5: metric 'perturbation_curve': norm_ratio must be above 0, got 0"),
        ("perturbation_curve: {norm_ratio: -0.9}", "8:5: metric 'perturbation_curve': norm_ratio must be above 0, got -0.9"),
        ("perturbation_curve: {draws: 0}", "8:5: metric 'perturbation_curve': draws must be at least 1, got 0"),
        ("perturbation: {draws: 0}", "8:5: metric 'perturbation': draws must be at least 1, got 0"),
        ("perturbation: {positions: -1}", "8:5: metric 'perturbation': positions must be 0 (none) or more, got -1"),
        ("perturbation: {nulls: [gaussian]}", "'nulls.0' of metric 'perturbation': input should be"),
        ("perturbation: {draw: 2}", "unknown parameter 'draw' of metric 'perturbation'; did you mean 'draws'?"),
    ],
)  # fmt: skip
def test_wrong_parameters_are_one_clear_error_each(tmp_path, capsys, metric, said):
    file = tmp_path / "s.yaml"
    file.write_text(SUITE.format(sae="testbed/topk-8", metric=metric))
    assert main(["check", str(file), *PLUGIN]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith(f"{file}:8:")
    assert said in line


def test_a_hook_that_the_model_lacks_is_one_clear_error(tmp_path, capsys, saelens_folder):
    folder = saelens_folder(hook_name="blocks.9.hook_mlp_out")
    file = tmp_path / "s.yaml"
    file.write_text(SUITE.format(sae=f"{{use: saelens, path: {folder}, name: mine}}", metric="perturbation_curve"))
    assert main(["check", str(file), *PLUGIN]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith(f"{file}:6:5: mine: model 'testbed' has no hook 'blocks.9.hook_mlp_out'")


HOOKS = ("blocks.0.hook_resid_pre", "blocks.1.attn.hook_z", "blocks.2.hook_attn_out", "blocks.3.hook_mlp_out")


def test_every_kind_of_hook_of_a_real_model_has_both_and_a_report(tmp_path, monkeypatch, capsys, saelens_folder):
    monkeypatch.chdir(tmp_path)
    entries = [f"  - {{use: saelens, path: {saelens_folder(hook_name=h, name=h)}, name: {h}}}" for h in HOOKS]
    text = SUITE.format(
        sae="SAES", metric="perturbation: {draws: 1}\n  - perturbation_curve: {draws: 1, cosines: [0.9]}"
    )
    (tmp_path / "s.yaml").write_text(text.replace("  - SAES", "\n".join(entries)))
    assert main(["run", "s.yaml", "--allow", "*", "--format", "json", *PLUGIN]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {row["hook_name"] for row in rows} == set(HOOKS)
    for row in some(rows):
        assert row["perturbation.ratio"] > 0
        assert row["perturbation.kl_mean"] > 0
        assert row["perturbation_curve.kl_floor"] > 0
        assert row["perturbation_curve.kl_cosine_matched"] == row["perturbation.kl_cosine_matched"]
    assert main(["report", "results/wrong", *PLUGIN]) == 0
    assert capsys.readouterr().out.count(".png") == 4
