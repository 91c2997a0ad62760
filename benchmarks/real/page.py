"""The page of results: leaderboards, Pareto fronts, training curves and the reports of every suite that was run.

python page.py FOLDER
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
_FRONTS = (("reconstruction.explained_variance", "explained-variance"), ("ce.delta_ce", "delta-ce"))


def write_page(folder: Path) -> Path:
    """Write `FOLDER/page/README.md`, with plots beside it."""
    page = folder / "page"
    page.mkdir(exist_ok=True)
    sections = ["# SAEs of real models\n"]
    for suite in sorted((HERE / "suites").glob("*.yaml")):
        results = Path("results") / suite.stem
        if not (folder / results).is_dir():
            continue
        first = suite.read_text(encoding="utf-8").splitlines()[0].removeprefix("# ")
        sections += [f"*{first}*\n", _saeval(folder, "leaderboard", results, "--format", "md")]
        if suite.stem.startswith("fidelity"):
            for value, name in _FRONTS:
                plot = f"page/{suite.stem}-{name}.png"
                sections += [
                    _saeval(folder, "pareto", results, "--y", value, "--plot", plot),
                    f"![]({Path(plot).name})\n",
                ]
        elif suite.stem.startswith("training"):
            plot = f"page/{suite.stem}.png"
            sections += [
                _saeval(folder, "trajectory", results, "--pattern", "step/{}", "--plot", plot),
                f"![]({Path(plot).name})\n",
            ]
        else:
            _saeval(folder, "report", results, "--to", f"page/{suite.stem}")
            sections += [f"[Reports]({suite.stem})\n"]
    seconds = folder / "seconds.json"
    if seconds.is_file():
        rows = [f"| {stage} | {time / 60:.1f} |" for stage, time in json.loads(seconds.read_text()).items()]
        sections += ["## Time\n", "| stage | minutes |\n|---|---|\n" + "\n".join(rows) + "\n"]
    target = page / "README.md"
    target.write_text("\n".join(sections), encoding="utf-8")
    return target


def _saeval(folder: Path, *arguments: str | Path) -> str:
    command = [sys.executable, "-m", "saeval.cli", *map(str, arguments)]
    text = subprocess.run(command, cwd=folder, check=True, stdout=subprocess.PIPE, text=True).stdout
    # Commands that write a file end with its path.
    return "".join(line for line in text.splitlines(keepends=True) if line.strip() not in arguments)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    print(write_page(parser.parse_args().folder))
