"""What classes say of themselves: one line for `ls`, a page for `show`."""

from __future__ import annotations

import math

import pytest
import torch
from jaxtyping import Bool
from torch import Tensor

from saeval import Curve, Mean, Metric, Scalar, cli
from saeval.interfaces.documentation import Documented, description, documentation, documented_values
from saeval.interfaces.sae import SAELoader
from saeval.interfaces.substitute import Control
from saeval.testing import evaluate_tiny


class Bare(Metric):
    name = "bare"


class Mine(Metric):
    """The norm.

    Of the decoder.
    """


class Derived(Mine):
    pass


class Said(Metric):
    description = "said so"


def test_a_base_class_of_plugins_says_nothing_of_a_plugins_own_class():
    assert documentation(Bare) == description(Bare) == ""
    assert description(type("Format", (SAELoader,), {})) == description(type("Own", (Control,), {})) == ""
    assert description(Mine) == description(Derived) == "The norm."
    assert documentation(Derived).endswith("Of the decoder.")
    assert description(Said) == "said so"


MALFORMED = {
    "three parts": "    norm: ‖W_dec‖; ≥ 0; lower is better.",
    "no direction": "    norm: ‖W_dec‖; weight; ≥ 0; lower.",
    "indented by two": "  norm: ‖W_dec‖; weight; ≥ 0; lower is better.",
}


@pytest.mark.parametrize("line", MALFORMED.values(), ids=MALFORMED)
def test_a_malformed_line_is_named_and_show_prints_the_page(line, tmp_path, capsys):
    made = type("Made", (Metric,), {"name": "made", "__doc__": f"One.\n\nValues:\n{line}\n"})
    with pytest.raises(ValueError, match=r"metric 'made': .*norm: ‖W_dec‖"):
        documented_values(made)
    (tmp_path / "made.py").write_text(
        "from saeval.plugin import Metric, Scalar, hookimpl\n\n\nclass Made(Metric):\n"
        f'    """One.\n\n    Values:\n    {line}\n    """\n\n    name = "made"\n\n'
        "    def conclude(self, W_dec):\n        return Scalar(1.0)\n\n\n"
        "@hookimpl\ndef saeval_metrics():\n    return [Made]\n",
        encoding="utf-8",
    )
    for name in ("made", "made.norm"):
        assert cli.main(["show", name, "--plugin", str(tmp_path / "made.py")]) == 0
        assert line.strip() in capsys.readouterr().out


def test_ls_prints_nothing_inherited(tmp_path, capsys):
    (tmp_path / "bare.py").write_text(
        "from saeval.plugin import Metric, hookimpl\n\n\nclass Bare(Metric):\n    name = 'bare'\n\n"
        "    def conclude(self, W_dec):\n        return None\n\n\n"
        "@hookimpl\ndef saeval_metrics():\n    return [Bare]\n"
    )
    assert cli.main(["ls", "metrics", "--plugin", str(tmp_path / "bare.py")]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("bare ")]
    assert "(no description)" in line
    assert cli.main(["show", "bare", "--plugin", str(tmp_path / "bare.py")]) == 0
    assert "(no documentation)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("range", "bounds"),
    [
        ("≥ 0", (0, math.inf)), ("−∞ .. 1", (-math.inf, 1)), ("-1 .. 1", (-1, 1)), ("0 .. d_sae", (0, math.inf)),
        ("−∞ .. ∞, 1 is the whole margin", (-math.inf, math.inf)), ("≤ 2", (-math.inf, 2)),
        ("as above", (-math.inf, math.inf)),
    ],
)  # fmt: skip
def test_a_documented_range_is_two_numbers(range, bounds):
    assert Documented(("a",), "b", "c", range, "lower is better").bounds == bounds


class Halves(Metric):
    """Each token's share of a whole.

    Values:
        share: token mean; share; ≤ 1; higher is better.
        by_*: the same; share; ≥ 0; higher is better.
        free: the same; share; −∞ .. ∞; higher is better.
    """

    name, version, value_names = "halves", 1, ("share", "by_size", "free")

    def observe(self, mask: Bool[Tensor, "batch seq"]) -> Mean:
        one = mask.nonzero()[0]
        large = torch.zeros(mask.shape)
        large[one[0]] = 6.0
        return Mean.of(large.double(), mask)

    def conclude(self, total: Mean) -> dict:
        share = total.value
        return {"share": Scalar(share), "by_size": Curve([1.0], [share]), "free": Scalar(share)}


def test_intervals_end_at_the_documented_bounds_of_their_values():
    (result,) = evaluate_tiny(["halves"], Halves, preflight="off")
    share, by_size, free = (result.values[name] for name in ("share", "by_size", "free"))
    assert free["ci95"][0] < 0 < free["value"] < 1 < free["ci95"][1]
    assert share["ci95"] == [free["ci95"][0], 1]
    assert by_size["ci95"] == [[0, free["ci95"][1]]]
    assert share["stderr"] == by_size["stderr"][0] == free["stderr"]


class Counts(Metric):
    """How many tokens there are.

    Values:
        seen, more: #tokens; tokens; ≥ 0; no better direction, depends on the number of tokens: it is that number, so
            to speak.
        half: seen / 2; tokens; ≥ 0; no better direction.
    """

    name, version, value_names = "counts", 1, ("seen", "more", "half")

    def observe(self, mask: Bool[Tensor, "batch seq"]) -> Mean:
        return Mean.of(torch.ones(mask.shape, dtype=torch.float64), mask)

    def conclude(self, total: Mean) -> dict:
        return {name: Scalar(float(total.value.n)) for name in ("seen", "more", "half")}


def test_a_value_that_depends_on_the_number_of_tokens_says_so_wherever_it_stands(tmp_path, capsys):
    results = evaluate_tiny(["counts"], Counts, preflight="off", out=tmp_path, key="counts")
    tokens = f"{results[0].cell['data']['tokens']:,} tokens"
    said = (
        f"on the number of tokens: it is that number, so to speak; here {tokens}. Compare them only where that is equal"
    )
    assert f"counts.seen, counts.more depend {said}" in results.leaderboard()
    (chart,) = results.charts("counts").values()
    titles = [part["layer"][0]["encoding"]["x"]["title"] for part in chart.spec["concat"]]
    assert [title.endswith(f"at {tokens}") for title in titles] == [True, True, False]
    key = results[0].key
    assert cli.main(["show", str(results.folder), key]) == 0
    assert f"seen, more depend {said}" in capsys.readouterr().out
    page = results.report(tmp_path / "page")[-1].read_text(encoding="utf-8")
    assert f"counts.seen, counts.more depend {said}" in page


@pytest.mark.parametrize(
    ("direction", "depends"),
    [
        ("lower is better, depends on the number of tokens: few show less", "the number of tokens: few show less"),
        ("lower is better", ""),
    ],
)
def test_a_documented_dependence_follows_the_direction(direction, depends):
    documented = type("M", (Metric,), {"name": "m", "__doc__": f"M.\n\nValues:\n    a: f; u; ≥ 0; {direction}.\n"})
    (line,) = documented_values(documented)
    assert (line.better, line.depends) == ("lower is better", depends)


@pytest.mark.parametrize(
    "direction", ["lower is better, depends on ", "lower is better, depends", "better, depends on x"]
)
def test_a_malformed_dependence_is_refused(direction):
    documented = type("M", (Metric,), {"name": "m", "__doc__": f"M.\n\nValues:\n    a: f; u; ≥ 0; {direction}.\n"})
    with pytest.raises(ValueError, match="is not 'NAMES: EQUATION; UNIT; RANGE; DIRECTION"):
        documented_values(documented)
