"""Property tests with fresh seeds for as long as a budget lasts: `python tests/fuzz.py --seconds 600`.

Each round runs one property test with a seed of its own. The first failure ends it, with the command that repeats it.
"""

from __future__ import annotations

import argparse
import itertools
import random
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
PYTEST = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
ROUND_SECONDS = 900
"""Beyond which a round counts as a failure: the test hangs."""


def properties(only: str) -> list[str]:
    """The node ids of the property tests that match `only`, as `pytest -k` takes it."""
    command = [*PYTEST, "--collect-only", "-m", "hypothesis", "-k", only]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    found = re.findall(r"^\S+::\S.*$", listed.stdout, re.MULTILINE)
    if listed.returncode or not found:
        sys.exit(f"no property test was collected:\n{listed.stdout}{listed.stderr}")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600, help="no round starts after this (default: 600)")
    parser.add_argument("--only", default="", metavar="EXPRESSION", help="tests that match, as in pytest -k")
    arguments = parser.parse_args()
    tests, rounds = properties(arguments.only), 0
    end = time.monotonic() + arguments.seconds
    for test in itertools.cycle(tests):
        if rounds and time.monotonic() >= end:
            break
        seed = random.SystemRandom().randrange(2**32)
        command = [*PYTEST, "--hypothesis-profile=fuzz", f"--hypothesis-seed={seed}", test]
        try:
            ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=ROUND_SECONDS)
            failed, said = ran.returncode != 0, ran.stdout + ran.stderr
        except subprocess.TimeoutExpired:
            failed, said = True, f"not done after {ROUND_SECONDS} s"
        rounds += 1
        if failed:
            print(f"{said}\nFAILED after {rounds} rounds. Repeat it with:\n  {shlex.join(['python', *command[1:]])}")
            return 1
    print(f"{rounds} rounds of {len(tests)} property tests, none failed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
