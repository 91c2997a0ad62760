"""What charts show can be read and is what the results say: axes, intervals, undefined numbers, names, outliers."""

from __future__ import annotations

import json

import pytest

from saeval.plugin import Chart, chart_files, charts
from saeval.testing import check_chart
from saeval.testing.claims import every, some

HOSTILE = [
    "<script>alert(1)</script>", "</script><script>alert(1)</script>", "a|b`c`", "two\nlines", "\x1b[31mred", "=cmd()",
    "$x$", "x" * 200,
]  # fmt: skip


def made(records, log=None, name="a", bars="x"):
    x = charts.quantity("value", "cost, nats", charts.extent(records, "value"), log=log)
    y = charts.names("SAE", None, [r["SAE"] for r in records])
    layers = [
        *charts.dots(x, y, bars=bars),
        *charts.no_number(y, "value", "reason"),
        *charts.reference("x", 1, text="one"),
    ]
    return Chart(name, "Costs", charts.BARS, charts.single(layers, 200, {"step": 16}), records, "A dot for each SAE")


def record(name, value, ci95=None, reason=""):
    return {"SAE": name, **charts.measured(value, ci95), "reason": reason}


def drawn(chart):
    return chart_files.svg(chart).decode()


@pytest.mark.parametrize(
    ("low", "high"),
    [(0.83, 1.7), (0.96, 1.04), (1, 1.01), (0.02, 0.9), (0.3, 40), (3e-4, 2.7e-3), (1e-6, 10), (1e-30, 1e9)],
)
def test_a_logarithmic_axis_has_three_to_twelve_labels(low, high):
    ticks = charts.log_ticks(low, high)
    assert 3 <= len(ticks) <= 12
    assert len(set(ticks)) == len(ticks)
    assert every(low <= tick <= high for tick in ticks)


def test_an_axis_is_logarithmic_only_if_the_spread_needs_it_and_all_is_positive():
    kinds = [charts.quantity("v", "t", numbers)["scale"].get("type") for numbers in ([1, 2], [1, 200], [0, 1, 200], [])]
    assert kinds == [None, "log", None, None]


def test_an_undefined_number_has_no_mark_but_its_row_and_its_reason():
    svg = drawn(made([record("a", 2.0, (1, 3)), record("b", None, reason="nothing fires"), record("c", float("nan"))]))
    marks = [part for part in svg.split("<path")[1:] if 'roledescription="point"' in part]
    assert len(marks) == 1
    assert ">nothing fires</text>" in svg
    assert every(f">{name}</text>" in svg for name in "abc")


def test_numbers_that_are_not_positive_have_no_mark_on_a_logarithmic_axis_and_are_counted():
    records = [record("a", 2.0), record("b", -1.0), record("c", 0.0), record("d", None)]
    chart = made(records, log=True)
    assert drawn(chart).count('aria-roledescription="point"') == 1
    said = "; 1 value undefined; 2 values not above 0, left out of the logarithmic axis"
    assert charts.lost(records, "value", charts.quantity("value", "t", [2.0], log=True)) == said


def test_an_outlier_stands_at_the_edge_in_figures_and_the_others_keep_their_places():
    near = [record(f"n{i}", i / 10, (i / 10 - 0.01, i / 10 + 0.01)) for i in range(9)]
    moved, far = charts.clipped([*near, record("far", 1e9, (1e8, 1e10))], "value")
    assert far == 1
    assert every(r["shown"] == r["value"] and r["shown_high"] == r["value_high"] for r in moved[:-1])
    assert (moved[-1]["value"], moved[-1]["beyond"]) == (1e9, "→ 1e+09")
    assert 0.8 < moved[-1]["shown"] == moved[-1]["shown_high"] < 2
    assert charts.clipped(near, "value")[1] == 0


def test_nothing_is_moved_where_all_can_be_told_apart():
    wide = [record(f"n{i}", i / 10, (i / 10 - 1, i / 10 + 1)) for i in range(9)]
    assert charts.clipped([*wide, record("far", 5.0)], "value")[1] == 0  # the intervals need the room anyway
    assert charts.clipped([record(str(i), 1.0) for i in range(9)], "value")[1] == 0


def test_labels_are_short_and_distinct_and_keep_both_ends_of_a_name():
    long = [f"layer_{layer}/width_16k/average_l0_{l0}/{'x' * 30}" for layer in (1, 2) for l0 in (10, 20)]
    short = charts.labels([*long, "x", "y"])
    assert len(set(short.values())) == 6
    assert every(len(label) <= charts.LONGEST + 4 for label in short.values())
    assert charts.labels(["folder/a", "folder/b"]) == {"folder/a": "a", "folder/b": "b"}
    assert charts.labels(["sae/relu-5-seed1-of-a-very-long-name-indeed"])[
        "sae/relu-5-seed1-of-a-very-long-name-indeed"
    ] == ("sae/relu-5-seed1-…long-name-indeed")


def test_labels_keep_what_tells_names_apart():
    """Folders of a model, a hook and a module around the SAE's own name, as trainers write them."""
    names = [
        f"smollm2/{hook}/topk-k{k}-seed{seed}/{module}@{hook}"
        for hook, module in (("blocks.6.hook_resid_post", "layers.6"), ("blocks.14.hook_mlp_out", "layers.14.mlp"))
        for k in (16, 128)
        for seed in (0, 1)
    ]
    short = charts.labels([*names, "smollm2/blocks.6.hook_resid_post/relu@blocks.6.hook_resid_post"], 60)
    assert short[names[0]] == "topk-k16-seed0/layers.6@blocks.6.hook_resid_post"
    assert len(set(short.values())) == 9
    shorter = charts.labels([name.partition("@")[0] for name in names])
    assert every(f"k{k}-seed{seed}" in label for label, (k, seed) in zip(
        shorter.values(), [(16, 0), (16, 1), (128, 0), (128, 1)] * 2, strict=True
    ))  # fmt: skip


def test_hostile_names_are_text_in_every_format():
    chart = made([record(name, 1.0 + i) for i, name in enumerate(HOSTILE)])
    check_chart(chart)
    svg, page = drawn(chart), chart_files.html(chart).decode()
    assert "<script" not in svg
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in svg
    specification = page.rpartition("vegaEmbed(")[2]
    assert "<script" not in specification
    assert "\\u003cscript\\u003ealert(1)" in specification
    lines = chart_files.csv(chart).decode().splitlines()
    assert len(lines) == 1 + len(HOSTILE)
    assert lines[6].startswith("'=cmd()")
    names = [r["SAE"] for r in json.loads(chart_files.as_json(chart))["data"]["values"]]
    assert names[3:5] == ["two⏎lines", "\\x1b[31mred"]


def test_equal_charts_give_equal_bytes_in_every_format():
    for form in some(chart_files.FORMATS):
        first, second = (chart_files.content(made([record("a", 2.0, (1, 3))]), form) for _ in range(2))
        assert first == second
        assert first != chart_files.content(made([record("a", 2.5, (1, 3))]), form)


def test_a_page_fetches_nothing():
    page = chart_files.html(made([record("a", 2.0, (1, 3))])).decode()
    assert "src=" not in page.partition("<script>")[0]
    assert page.count("<script") == 2
    assert page.count("</script>") == 2


def test_the_csv_file_has_every_number_in_full_and_undefined_ones_empty():
    csv = chart_files.csv(made([record("a", 1 / 3, (0.1, 0.5)), record("b", None)])).decode()
    assert csv == f"SAE,value,value_low,value_high,reason\na,{1 / 3!r},0.1,0.5,\nb,,,,\n"


@pytest.mark.parametrize(
    ("chart", "message"),
    [
        (made([]), "has no data"),
        (made([record("a", 1.0)], name="a/b"), "is not the stem of a file"),
        (made([{"SAE": "a", "value": 1.0}]), "no record has the field 'value_low'"),
        (Chart("a", "t", "s", {"mark": "spot"}, [{"v": 1}], "d"), "does not follow the schema of Vega-Lite"),
        (Chart("a", "t", "s", {"mark": "bar", "data": {}}, [{"v": 1}], "d"), "has data of its own"),
    ],
)
def test_a_wrong_chart_is_found(chart, message):
    with pytest.raises(AssertionError, match=message):
        check_chart(chart)


@pytest.mark.parametrize("value", [float("inf"), object()])
def test_data_that_json_does_not_have_is_refused(value):
    chart = Chart("a", "t", "s", {"mark": "bar"}, [{"v": value}], "d")
    with pytest.raises(ValueError, match="is no text, finite number or None"):
        chart_files.whole(chart)
