"""The report of concept metrics: features with the windows where they fire, leads by task, charts, foreign text."""

from __future__ import annotations

import json

import numpy as np
import pytest

from hierarchy import Hierarchy, Speller, rows
from planted import MARK, OTHER, OneHot, Reader, texts
from saeval import cli
from saeval.results.store import MANIFEST_FORM, Store
from saeval.testing import check_chart, evaluate_tiny
from saeval.testing.claims import every, some
from saeval_concepts.leads import leads
from saeval_concepts.pages import PASSAGES, sections
from saeval_explanations.windows import AFTER

SCRIPT = "<script>alert(1)</script>"
COLUMNS = {"marked": lambda row: int(row % 2), "kind": lambda row: "ab"[row // 2 % 2]}


class Words:
    """A tokenizer whose mark is hostile."""

    def decode(self, ids, **options):
        return "".join(f" {SCRIPT}" if token == MARK else f" w{token}" for token in ids)


def marks(row):
    """Rows of one class have the mark, some of them twice; of each task, the two classes have as many rows."""
    return [MARK] * (row % 2 * (1 + (row % 3 == 0))) + [OTHER] * (row // 2 % 2)


def labelled(seed, validation=0.0):
    data = texts(marks, seed, validation, columns=COLUMNS)
    data.tokenizer = Words
    return data


def run(*metrics, saes=1, **options):
    return evaluate_tiny(
        list(metrics), model=OneHot(), saes=[Reader(scale=1.0 + number) for number in range(saes)], rows=labelled(1),
        fit=labelled(2, 0.3), **options,
    )  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def _few_penalties():
    """Two penalties in place of ten, for speed."""
    with pytest.MonkeyPatch.context() as patch:
        for module in ("probes", "directions"):
            patch.setattr(f"saeval_concepts.{module}.PENALTIES", np.array([0.1, 10.0]))
        yield


PROBING = {"sparse_probing": {"k": (1, 2), "folds": 2}}


@pytest.fixture(scope="module")
def results():
    removals = {"n": (1, 2), "draws": 1}
    return run(PROBING, {"tpp": removals}, {"scr": removals}, saes=2, controls=[{"random": {"seeds": 2}}])


def examples(result):
    table = result.values["examples"]
    return [dict(zip(table["columns"], row, strict=True)) for row in table["rows"]]


def test_the_windows_of_a_planted_feature(results):
    own = [window for window in examples(results[0]) if window["task"] == "marked" and window["rank"] == 1]
    assert [window["feature"] for window in own] == [MARK] * 4
    assert [window["class"] for window in own] == ["1"] * 4
    data = labelled(1)
    for window in some(own):
        tokens, acts = json.loads(window["tokens"]), json.loads(window["activations"])
        row = data.tokens[window["row"], : 2 + 1 + AFTER]  # the first mark is the third token
        assert "".join(tokens) == Words().decode(row.tolist())
        assert acts == [1.0 if token == MARK else 0.0 for token in row]
    assert [window["row"] for window in own] == [1, 3, 5, 7]  # equal activations, by document


def test_windows_do_not_depend_on_the_size_of_a_batch():
    probing = {"sparse_probing": {"k": (2,), "folds": 2, "tasks": ("marked",)}}
    few, many = (run(probing, batch_size=size)[0].values["examples"] for size in (7, 120))
    assert len(few["rows"]) == 8
    assert few == many


def test_windows_are_texts_of_the_task_and_can_be_left_out():
    columns = {"marked": lambda row: "" if row < 60 else str(row % 2)}
    data = [texts(marks, seed, columns=columns) for seed in (1, 2)]
    probing = {"sparse_probing": {"k": (1,), "folds": 2, "examples": 2}}
    (result,) = evaluate_tiny([probing], model=OneHot(), saes=[Reader()], rows=data[0], fit=data[1])
    assert every(window["row"] >= 60 for window in examples(result))
    assert every(sum(w["rank"] == rank for w in examples(result)) <= 2 for rank in range(1, 6))
    (result,) = run({"sparse_probing": {"k": (1,), "folds": 2, "examples": 0}})
    assert examples(result) == []
    assert len(sections([result])) == 1


def test_leads_by_task_are_paired_and_average_to_the_leads_of_the_table(results):
    probing = [r for r in results if r.metric == "sparse_probing"]
    sae = probing[0]
    (control,) = leads(probing).values()
    own = [lead for lead in control if lead.result is sae]
    assert [lead.task for lead in own] == ["kind", "marked"]
    draws = [r.values["auc@2"]["value"] for r in probing if r.cell["subjects"][0].get("of") == "reader"]
    mean = sae.values["auc@2"]["value"] - np.mean(draws)
    assert len(draws) == 2
    assert np.mean([lead.value for lead in own]) == pytest.approx(mean)
    (over_neurons,) = leads([sae]).values()
    assert every(lead.over == "neurons" for lead in over_neurons)
    (result,) = run({"sparse_probing": {"k": (2,), "folds": 2, "tasks": ("kind",)}})
    ((lead,),) = leads([result]).values()
    record = result.values["lead_neurons@2"]
    assert lead.value == pytest.approx(record["value"])
    assert record["ci95"] is None or lead.ci95 == pytest.approx(tuple(record["ci95"]))


def test_the_sections_of_a_run(results):
    made = {section.name: section for section in sections(results)}
    assert list(made) == ["sparse_probing", "sparse_probing-features", "tpp", "scr"]
    assert [chart.name for chart in made["sparse_probing"].charts] == ["auc", "lead-random"]
    for chart in some([chart for section in made.values() for chart in section.charts]):
        check_chart(chart)
    curves = made["sparse_probing"].charts[0].data
    assert {r["of"] for r in curves} == {
        "features of the SAE", "features of the control random", "random features", "neurons", "principal components",
        "all activations", "tokens of the text",
    }  # fmt: skip
    assert {r["of"] for r in made["tpp"].charts[0].data} >= {"intended", "unintended", "total, random features"}
    panels = {r["panel"].split(": ")[1] for r in made["scr"].charts[0].data}
    assert panels == {"keeps kind", "keeps marked"}
    headings = {passage.heading for passage in made["sparse_probing-features"].passages}
    assert f"marked: feature {MARK} of reader, rank 1, larger in class 1" in headings


def test_a_page_shows_the_first_features_alone_if_all_are_too_many(results, monkeypatch):
    monkeypatch.setattr("saeval_concepts.pages.PASSAGES", 16)
    section = sections(results)[1]
    assert len(section.passages) == 16 < PASSAGES
    assert every(", rank 1" in passage.heading for passage in section.passages)
    assert len(section.tables[0].rows) > 16
    monkeypatch.setattr("saeval_concepts.pages.PASSAGES", 8)
    assert {p.heading.split(" of ")[1].split(",")[0] for p in sections(results)[1].passages} == {"reader"}


def test_foreign_text_is_escaped_in_the_files_of_a_report(results, tmp_path):
    store, cells = Store(tmp_path / "made"), []
    for result in results:
        store.write(result)
        cells.append({"key": result.key, "cell": result.cell})
    layout = {"rank_by": "sparse_probing.auc@1", "columns": [], "against": []}
    facts = {"schema": MANIFEST_FORM, "suite": "made", "limit": None, "leaderboard": layout, "cells": cells}
    store.write_manifest(facts)
    assert cli.main(["report", str(tmp_path / "made"), "--to", str(tmp_path / "page")]) == 0
    page = (tmp_path / "page" / "index.html").read_text(encoding="utf-8")
    assert SCRIPT not in page
    assert '<mark style="--share: 1.0" title="1"> &lt;script&gt;alert(1)&lt;/script&gt;</mark>' in page
    markdown = (tmp_path / "page" / "concepts.md").read_text(encoding="utf-8")
    assert SCRIPT not in markdown
    assert "alert" in markdown


def test_absorption_by_parent():
    absorbing = [(parent, 0) for parent in range(3)]
    found = evaluate_tiny(
        [{"absorption": {"tasks": ("kind=p*",), "random": 2, "jump": 1.0, "folds": 2}}], model=Speller(),
        saes=[Hierarchy(absorbing)], rows=rows(1), fit=rows(2, 0.3),
    )  # fmt: skip
    (section,) = sections(found)
    assert [chart.name for chart in section.charts] == ["rates", "by-parent", "interventional"]
    for chart in some(section.charts):
        check_chart(chart)
    by_parent = [r for r in section.charts[1].data if r["of"] == "full absorption"]
    assert [r["number"] for r in by_parent] == pytest.approx([0.25] * 3)
    assert every(r["number_low"] < 0.25 < r["number_high"] for r in by_parent)
    assert section.tables[0].rows[0][2:5] == [3.0, 1.0, 0.0]
