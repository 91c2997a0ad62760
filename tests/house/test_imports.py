"""Commands that compute nothing import no library that computes."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from saeval.cli import main
from saeval.registry.kinds import LISTED
from saeval.testing.claims import every, some

SLOW = (
    "torch", "transformers", "transformer_lens", "tokenizers", "huggingface_hub", "datasets", "pandas", "pyarrow", "numba",
    "altair", "vl_convert", "jsonschema", "scipy.stats", "scipy.cluster",
)  # fmt: skip
ENGINE = ("saeval.engine.loop", "saeval.page.page")
"""What verbs that print what plugins supply need not."""
SUITE = """
suite: small
model: {use: testbed}
data: {texts: ["def one():\\n  return 1\\n", "import os\\nprint(os)\\n", "for x in y:\\n  x()\\n", "a = b + c\\n"], context: 8}
saes: [testbed/relu-3, testbed/relu-5]
controls: [mean]
metrics: [l0, ce]
"""
CHILD = f"""
import contextlib, io, json, sys
from saeval.cli import main
for words in json.loads(sys.argv[1]):
    with contextlib.redirect_stdout(io.StringIO()) as out:
        code = main(words)
    slow, engine = ([name for name in names if name in sys.modules] for names in ({SLOW!r}, {ENGINE!r}))
    print(json.dumps([words, code, len(out.getvalue()), slow, engine]))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Run a suite, so that its model is known and its results are stored; return the folder."""
    folder = tmp_path_factory.mktemp("imports")
    (folder / "small.yaml").write_text(SUITE, encoding="utf-8")
    assert main(["run", str(folder / "small.yaml"), "--out", str(folder)]) == 0
    return folder


def test_commands_that_compute_nothing_import_no_slow_library(folder):
    suite, results = str(folder / "small.yaml"), str(folder / "small")
    verbs = [
        ["schema"],
        *(["ls", kind] for kind in LISTED),
        ["show", "ce"],
        ["show", results],
        ["check", suite, "--out", str(folder / "nowhere")],
        ["run", suite, "--out", str(folder)],
        ["explain", "l0", suite],
        ["leaderboard", results],
        ["leaderboard", results, "--format", "json"],
        ["compare", results, "testbed/relu-3", "testbed/relu-5"],
        ["plot", results, "--format", "json"],
        ["report", results],  # last, since it draws
    ]
    command = [sys.executable, "-c", CHILD, json.dumps(verbs)]
    env = {**os.environ, "HF_HUB_OFFLINE": "1"}
    child = subprocess.run(command, capture_output=True, text=True, env=env, timeout=300, check=False)
    assert child.returncode == 0, child.stderr
    lines = [json.loads(line) for line in child.stdout.splitlines()]
    assert [words for words, *_ in lines] == verbs
    assert every(engine == [] for words, *_, engine in lines[: verbs.index(["show", "ce"]) + 1])
    for words, code, printed, imported, _ in some(lines):
        drawing = ["vl_convert"] if words[0] == "report" else []
        assert (code, [name for name in imported if name not in drawing]) == (0, []), words
        assert printed > 0, words
