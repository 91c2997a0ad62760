"""The robustness report: several models side by side, SAEs as points, outliers named."""

from __future__ import annotations

import pytest

from saeval.cli import main
from saeval.testing import TinyModel, TinySAE, check_chart, evaluate_tiny, tiny_tokens
from saeval.testing.chart_checks import channels
from saeval.testing.claims import every, some
from saeval_perturbation.robustness import (
    ModelRun,
    Place,
    Point,
    SAEPoint,
    _outliers_in_words,
    chart,
    model_runs,
    sections,
)

CURVE = {"perturbation_curve": {"cosines": [0.5, 0.9], "norm_ratio": 1, "draws": 1, "as": "curve"}}


def alone(seed=0, **options):
    return evaluate_tiny(
        [CURVE],
        model=TinyModel(seed=seed),
        saes=[],
        hooks=["blocks.*"],
        controls=["identity", "zero", "mean"],
        **options,
    )


def test_models_stand_side_by_side_and_saes_at_their_hooks_as_points():
    saes = evaluate_tiny([CURVE], saes={"mine": TinySAE()}, name="others")
    results = [*alone(), *alone(seed=1), *saes]
    (section,) = sections(results)
    assert section.name == "curve-robustness"
    assert [drawn.name for drawn in section.charts] == ["kl", "delta_ce"]
    for drawn in some(section.charts):
        check_chart(drawn)
        assert {r["model"] for r in drawn.data} == {"tiny", "tiny (2)"}
    made = {table.name: table for table in section.tables}
    assert list(made) == [
        "kl-1",
        "delta_ce-1",
        "saes-1",
        "kl-2",
        "delta_ce-2",
        "numbers",
    ]  # the SAE is of the first alone
    assert every(made[name].headers[1:] == ["c = 0.5", "c = 0.9", "zero", "mean"] for name in ("kl-1", "delta_ce-2"))
    (row,) = made["saes-1"].rows
    assert (row[0], row[1], row[-1]) == ("mine", "blocks.1.hook_resid_pre", "the same")
    rows = [dict(zip(made["numbers"].headers, row, strict=True)) for row in made["numbers"].rows]
    for name, kind in (("c = 0.9", "hook"), ("zero", "control"), ("mine", "sae")):
        (row,) = (
            r for r in rows
            if (r["model"], r["of"], r["hook"], r["quantity"]) == ("tiny", name, "blocks.1.hook_resid_pre", "kl")
        )  # fmt: skip
        (result,) = (
            r for r in [*results[:12], *saes]
            if r.cell["subjects"][0]["kind"] == kind and name in (r.subject, "c = 0.9")
            and r.cell["subjects"][0]["hook_name"] == row["hook"]
        )  # fmt: skip
        value = result.values["kl"]["y"][1] if kind == "hook" else result.values["kl_sae"]["value"]
        assert row["value"] == value


def test_without_hooks_of_its_own_a_run_has_no_page():
    assert sections(list(evaluate_tiny([CURVE], controls=["zero"]))) == []


def planted(factors):
    """A run whose KL of `zero` is 1, 2 and 4 at three sites, times the factors by hook."""
    places = {}
    for site, base in (("resid_pre", 1.0), ("attn_out", 2.0), ("mlp_out", 4.0)):
        for layer in range(6):
            place = Place(f"blocks.{layer}.hook_{site}")
            value = base * (1 + 0.01 * (layer - 2.5)) * factors.get(place.hook_name, 1)
            place.values["kl"]["zero"] = Point(value, None, None)
            places[place.hook_name] = place
    return ModelRun("m", "m", "", 1.0, places, ["zero"])


def test_outliers_are_far_from_their_sites_median():
    assert planted({}).outliers("kl", "zero") == {}
    run = planted({"blocks.4.hook_mlp_out": 10})
    assert run.outliers("kl", "zero") == {"blocks.4.hook_mlp_out": pytest.approx(10, rel=0.1)}
    assert "blocks.4.hook_mlp_out (zero 10×)" in _outliers_in_words(run, "kl")
    assert [r["hook"] for r in chart([run], "kl").data if r["outlier"] is not None] == ["blocks.4.hook_mlp_out"]
    assert run.outliers("delta_ce", "zero") == {}


@pytest.mark.parametrize(("factor", "outliers"), [(1.05, 0), (1.09, 1)])
def test_the_limit_of_outliers_is_3_5_scaled_deviations(factor, outliers):
    """The median deviation is 0.015, so the limit is 3.5 · 1.4826 · 0.015 = 0.078; the hook itself deviates by 0.015."""
    assert len(planted({"blocks.4.hook_mlp_out": factor}).outliers("kl", "zero")) == outliers


def test_only_controls_of_the_hook_are_drawn():
    beside = evaluate_tiny(
        [CURVE], saes={"mine": TinySAE()}, hooks=["blocks.*"], controls=["zero", {"use": "random", "seeds": 2}]
    )
    (run,) = model_runs(list(beside))
    assert run.names == ["c = 0.5", "c = 0.9", "zero"]


def test_several_folders_are_drawn_together(tmp_path, capsys):
    for seed, name in enumerate("ab"):
        alone(seed, name=name, out=tmp_path, key="k")
    folders = [str(tmp_path / name) for name in "ab"]
    assert main(["report", *folders, "--to", str(tmp_path / "to"), "--format", "robustness", "perturbation"]) == 0
    *written, page = [line.removeprefix(f"{tmp_path}/to/") for line in capsys.readouterr().out.splitlines()]
    assert page == "index.html"
    assert written == [
        "a/perturbation.md", "a/curve-curve.png", "b/perturbation.md", "b/curve-curve.png", "robustness.md",
        "curve-robustness-kl.png", "curve-robustness-delta_ce.png", *([written[-1]] if written[-1].endswith(".csv") else []),
    ]  # fmt: skip
    assert "tiny (2): " in (tmp_path / "to" / "robustness.md").read_text()
    assert main(["report", *folders, "--format", "robustness"]) == 0
    assert "tiny (2)" not in (tmp_path / "b" / "report" / "robustness.md").read_text()


def test_the_identity_is_not_drawn():
    (run,) = model_runs(list(alone()))
    assert run.names == ["c = 0.5", "c = 0.9", "zero", "mean"]


def test_the_data_of_an_sae_are_named_if_they_are_not_those_of_the_noise():
    saes = evaluate_tiny([CURVE], saes={"mine": TinySAE()}, name="others", rows=tiny_tokens(rows=12, seed=5))
    (section,) = sections([*alone(), *saes])
    (row,) = next(table for table in section.tables if table.name == "saes-1").rows
    assert "12 sequences" in row[-1]
    (result,) = saes
    assert row[2:4] == [result.values[name]["value"] for name in ("cosine", "norm_ratio")]


def test_the_plot_counts_what_a_logarithmic_axis_cannot_show_and_tells_controls_apart():
    run = planted({"blocks.4.hook_mlp_out": -1})
    run.names = ["zero", "mean", "resample", "principal_components"]
    for place in run.places.values():
        place.values["kl"] |= dict.fromkeys(run.names[1:], Point(1.0, None, None))
    below = Point(-0.1, None, None)
    run.places["blocks.0.hook_mlp_out"].saes.append(SAEPoint("s", 0.9, 1.0, {"kl": below}, "the same"))
    drawn = chart([run], "kl")
    assert "2 values not above 0, left out of the logarithmic axis" in drawn.subtitle
    assert "left out" not in chart([planted({})], "kl").subtitle
    scale = next(c["scale"] for name, c in channels(drawn.spec) if name == "strokeDash")
    dashes = dict(zip(scale["domain"], map(tuple, scale["range"]), strict=True))
    assert len({dashes[name] for name in run.names}) == 4
