"""The plugins in `examples/` pass their own tests, and print what the documentation shows.

`python tests/testing/test_plugin_examples.py` writes the outputs.
"""

from __future__ import annotations

import contextlib
import io
import runpy
from pathlib import Path

import pytest

from saeval.testing.claims import some

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "examples").glob("*.py"))
PAGE = ROOT / "docs" / "examples.md"


def printed(file):
    """The module's names, and what it prints as a script."""
    with contextlib.redirect_stdout(io.StringIO()) as out:
        names = runpy.run_path(str(file), run_name="__main__")
    return names, "\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "\n"


def output(file):
    return file.parent / "outputs" / f"{file.stem}.txt"


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_it_passes_its_own_test_and_prints_what_the_page_shows(file):
    names, text = printed(file)
    assert text == output(file).read_text(encoding="utf-8"), "run `python tests/testing/test_plugin_examples.py`"
    tests = [test for name, test in names.items() if name.startswith("test_")]
    for test in some(tests):
        test()
    assert file.stem.startswith("training_") or [name for name in names if name.startswith("saeval_")]
    assert f"```{{literalinclude}} ../examples/{file.name}\n" in PAGE.read_text(encoding="utf-8")


if __name__ == "__main__":
    for path in FILES:
        output(path).write_text(printed(path)[1], encoding="utf-8")
