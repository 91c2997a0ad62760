"""Sphinx builds the site of the documentation from the repository, whose links therefore work as they stand."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "docs"))

import reference  # noqa: E402  # it lies beside this file

project, author, copyright = "saeval", "The saeval developers", "The saeval developers"
extensions = ["myst_parser"]
root_doc = "docs/index"
include_patterns = [
    "docs/**.md", "README.md", "CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/README.md", "benchmarks/real/README.md",
    "plugins/saeval_testbed/README.md",
]  # fmt: skip
exclude_patterns = [".*", "build", "dist", "results", "runs", "saeval", "suites", "tests"]
myst_heading_anchors = 4
myst_links_external_new_tab = True
html_theme = "furo"
html_title = "saeval"
html_copy_source = False
html_extra_path = ["site"]
html_theme_options = {"navigation_with_keys": True}
suppress_warnings = ["misc.highlighting_failure"]  # commands with output, and fragments with "..."


def setup(app: object) -> None:
    """Write the pages of the reference before Sphinx looks for pages."""
    reference.write(ROOT / "docs" / "reference")
