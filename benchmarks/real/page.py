"""The page of results: tables and charts of every suite that was run, with its full report beside it.

python page.py FOLDER
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

HERE = Path(__file__).parent
_FRONTS = ("reconstruction.explained_variance", "ce.delta_ce")
_FAMILIES = {"TopK": "topk", "BatchTopK": "batchtopk", "ReLU": "relu", "TopK, frozen decoder": "frozen"}


def write_page(folder: Path) -> Path:
    """Write `FOLDER/page/README.md`, with charts and the report of each suite beside it."""
    page = folder / "page"
    shutil.rmtree(page, ignore_errors=True)
    page.mkdir()
    sections = ["# SAEs of real models\n"]
    for suite in sorted((HERE / "suites").glob("*.yaml")):
        results = Path("results") / suite.stem
        if not (folder / results).is_dir():
            continue
        first = suite.read_text(encoding="utf-8").splitlines()[0].removeprefix("# ")
        _saeval(folder, "report", results, "--to", f"page/{suite.stem}")
        _saeval(folder, "plot", results, "--to", f"page/{suite.stem}/charts")
        sections += [f"## {suite.stem}\n", f"{first} [Table, charts and every value]({suite.stem}/index.html)\n"]
        sections.append(_saeval(folder, "leaderboard", results, "--format", "md"))
        if suite.stem.startswith("fidelity"):
            for value in _FRONTS:
                plot = f"page/{suite.stem}/charts/pareto-{value.partition('.')[2]}.png"
                families = [word for name, kind in _FAMILIES.items() for word in ("--family", f"{name}=*/{kind}-*")]
                sections.append(_saeval(folder, "pareto", results, "--y", value, *families, "--plot", plot))
        for prefix, pattern in (("training", "step/{}"), ("post-training", "tokens/{}")):
            if suite.stem.startswith(prefix):
                plot = f"page/{suite.stem}/charts/{prefix}.png"
                sections.append(_saeval(folder, "trajectory", results, "--pattern", pattern, "--plot", plot))
        pictures = sorted((page / suite.stem / "charts").glob("*.png"))
        sections += [f"![]({picture.relative_to(page)})\n" for picture in pictures]
    sections += ["## Time\n", _times(folder)]
    target = page / "README.md"
    target.write_text("\n".join(sections), encoding="utf-8")
    return target


def _times(folder: Path) -> str:
    """Return a table of minutes by stage; SAEs, of which two are trained at once, in minutes of CPU time."""
    lines = ["| stage | minutes |", "|---|---|"]
    file = folder / "seconds.json"
    for stage, seconds in (json.loads(file.read_text()) if file.is_file() else {}).items():
        if not stage.endswith(": saes"):
            lines.append(f"| {stage} | {seconds / 60:.1f} |")
    of_library: dict[str, list[float]] = defaultdict(list)
    for record in sorted(folder.glob("saes/*/*/*/training.json")):
        made = json.loads(record.read_text())
        if "library" in made:
            of_library[f"{made['model']}: SAEs of {made['library']}"].append(made["cpu_seconds"])
    for name, seconds in of_library.items():
        lines.append(f"| {name}, {len(seconds)} of them, CPU time | {sum(seconds) / 60:.1f} |")
    return "\n".join(lines) + "\n"


def _saeval(folder: Path, *arguments: str | Path) -> str:
    command = [sys.executable, "-m", "saeval.cli", *map(str, arguments)]
    text = subprocess.run(command, cwd=folder, check=True, stdout=subprocess.PIPE, text=True).stdout
    # Commands that write a file end with its path.
    return "".join(line for line in text.splitlines(keepends=True) if line.strip() not in arguments)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    print(write_page(parser.parse_args().folder))
