"""What a run with `--limit` prints is of its own rows, and everything built on it says that it was limited."""

from __future__ import annotations

import json

import numpy as np
import pytest

from saeval import cli, run
from saeval.plan.streams import First
from saeval.results import chart_files
from saeval.results.pages import write_pages
from saeval.results.report import Report
from saeval.results.sections import Chart, Section
from saeval.testing import evaluate_tiny, tiny_tokens
from saeval.testing.architectures import tiny_tokenizer
from saeval.testing.claims import every, some
from saeval_data.preferences import Preferences

SAID = "Limited run: only the first 8 sequences were used. Its numbers are not comparable with others."
SUITE = {
    "suite": "s", "model": "testbed", "data": {"use": "python-stdlib", "context": 16, "sequences": 64},
    "saes": ["testbed/relu-3", "testbed/relu-5"], "metrics": ["l0", "reconstruction", {"perturbation": {"draws": 1, "nulls": []}}],
}  # fmt: skip


@pytest.fixture(scope="module")
def limited(tmp_path_factory):
    out = tmp_path_factory.mktemp("limited")
    results = run(SUITE, out=out, limit=8)
    assert len(results) == 6
    assert not results.failed
    return out / "s", results


def test_the_counts_are_those_of_the_rows_that_were_run(limited):
    _, results = limited
    data = results[0].cell["data"]
    scored = results.value("l0.l0", "testbed/relu-3")["n"]
    assert data["tokens"] == scored < 8 * 16
    assert data["sequences"] == 8
    assert 1 < data["documents"] <= 8
    assert f"8 sequences, {data['documents']} documents, {scored} tokens" in results.leaderboard()
    assert "clusters" not in results.leaderboard()


@pytest.mark.parametrize("rows", [1, 5, 24, 100])
def test_counts_of_the_first_rows(rows):
    whole = tiny_tokens()
    first = First(whole, rows)
    batch = whole.batch(np.arange(min(rows, 24)), "cpu")
    described = first.describe()
    assert described["tokens"] == int(batch.mask.sum())
    assert described["documents"] == first.n_clusters == len(np.unique(batch.clusters))
    assert described["sequences"] == len(first)


def test_identical_pairs_are_counted_among_the_first(tmp_path):
    path = tmp_path / "p.jsonl"
    sides = [("w1 w2 w3 w4", "w1 w2 w3 w4"), ("w1 w2", "w1 w3"), ("w5", "w5")]
    path.write_text("".join(json.dumps({"chosen": a, "rejected": b}) + "\n" for a, b in sides))
    pairs = Preferences(path=str(path)).dataset("evaluation", tiny_tokenizer)  # the longest first
    assert [First(pairs, n).describe()["identical"] for n in (1, 2, 3)] == [1, 1, 2]
    assert pairs.describe()["identical"] == 2


def test_boards_and_comparisons_say_it_first(limited, capsys):
    folder, results = limited
    assert cli.main(["leaderboard", str(folder), "--include-limited"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("## ")
    assert printed[2] == f"**{SAID}**"
    names = ["testbed/relu-3", "testbed/relu-5"]
    assert cli.main(["compare", str(folder), *names, "--include-limited"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("## ")
    assert printed[2] == f"**{SAID}**"
    assert results.compare(*names).limit == SAID
    assert cli.main(["compare", str(folder), *names, "--include-limited", "--format", "json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert rows
    assert every(row["limited"] is True for row in rows)


def test_a_whole_run_says_nothing_of_it(tmp_path):
    results = run({**SUITE, "metrics": ["l0"], "data": {**SUITE["data"], "sequences": 4}}, out=tmp_path)
    assert "imited" not in results.leaderboard() + results.compare("testbed/relu-3", "testbed/relu-5").limit


def test_every_page_says_it_first(limited, capsys):
    folder, _ = limited
    assert cli.main(["report", str(folder), "--include-limited"]) == 0
    pages = [line for line in capsys.readouterr().out.splitlines() if line]
    texts = [page for page in pages if page.endswith((".md", ".html"))]
    assert texts
    for page in some(texts):
        text = (folder / "report" / page.rpartition("/")[2]).read_text(encoding="utf-8")
        assert SAID in text.partition("<main")[2 * ("<main" in text)][:700], page


def test_pages_of_any_plugin_are_headed(limited, tmp_path):
    def pages(results):
        html = "<!doctype html>\n<html><head><title>x</title></head>\n<BODY class='a'>\n<h1>x</h1></BODY></html>"
        return {"a.md": "# x\n", "a.html": html, "a.csv": "a,b\n"}

    _, results = limited
    written, failed = write_pages([Report("mine", pages=pages)], list(results), tmp_path)
    assert not failed
    assert {path.name for path in written} == {"a.md", "a.html", "a.csv"}
    page = (tmp_path / "a.md").read_text()
    assert page.startswith(f"**{SAID} Fewer than 20 effective documents (")
    assert page.endswith("**\n\n# x\n")
    body = (tmp_path / "a.html").read_text().partition("<BODY class='a'>")[2]
    assert body.startswith(f'\n<p role="alert"><strong>{SAID} Fewer than 20 effective documents (')
    assert (tmp_path / "a.csv").read_text() == "a,b\n"


def test_a_chart_has_it_above_its_own_title(limited, tmp_path):
    chart = Chart("c", "Own title", "subtitle", {"mark": "point"}, [{"v": 1}], "description")
    assert chart_files.whole(chart, SAID)["title"]["text"][-1] == "Own title"
    assert " ".join(chart_files.whole(chart, SAID)["title"]["text"]) == f"{SAID} Own title"
    assert chart_files.whole(chart)["title"]["text"] == ["Own title"]
    _, results = limited
    own = Section("s", "Title", charts=[chart])
    written, _ = write_pages([Report("mine", sections=lambda results: [own])], list(results), tmp_path)
    assert [path.name for path in written] == ["mine.md", "s-c.png"]
    assert written[0].read_text().startswith(f"**{SAID}")
    assert written[1].read_bytes() == chart_files.png(chart, SAID)


def test_a_page_without_a_body_is_headed_too(tmp_path):
    pages = {"a.html": "<p>hello</p>", "B.MD": "hello"}
    results = list(evaluate_tiny(["l0"], limit=2))
    written, failed = write_pages([Report("r", pages=lambda results: pages)], results, tmp_path)
    assert (len(written), failed) == (2, [])
    assert every("only the first 2 sequences were used" in path.read_text() for path in written)


@pytest.mark.parametrize("name", ["", ".", " "])
def test_a_page_without_a_name_is_one_sentence(tmp_path, name):
    _, failed = write_pages([Report("r", pages=lambda results: {name: "hello"})], [], tmp_path)
    assert failed == [f"report 'r' failed: ValueError: the page name {name!r} cannot be a file name"]


def test_a_limit_that_cuts_nothing_makes_no_limited_run(tmp_path):
    suite = {
        "suite": "few", "model": {"use": "testbed"}, "saes": ["testbed/topk-8"], "metrics": ["l0"],
        "data": {"use": "python-stdlib", "context": 16, "sequences": 4},
    }  # fmt: skip
    results = run(suite, out=tmp_path, limit=9)
    assert "Limited" not in results.leaderboard()
    assert [r.status for r in run(suite, out=tmp_path)] == ["ok"]
    assert run(suite, out=tmp_path).forward_passes == 0
    assert (tmp_path / "few" / "manifest.json").exists()
