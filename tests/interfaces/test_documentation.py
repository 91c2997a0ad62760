"""What classes say of themselves: one line for `ls`, a page for `show`."""

from __future__ import annotations

import pytest

from saeval import Metric, cli
from saeval.interfaces.documentation import description, documentation, documented_values
from saeval.interfaces.sae import SAELoader
from saeval.interfaces.substitute import Control


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
