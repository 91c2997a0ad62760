"""The page of a results folder, opened in Debian's Chromium without a network."""

from __future__ import annotations

import os
import shutil

import pytest

from made_folders import fill
from saeval import cli

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    return fill(tmp_path_factory.mktemp("pages") / "made")


@pytest.fixture(scope="session")
def file(folder):
    """The page of the folder."""
    assert cli.main(["report", str(folder)]) == 0
    return folder / "report" / "index.html"


@pytest.fixture(scope="session")
def chromium():
    """A running browser; without one, the tests are skipped, which CI=true forbids."""
    if CHROMIUM is None:
        reason = "no chromium: apt-get install chromium"
        pytest.fail(reason) if os.environ.get("CI") == "true" else pytest.skip(reason)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-dev-shm-usage"])
        yield browser
        browser.close()


@pytest.fixture
def opened(chromium):
    """Opens a page and returns it; what it logs, asks the network for or shows as a dialog fails the test."""
    contexts, wrong = [], []

    def open_(file, width=1400, height=900, **options):
        context = chromium.new_context(viewport={"width": width, "height": height}, **options)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: wrong.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: wrong.append(f"error: {error}"))
        page.on("dialog", lambda dialog: (wrong.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        page.on("request", lambda request: request.url == file.as_uri() or wrong.append(f"request: {request.url}"))
        page.goto(file.as_uri())
        page.wait_for_selector("html[data-ready]", state="attached")
        page.wait_for_selector("[data-chart=dots] svg, [data-chart=dots] canvas")
        return page

    yield open_
    for context in contexts:
        context.close()
    assert not wrong
