"""Take a picture of the page of a results folder: `python tests/page/picture.py results/quickstart docs/page.png`."""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright

from saeval import cli


def take() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", help="a results folder")
    parser.add_argument("picture", type=Path, help="the PNG file to write")
    parser.add_argument("--width", type=int, default=1560)
    parser.add_argument("--dark", action="store_true")
    options = parser.parse_args()
    chromium = shutil.which("chromium") or sys.exit("no chromium: apt-get install chromium")
    with tempfile.TemporaryDirectory() as to, sync_playwright() as playwright:
        if cli.main(["report", options.folder, "--to", to]) != 0:
            sys.exit(1)
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-dev-shm-usage"])
        scheme = "dark" if options.dark else "light"
        page = browser.new_page(viewport={"width": options.width, "height": 900}, color_scheme=scheme)
        page.goto((Path(to) / "index.html").as_uri())
        page.wait_for_selector(".charts[data-rows]")
        page.locator(".foot").first.scroll_into_view_if_needed()
        page.evaluate("scrollTo(0, 0)")
        page.screenshot(path=options.picture, full_page=True)
        browser.close()


if __name__ == "__main__":
    take()
