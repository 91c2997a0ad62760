"""A family of SAEs has one colour and shape in all charts of a page, and in the files of `plot` and `report`."""

from __future__ import annotations

import json
import re

import pytest

from made_folders import HOOK, fill
from saeval import cli
from saeval.testing.chart_checks import channels
from saeval.testing.claims import every, some

NAMES = ("topk", "relu", "jumprelu (trained as batchtopk)", "mine")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """SAEs of four families in the order of `NAMES`; the first has no L0, so the frontier's charts lack it."""
    facts = [{"architecture": "topk"}, {"architecture": "relu"}, {"architecture": "jumprelu"}, {"architecture": "relu"}]
    facts[2]["details"] = {"training_architecture": "batchtopk"}
    facts[3]["family"] = "mine"
    names = ["empty", "b", "c", "d", "e"]
    saes = [
        {"name": name, "hook_name": HOOK, "key": name, "kind": "sae", **own}
        for name, own in zip(names, [*facts, facts[1]], strict=True)
    ]
    return fill(tmp_path_factory.mktemp("families") / "made", saes, metrics=("ce", "l0"), also=["ce.delta_ce"])


def marks_in(spec):
    """The colours and shapes of the names on each scale of a specification."""
    for channel, given in channels(spec):
        if channel in ("color", "shape") and isinstance(scale := given.get("scale"), dict) and "domain" in scale:
            yield from ((name, channel, mark) for name, mark in zip(scale["domain"], scale["range"], strict=True))


def test_in_all_charts_of_the_page_and_of_the_files(folder, tmp_path, capsys):
    assert cli.main(["report", str(folder), "--to", str(tmp_path / "page")]) == 0
    page = (tmp_path / "page" / "index.html").read_text(encoding="utf-8")
    blocks = {
        name: json.loads(re.search(rf'id="data-{name}">(.*?)</script>', page)[1]) for name in ("boards", "sections")
    }
    assigned = blocks["boards"][0]["marks"]
    assert tuple(assigned) == NAMES
    assert len({tuple(mark) for mark in assigned.values()}) == len(NAMES)
    assert cli.main(["plot", str(folder), "--format", "json", "--to", str(tmp_path / "all")]) == 0
    assert cli.main(["plot", str(folder), "--metric", "ce", "--format", "json", "--to", str(tmp_path / "ce")]) == 0
    specs = [chart["spec"] for section in blocks["sections"] for chart in section["charts"]]
    files = sorted([*(tmp_path / "all").glob("*.json"), *(tmp_path / "ce").glob("*.json")])
    specs += [json.loads(file.read_text(encoding="utf-8")) for file in files]
    seen = {mark for spec in specs for mark in marks_in(spec)}
    assert {name for name, _, _ in seen} >= {*NAMES}
    expected = {(name, ("color", "shape")[i], mark[i]) for name, mark in assigned.items() for i in (0, 1)}
    assert every((name, channel, mark) in expected for name, channel, mark in some(seen) if name in NAMES)
    (pareto,) = [spec for spec in specs if "pareto" in json.dumps(spec).lower()][:1]
    assert {name for name, _, _ in marks_in(pareto)} == {*NAMES[1:]}


def test_the_page_has_the_family_of_each_row_as_a_property(folder, tmp_path):
    assert cli.main(["report", str(folder), "--to", str(tmp_path)]) == 0
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    (board,) = json.loads(re.search(r'id="data-boards">(.*?)</script>', page)[1])
    (family,) = [one["values"] for one in board["properties"] if one["name"] == "family"]
    found = dict(zip([row["name"] for row in board["rows"]], family, strict=True))
    assert found == {"empty": "topk", "b": "relu", "c": NAMES[2], "d": "mine", "e": "relu"}
