"""The page in Chromium: what people click, and what they then read."""

from __future__ import annotations

import csv
import io
import re
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from playwright.sync_api import expect

from made_folders import CLOSING, FORMULA, NAMES, SCRIPT, fill, subjects
from saeval import cli
from saeval.base.escapes import line
from saeval.results.leaderboard import boards
from saeval.results.paired_tests import difference
from saeval.testing.claims import every, some

OVERFLOW = (
    "(() => { const box = document.querySelector('.scrolls.wide'); return box.scrollWidth - box.clientWidth; })()"
)


def names(page):
    """The rows of the table from top to bottom, by name."""
    return page.locator("table.board tbody tr th button").all_inner_texts()


def cells(page, name):
    """The cells of a row, by its name."""
    return (
        page.locator("table.board tbody tr").filter(has=page.get_by_role("button", name=name, exact=True)).locator("td")
    )


def controls(page):
    return page.locator("[data-tick=controls] input")


def header(page, name):
    return page.locator("table.board thead th").filter(has_text=name).locator("[role=button]").first


SHOWN = [line(name) for name in NAMES]
CONTROL = "random(plain) ×3"


def test_names_are_text_and_rows_are_in_the_boards_order(opened, file):
    page = opened(file)
    assert names(page)[:5] == SHOWN[:5]
    assert names(page)[-1] == CONTROL
    assert {*names(page)} == {*SHOWN, CONTROL}
    assert page.evaluate("document.querySelectorAll('table.board script, table.board b').length") == 0
    assert page.title() == "made – saeval"


def test_sorting_puts_rows_without_a_number_last_and_changes_no_rank(opened, file):
    page = opened(file)
    controls(page).uncheck()
    before = {name: cells(page, name).nth(1).inner_text() for name in names(page)}
    header(page, "loss").click()
    page.wait_for_selector("table.board th[aria-sort=ascending]")
    up = names(page)
    header(page, "loss").click()
    page.wait_for_selector("table.board th[aria-sort=descending]")
    down = names(page)
    assert up[-1] == down[-1] == "broken"
    assert up[:-1] == list(reversed(down[:-1]))
    header(page, "loss").click()
    page.wait_for_selector("table.board th[aria-sort=descending]", state="detached")
    assert names(page)[:5] == SHOWN[:5]
    assert {name: cells(page, name).nth(1).inner_text() for name in names(page)} == before
    assert len({*before.values()}) > 3
    controls(page).check()
    for direction in ("ascending", "descending"):  # the control's loss is neither the largest nor the smallest
        header(page, "loss").click()
        page.wait_for_selector(f"table.board th[aria-sort={direction}]")
        assert names(page)[-1] == CONTROL


def test_filters_hide_rows_of_the_table_and_of_the_charts_and_change_no_rank(opened, file):
    page = opened(file)
    controls(page).uncheck()
    before = {name: cells(page, name).nth(1).inner_text() for name in names(page)}
    page.locator("[data-menu=filter] > summary").click()
    page.locator("[data-property=architecture]").get_by_text("relu (").click()
    relu = [s["name"] for s in subjects() if s.get("architecture") == "relu"]
    assert {*names(page)} == {line(name) for name in some(relu)}
    page.wait_for_selector(f".charts[data-rows='{len(relu)}']")
    assert every(cells(page, name).nth(1).inner_text() == before[name] for name in names(page))
    page.locator("[data-property=d_sae]").get_by_text("1024 (").click()
    narrow = [s["name"] for s in subjects() if s.get("architecture") == "relu" and s["d_sae"] == 1024]
    assert {*names(page)} == {line(name) for name in some(narrow)}
    page.get_by_role("button", name="Clear filters").click()
    page.keyboard.press("Escape")
    assert len(names(page)) == len(NAMES)
    page.get_by_role("searchbox").fill("SCRIPT alert")
    assert names(page) == [SCRIPT]
    page.get_by_role("searchbox").fill("nowhere")
    page.wait_for_selector(".charts[data-rows='0']")
    page.get_by_role("searchbox").fill("")
    controls(page).check()
    assert names(page)[-1] == CONTROL


def test_missing_numbers_say_why(opened, file):
    page = opened(file)
    failed = cells(page, "broken").filter(has_text="failed").locator("span.none")
    assert failed.get_attribute("title") == f"failed: RuntimeError: {SCRIPT}"
    assert f"failed: RuntimeError: {SCRIPT}" in failed.inner_text()
    texts = [cell.inner_text() for cell in cells(page, "broken").locator("span.none").all()]
    assert any("undefined: nothing fires" in text for text in texts)
    assert cells(page, "empty").nth(4).locator("span.none").get_attribute("title") == "missing"


def test_columns_are_switched_on_and_off_and_controls_subtracted(opened, file):
    page = opened(file)
    heads = page.locator("table.board thead th")
    page.locator("[data-menu=columns] > summary").click()
    page.locator("[data-group=ce]").get_by_text("ce.extra").click()
    page.locator("[data-group=properties]").get_by_text("training.steps").click()
    page.locator("[data-group=l0]").get_by_text("l0.l0").click()
    texts = " ".join(heads.all_inner_texts())
    assert "extra" in texts
    assert "training.steps" in texts
    assert "l0.l0" not in texts.replace("\n", "")
    page.keyboard.press("Escape")
    measured = cells(page, "plain").nth(2).inner_text()
    page.get_by_label("Values as").select_option("random")
    assert cells(page, "plain").nth(2).inner_text() != measured
    assert cells(page, "plain").nth(2).inner_text().startswith("-")
    lacking = cells(page, FORMULA).nth(2).locator("span.none")  # the control was built from another SAE
    assert lacking.get_attribute("title") == "no control random at this hook"
    assert cells(page, CONTROL).nth(2).locator("span.none").get_attribute("title") == (
        "a control has no control of its own"
    )
    assert "Now values are minus those of the control random" in page.locator("p.key").inner_text()


def test_the_view_of_an_sae_has_all_that_is_known_of_it(opened, file):
    page = opened(file)
    page.get_by_role("button", name=SCRIPT, exact=True).click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_text("All declared properties").click()
    text = dialog.inner_text()
    assert every(
        words in text for words in ("ce.loss", "ce.extra", "l0.l0", "relu", "1024", "training.steps", "my suite")
    )
    assert "saeval run 'my suite.yaml' --out results" in text
    expect(page.locator("dialog .drawn svg")).to_have_count(3)
    dialog.get_by_text("Raw components").first.click()
    dialog.get_by_text("Provenance").first.click()
    assert every(words in dialog.inner_text() for words in ("144", "1000 items", "1.2.3"))
    page.keyboard.press("Escape")
    assert not dialog.is_visible()
    assert page.evaluate("document.activeElement.textContent") == SCRIPT
    page.get_by_role("button", name="broken", exact=True).click()
    dialog.get_by_text("Traceback").first.click()
    assert rf"{SCRIPT}\x1b[0m" in dialog.inner_text()


def test_a_comparison_has_the_paired_differences_of_the_core(opened, folder, file):
    page = opened(file)
    for name in ("plain", SCRIPT, FORMULA):
        page.get_by_label(f"Choose {name} to compare", exact=True).check()
    page.get_by_role("button", name="Compare (3)").click()
    (board,) = boards([folder])
    entries = {row.name: row.entries["ce.loss"] for row in board.rows}
    line_ = page.locator("dialog table.compared tbody tr").filter(has_text="ce.loss")
    for name, cell in zip((SCRIPT, FORMULA), (1, 2), strict=True):
        own = difference(entries[name], entries["plain"])
        low, high = own.ci95
        shown = line_.locator("td").nth(cell).inner_text()
        value, error, *ends = map(float, re.findall(r"-?\d+\.?\d*", shown.partition("\n")[2])[:4])
        assert (value, error) == pytest.approx((own.value, own.stderr), abs=10**-3)
        assert ends == pytest.approx([low, high], abs=10**-3)
        assert shown.endswith("worse")
    page.get_by_label("reference").select_option(label=FORMULA)
    assert page.locator("dialog table.compared td.better").count() > 1


def test_copies_have_names_as_text_and_formulas_in_no_cell(opened, file):
    page = opened(file, permissions=["clipboard-read", "clipboard-write"])
    controls(page).uncheck()
    copies = {}
    for form in ("markdown", "latex", "csv"):
        page.locator("[data-menu=copy] > summary").click()
        page.locator(f"[data-copy={form}]").click()
        expect(page.locator("#said")).not_to_be_empty()
        copies[form] = page.evaluate("navigator.clipboard.readText()")
        page.keyboard.press("Escape")
        page.evaluate("document.getElementById('said').textContent = ''")
    assert rf"| {line(CLOSING).replace('<', '&lt;')} |" in copies["markdown"] or "&lt;/script>" in copies["markdown"]
    assert r"a\|b\`c\`⏎\x1b[31mred" in copies["markdown"].replace(r"\\x", r"\x").replace(r"\[", "[")
    assert {row.count("|") - row.count(r"\|") for row in some(copies["markdown"].splitlines())} == {7}
    assert r"\textless{}script\textgreater{}" in copies["latex"]
    assert copies["latex"].count(r"\\") == len(NAMES) + 1
    rows = list(csv.reader(io.StringIO(copies["csv"])))
    assert len(rows) == len(NAMES) + 1
    assert "'=cmd()" in [row[1] for row in rows]
    assert not [cell for row in some(rows) for cell in row if re.match(r"[=+@]|-\D", cell)]
    assert float(dict(zip(rows[0], rows[1], strict=True))["ce.loss"]) == 1.0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_an_accessibility_checker_finds_nothing_serious(opened, file, scheme):
    from axe_playwright_python.sync_playwright import Axe

    def serious():
        found = Axe().run(page).response["violations"]
        return [(one["id"], one["nodes"][0]["html"][:200]) for one in found if one["impact"] in ("serious", "critical")]

    page = opened(file, color_scheme=scheme)
    assert serious() == []
    page.get_by_role("button", name="plain", exact=True).click()
    expect(page.locator("dialog .drawn svg")).to_have_count(3)
    assert serious() == []


def test_what_the_signs_mean_and_what_is_wrong_is_in_view_without_a_click(opened, file):
    page = opened(file)
    expect(controls(page)).to_be_checked()
    expect(page.get_by_text("± is one standard error over documents", exact=False).first).to_be_visible()
    note = page.get_by_text("shape.size depends on the number of tokens: few show less; here 9,216 tokens")
    expect(note).to_be_visible()
    heads = page.locator("table.board thead th").all_inner_texts()
    (starred,) = [head.replace("\u00a0", " ").replace(".\n", ".") for head in heads if "*" in head]
    assert starred.startswith("shape.size ↑ *")
    box = page.get_by_role("note", name="Warnings and notes")
    first = box.locator(".brief li")
    expect(box.get_by_text(re.compile(r"^\d+ warnings and notes$"))).to_be_visible()
    assert first.count() == 3
    expect(first.first).to_be_visible()
    whole = box.locator("details li")
    expect(whole.first).not_to_be_visible()
    box.locator("summary").click()
    assert whole.count() == int(box.locator("p").inner_text().split()[0])
    expect(whole.last).to_be_visible()
    expect(first.first).not_to_be_visible()


def test_on_a_wide_window_all_columns_are_whole_with_errors_below_values(opened, tmp_path):
    many = [{"name": f"folder/sae-{i}", "hook_name": "h", "key": f"k{i}", "kind": "sae"} for i in range(4)]
    wide = [f"ce.loss_of_a_long_name_{i}" for i in range(9)]
    folder = fill(tmp_path / "wide", many, metrics=("ce",), also=wide)
    assert cli.main(["report", str(folder)]) == 0
    page = opened(folder / "report" / "index.html", width=1400)
    assert page.locator("table.board.stacked").count() == 1
    assert page.evaluate(OVERFLOW) == 0
    page.set_viewport_size({"width": 2600, "height": 900})
    expect(page.locator("table.board.stacked")).to_have_count(0)


def test_on_a_phone_only_the_table_scrolls_sideways(opened, file):
    page = opened(file, width=390, height=844)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    seen = page.evaluate(
        "[...document.querySelectorAll('table.board tbody tr:first-child td.value')]"
        ".filter((cell) => cell.getBoundingClientRect().right <= 390).length"
    )
    assert seen >= 2
    page.evaluate("document.querySelector('.scrolls.wide').scrollLeft = 500")
    name = page.locator("table.board tbody th").first.bounding_box()
    assert 0 <= name["x"] < 20
    assert name["width"] < 195
    page.get_by_role("button", name="plain", exact=True).click()
    assert page.evaluate("document.querySelector('dialog').scrollWidth") <= 390


def test_a_printed_page_has_all_rows_and_the_theme_can_be_switched(opened, tmp_path):
    many = [{"name": f"sae-{i}", "hook_name": "h", "key": f"k{i}", "kind": "sae"} for i in range(60)]
    folder = fill(tmp_path / "many", many, metrics=("l0",))
    assert cli.main(["report", str(folder)]) == 0
    page = opened(folder / "report" / "index.html", color_scheme="light")
    assert len(names(page)) == 50
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert len(names(page)) == 60
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    background = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(background)
    page.get_by_role("button", name="Dark").click()
    assert page.evaluate(background) != light
    page.get_by_role("button", name="Light").click()
    assert page.evaluate(background) == light


def test_boards_of_different_data_are_tables_of_their_own(opened, tmp_path):
    few = subjects(NAMES[:3])
    one, other = fill(tmp_path / "one", few), fill(tmp_path / "other", few, fingerprint="e", suite="second")
    assert cli.main(["report", str(one), str(other), "--to", str(tmp_path / "to")]) == 0
    page = opened(tmp_path / "to" / "index.html")
    assert page.locator("table.board").count() == 2
    assert page.locator("section.board h2").all_inner_texts() == ["made", "second"]


def test_the_command_of_the_documentation_takes_a_picture(chromium, folder, tmp_path):
    command = [sys.executable, str(Path(__file__).with_name("picture.py")), str(folder), str(tmp_path / "page.png")]
    child = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert child.returncode == 0, child.stderr
    content = (tmp_path / "page.png").read_bytes()
    assert content.startswith(b"\x89PNG")
    width, height = struct.unpack(">II", content[16:24])
    assert width == 1560
    assert height > 900
    documentation = (Path(__file__).parents[2] / "docs" / "page.md").read_text(encoding="utf-8")
    assert "python tests/page/picture.py results/quickstart docs/page.png" in documentation
