"""The notebooks in `examples/notebooks` run, and show what they end in."""

from __future__ import annotations

from pathlib import Path

import pytest

from saeval.testing.claims import none, some

FILES = sorted((Path(__file__).parents[2] / "examples" / "notebooks").glob("*.ipynb"))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of Jupyter, about this machine
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_notebook_runs_and_shows_its_results(file, tmp_path):
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    notebook = nbformat.read(file, as_version=4)
    assert none(cell.outputs for cell in notebook.cells if cell.cell_type == "code"), "clear the outputs"
    nbclient.NotebookClient(
        notebook, timeout=300, startup_timeout=300, resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    for cell in some([cell for cell in notebook.cells if cell.cell_type == "code"]):
        shown = {kind for output in cell.outputs for kind in output.get("data", {})}
        assert "text/html" in shown or "text/plain" in shown, cell.source
    html = [
        o["data"]["text/html"] for c in notebook.cells for o in c.get("outputs", []) if "text/html" in o.get("data", {})
    ]
    assert some([text for text in html if "<table" in text])
    assert some([text for text in html if "data:image/svg+xml" in text])
