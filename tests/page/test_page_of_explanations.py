"""Features with their words on the page: sorted, searched, and found from the view of their SAE."""

from __future__ import annotations

import json

import pytest

from planted_features import RULES, Oracle, Planted, Rules, texts
from saeval import cli
from saeval.testing import evaluate_tiny

MANY = {"features": 12, "least_rows": 5, "shown": 6}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("explained")
    evaluate_tiny(
        [{"explanation": MANY}, {"detection": {**MANY, "windows": 8}}], model=Planted(),
        saes={"first": Rules(), "second": Rules()}, rows=texts(1), fit=texts(2), judge="oracle", judge_classes=[Oracle],
        out=out, name="words",
    )  # fmt: skip
    return out / "words"


@pytest.fixture
def page(run, opened, tmp_path):
    assert cli.main(["report", str(run), "--to", str(tmp_path / "to")]) == 0
    return opened(tmp_path / "to" / "index.html")


def column(table, at):
    return [row.locator("th, td").nth(at).inner_text() for row in table.locator("tbody tr").all()]


def test_features_are_sorted_and_searched(page):
    section = page.locator("section.section", has=page.get_by_role("heading", name="Features and what they mean"))
    table = section.locator("table")
    assert len(column(table, 2)) == 24
    table.locator("thead th", has_text="feature").first.click()
    assert column(table, 2) == [str(n) for n in range(12) for _ in range(2)]
    table.locator("thead th", has_text="feature").first.click()
    assert column(table, 2)[:2] == ["11", "11"]
    section.get_by_role("searchbox").fill('"pair 2"')
    assert column(table, 3) == ["pair 2", "pair 2"]
    assert section.locator(".passage, .passages").count() > 0


def test_the_view_of_an_sae_leads_to_its_features(page):
    page.locator("table.board").get_by_role("button", name="second").or_(
        page.locator("table.board").get_by_role("link", name="second")
    ).first.click()
    page.get_by_role("dialog").get_by_role("link", name="Features and what they mean").click()
    section = page.locator("section.section", has=page.get_by_role("heading", name="Features and what they mean"))
    assert set(column(section.locator("table"), 0)) == {"second"}


def test_words_are_exported(run, tmp_path):
    assert cli.main(["export", "explanations", str(run), "--to", str(tmp_path)]) == 0
    records = [json.loads(line) for line in (tmp_path / "explanations.jsonl").read_text().splitlines()]
    assert len(records) == 24
    of_first = {record["feature"]: record for record in records if record["sae"] == "first"}
    assert of_first[5]["explanation"] == RULES[5]
    assert of_first[5]["detection auc own"] == 1
    assert len(of_first[5]["windows"]) == 6
    window = of_first[5]["windows"][0]
    assert len(window["tokens"]) == len(window["activations"])
    assert "<61>" in window["tokens"]


def test_an_export_without_words(tmp_path, capsys):
    evaluate_tiny(["l0"], out=tmp_path, name="none")
    assert cli.main(["export", "explanations", str(tmp_path / "none"), "--to", str(tmp_path / "to")]) == 2
    assert "no SAE has a result of explanation, detection or fuzzing" in capsys.readouterr().err
