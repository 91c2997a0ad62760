"""The files and headings named in the documentation exist."""

from __future__ import annotations

import re
from pathlib import Path

from saeval.testing.claims import none, some

ROOT = next(folder for folder in Path(__file__).resolve().parents if (folder / "pyproject.toml").exists())
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("*/README.md"), *ROOT.glob("plugins/*/README.md")]
HOMES = (ROOT, ROOT / "saeval")
"""Folders that a path in backticks may start from."""


def anchors(page: Path) -> set[str]:
    """Return the anchors that a renderer gives the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_links_lead_to_existing_pages_and_headings():
    links = [(page, target) for page in PAGES for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text())]
    for page, target in some(links):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        linked = page.parent / path if path else page
        assert linked.exists(), f"{page.relative_to(ROOT)} links to {target}"
        assert not anchor or anchor in anchors(linked), f"{page.relative_to(ROOT)} links to {target}"


def test_files_named_in_pages_exist():
    pages = [page for page in PAGES if page.name != "CHANGELOG.md"]  # it names files that are gone
    named = [(page, path) for page in pages for path in re.findall(r"`((?:\w+/)+\w+\.\w+)`", page.read_text())]
    for page, path in some(named):
        if not path.endswith((".py", ".md", ".toml")):
            continue
        assert not none((home / path).exists() for home in HOMES), f"{page.relative_to(ROOT)} names {path}"
