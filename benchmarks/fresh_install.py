"""Install a wheel into a fresh environment and run a suite there, as a new user would, outside the repository.

`python benchmarks/fresh_install.py dist/saeval-0.1.0-py3-none-any.whl`
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

CONSTRAINTS = Path(__file__).parents[1] / "constraints.txt"


def main(wheel: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        binaries = Path(folder) / "venv" / "bin"
        pip = [
            str(binaries / "pip"),
            "install",
            "--quiet",
            "--disable-pip-version-check",
            "--constraint",
            str(CONSTRAINTS),
        ]
        saeval = str(binaries / "saeval")
        for label, command in (
            ("environment", [sys.executable, "-m", "venv", str(binaries.parent)]),
            ("torch", [*pip, "torch"]),  # first: the resolver might choose another build of several gigabytes
            ("wheel", [*pip, "setuptools", str(wheel.resolve())]),
            ("run", [saeval, "run", "quickstart", "--limit", "16"]),
            ("report", [saeval, "leaderboard", "results/quickstart", "--include-limited", "--format", "csv"]),
            ("new", [saeval, "new", "metric", "my_metric"]),
            ("install", [*pip, "--no-deps", "--no-build-isolation", "./my_metric"]),
            ("show", [saeval, "show", "my_metric"]),
        ):
            started = time.perf_counter()
            # Beside the package, its folder has the name.
            where = Path(folder) / "results" if label == "show" else Path(folder)
            subprocess.run(command, check=True, cwd=where, stdout=subprocess.DEVNULL)
            print(f"{label}: {time.perf_counter() - started:.0f} s", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
