"""`saeval certify`: the verdicts on metrics whose worth is known, what they rest on, and what they cost."""

from __future__ import annotations

import itertools
import json
import re
import shutil
from contextlib import redirect_stderr
from pathlib import Path

import numpy as np
import pytest
import yaml
from scipy.stats import kendalltau

from saeval import Plugins, SaevalError, certify, cli, run
from saeval.api import prepare
from saeval.base.run_options import RunOptions
from saeval.certification import planned
from saeval.registry.registry import Registry
from saeval.results.certificate import stored
from saeval.results.leaderboard import boards
from saeval.results.paired_tests import difference, holm
from saeval.testing.claims import every, some
from saeval_models.hooked import HookedModel

PLUGIN = Path(__file__).with_name("planted_metrics.py")
SAES = ["relu-3", "relu-5", "relu-5-seed1", "topk-8", "topk-32"]
SUITE = {
    "suite": "planted",
    "model": {"use": "testbed"},
    "data": {"use": "python-stdlib", "context": 32, "sequences": 20, "exclude": ["bos"], "packing": "documents"},
    "saes": [f"testbed/{name}" for name in SAES],
    "groups": {"seeds": ["testbed/relu-5*"]},
    "controls": [
        "mean",
        {"use": "frozen_decoder", "seeds": 1, "epochs": 1},
        {"use": "random", "seeds": 1},
        {"use": "shuffled_decoder", "seeds": 1},
    ],
    "metrics": ["reconstruction", {"ce": {"ablation": "mean"}}, "noise", "constant", "sparse", "backwards"],
}
DOSES = [0.2, 1.0]


@pytest.fixture(scope="module")
def certified(tmp_path_factory):
    """The folder of a certified suite, with its certificate and the numbers of clean passes of it and of the suite."""
    folder = tmp_path_factory.mktemp("certified")
    (folder / "planted.yaml").write_text(yaml.safe_dump(SUITE))
    clean, capture = [], HookedModel.capture

    def counted(self, batch, hooks, final, *rest, **options):
        clean.append(final)
        return capture(self, batch, hooks, final, *rest, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(HookedModel, "capture", counted)
        arguments = ["planted.yaml", "--plugin", str(PLUGIN)]
        run("planted.yaml", out="alone", plugins=Plugins([PLUGIN]))
        alone = len(clean)
        doses = ["--doses", *map(str, DOSES)]
        with (folder / "said").open("w") as said, redirect_stderr(said):
            assert cli.main(["certify", *arguments, "--out", "results", "--reseeds", "2", *doses]) == 0
        beside = len(clean) - alone
    found = json.loads((folder / "results/planted/certificate.json").read_text())
    return folder / "results", {one["column"]: one for one in found["values"]}, alone, beside


@pytest.mark.parametrize(
    ("column", "verdict", "reason"),
    [
        ("noise.value", "unusable", "it does not tell the SAEs from frozen_decoder or random or shuffled_decoder"),
        ("constant.value", "unusable", "it is the same for all SAEs and controls"),
        ("sparse.value", "unusable", "it gets better with dropped_features"),
        ("backwards.value", "unusable", "it ranks frozen_decoder, random, shuffled_decoder before the SAEs"),
        ("reconstruction.explained_variance", "ranking", ""),
        ("ce.delta_ce", "ranking", ""),
        ("ce.ce_clean", "describes", ""),
    ],
)
def test_each_planted_metric_gets_the_verdict_it_deserves(certified, column, verdict, reason):
    found = certified[1][column]
    assert found["verdict"] == verdict, found["reasons"]
    assert reason in "; ".join(found["reasons"])


def test_the_ladder_costs_no_clean_pass(certified):
    _, _, alone, beside = certified
    assert alone > 0
    assert beside == alone


def test_the_cost_is_said_first(certified):
    first = (certified[0].parent / "said").read_text().splitlines()[0]
    manifest = json.loads((certified[0] / "planted/manifest.certificate.json").read_text())
    cells = len(manifest["cells"]["key"])
    assert first.startswith(f"certify planted: {cells} cells, 0 of them stored; ")
    assert re.search(r"; \d+ clean passes, \d+ resumed passes; roughly ", first)


def test_a_certificate_of_few_rows_says_so_and_holds_for_no_others(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    suite = {**SUITE, "saes": SUITE["saes"][:2], "groups": {}, "controls": [], "metrics": ["reconstruction"]}
    (tmp_path / "few.yaml").write_text(yaml.safe_dump({**suite, "suite": "few"}))
    assert cli.main(["certify", "few.yaml", "--limit", "4", "--doses", "0.5", "--reseeds", "1"]) == 0
    assert "From 2 SAEs and 4 sequences (--limit), on this model and text alone" in capsys.readouterr().out
    assert json.loads((tmp_path / "results/few/certificate.json").read_text())["limit"] == 4
    run("few.yaml")
    (board,) = boards(["results/few"])
    assert board.rows
    assert not [column.name for column in board.columns if column.certified[0]]


def test_the_suites_own_run_takes_its_results_from_the_certificates(certified):
    out = certified[0]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(out.parent)
        again = run("planted.yaml", out="results", plugins=Plugins([PLUGIN]))
    assert again.forward_passes == 0
    assert {subject["name"] for r in again for subject in r.cell["subjects"] if subject["kind"] == "sae"} == {
        f"testbed/{name}" for name in SAES
    }


def test_leaderboards_quote_the_verdicts_and_only_on_what_they_hold_for(certified, capsys, tmp_path):
    out = certified[0]
    names = ["noise.value", "ce.delta_ce"]
    assert cli.main(["leaderboard", str(out / "planted"), "--columns", *names, "--format", "md"]) == 0
    text = capsys.readouterr().out
    assert "noise.value ↑ ✗" in text
    assert "ce.delta_ce ↓ ✓" in text
    assert "certificate: ✓ usable for ranking (ce.delta_ce)" in text
    (board,) = boards([out / "planted"])
    marks = {column.name: column.certified[0] for column in board.columns}
    assert marks["constant.value"] == "✗"
    assert marks["ce.ce_clean"] == ""

    other = {**SUITE, "data": {**SUITE["data"], "sequences": 8}, "metrics": ["reconstruction"], "controls": []}
    run(other, out=tmp_path)
    shutil.copy(out / "planted/certificate.json", tmp_path / "planted/certificate.json")
    (fewer,) = boards([tmp_path / "planted"])
    assert not [column.name for column in fewer.columns if column.certified[0]]


def test_a_damaged_certificate_is_one_sentence(certified, tmp_path):
    target = tmp_path / "planted"
    target.mkdir()
    content = (certified[0] / "planted/certificate.json").read_text()
    (target / "certificate.json").write_text(content.replace('"ranking"', '"unusable"', 1))
    with pytest.raises(
        SaevalError, match=r"certificate\.json: not readable .*run `saeval certify` again, or delete it"
    ):
        stored(target)


def test_its_numbers_are_those_of_the_rows(certified):
    out, found, *_ = certified
    manifest = out / "planted/manifest.certificate.json"
    assert manifest.is_file()
    folder = out.parent / "whole"
    if not folder.exists():
        shutil.copytree(out / "planted", folder)
        shutil.copy(manifest, folder / "manifest.json")
    (board,) = boards([folder], every_column=True)
    name = "ce.delta_ce"
    trained = [row for row in board.rows if row.kind == "sae"]
    pairs = [(a, b) for a, b in itertools.combinations(trained, 2) if not ("relu-5" in a.name and "relu-5" in b.name)]
    p_values = holm([difference(a.entries[name], b.entries[name]).p_value for a, b in pairs])
    share = np.mean([p < 0.05 for p in p_values])
    assert found[name]["apart"]["value"] == pytest.approx(share)
    taus = []
    for row in some(trained):
        rungs = [r for r in board.rows if r.of == row.name and r.control and r.control.startswith("dropped_features ")]
        rungs.sort(key=lambda rung: float(rung.control.split("=")[1]))
        assert len(rungs) == len(DOSES)
        values = [row.entries[name].value, *(rung.entries[name].value for rung in rungs)]
        taus.append(kendalltau(range(len(values)), values).statistic)
    doses = {dose["damage"]: dose for dose in found[name]["doses"]}
    assert doses["dropped_features"]["tau"]["value"] == pytest.approx(np.mean(taus))
    noise = [
        [row.entries[f"noise{end}.value"].value for end in ("", *(f"-reseed{i}" for i in (1, 2)))] for row in trained
    ]
    assert found["noise.value"]["evaluation"]["value"] == pytest.approx(np.sqrt(np.mean(np.var(noise, axis=1, ddof=1))))
    seeds = [row.entries[name].value for row in trained if "relu-5" in row.name]
    assert found[name]["training"]["value"] == pytest.approx(np.std(seeds, ddof=1))
    orders = {(o["better"], o["worse"]): o["share"] for o in found["backwards.value"]["orders"]}
    assert orders["trained", "shuffled_decoder"]["value"] == 0
    assert orders["trained", "shuffled_decoder"]["high"] == pytest.approx(
        1 - 1 / (1 + 1.96**2 / len(trained)), abs=1e-3
    )
    same = {one["column"]: one["rho"]["value"] for one in found[name]["same"]}
    assert same["ce.ce_sae"] == pytest.approx(1)


def test_the_page_has_the_verdicts(certified):
    page = (certified[0] / "planted/certificate/certificate.html").read_text()
    assert every(
        words in page
        for words in (
            "usable for ranking",
            "What gets worse under damage",
            "it does not tell the SAEs from frozen_decoder",
        )
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"saes": ["testbed/relu-3"]}, "a certificate compares SAEs, so the suite needs at least two"),
        ({"precision": {"ce.delta_ce": 0.1}}, "a certificate needs the same rows for all SAEs; leave out 'precision'"),
    ],
)
def test_what_cannot_be_certified_is_one_sentence(changes, message, tmp_path):
    suite = {**SUITE, "metrics": [{"ce": {"ablation": "mean"}}], "groups": {}, **changes}
    with pytest.raises(SaevalError, match=message):
        certify(suite, out=tmp_path)


def test_controls_of_some_saes_or_of_a_share_are_joined_by_whole_ones():
    controls = [{"use": "random", "of": "testbed/relu-3"}, {"use": "shuffled_decoder", "share": 0.5}]
    rung = {"use": "dropped_features", "share": 0.1, "name": "dropped_features share=0.1"}
    suite = {**SUITE, "metrics": ["reconstruction"], "controls": [*controls, rung]}
    plan = prepare(suite, Registry(Plugins()), RunOptions(), ())
    whole, wanted = planned(plan, 1, [0.1])
    assert wanted.standing == {"frozen_decoder": 3, "random 2": 2, "shuffled_decoder 2": 1}
    assert list(wanted.ladders["dropped_features"]) == ["dropped_features share=0.1 2"]
    built = {subject.name for subject in whole.subjects}
    assert every(f"{name}(testbed/{sae})" in built for name in wanted.standing for sae in SAES)


def test_a_dose_is_a_share(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["certify", "quickstart", "--doses", "1.5"])
    assert stop.value.code == 2
    assert "expected a share above 0 and up to 1, got '1.5'" in capsys.readouterr().err
