"""What saeval makes of kills and of damaged or hostile files: `python tests/torture.py --seconds 600`.

Each round has a seed of its own. A round that ends in anything but a result or one clear sentence is printed with the
command that repeats it, and the exit code is 1. Nothing of this runs in CI: it looks for new faults.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import json
import logging
import multiprocessing
import os
import random
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from long_run import work, work_elsewhere

from saeval import SaevalError, cli
from saeval.base.sealed_json import CHECKSUM, sealed
from saeval.testing import TinySAE, evaluate_tiny, tiny_tokens

ROUND_SECONDS, GIB = 120, 2**30
"""A round that takes longer hangs."""
ROUND_OF_WORKERS, _PATIENCE = 900, 300
"""The same of rounds that start several processes, and of one run in them."""
MOST_MEMORY = 16 * GIB
"""Address space, beyond which a file took memory that it should not."""
HEADLESS = {"RAY_gcs_rpc_server_reconnect_timeout_s": "5"}
"""After so many seconds a run ends whose Ray has lost its head."""
HOSTILE = [
    "../../outside", "/tmp/outside", "a|b", "a\nb", "| x | y |\n", "# title", "<script>x</script>", "\x1b[31mred\x1b[0m",
    "=1+1", "@sum", "-cmd", "CON", "nul.md", "x" * 400, "\u202egnp", "", " ", ".", "..", "a/b", "a\\b", "%s{}", "\0",
    "`x`", "[a](b)", "[lr=1e-4]", "*", "é" * 200,
]  # fmt: skip
ODD: list[Any] = [
    None, [], {}, [[]], "", "x", "8", "NaN", True, False, -1, 0, 1, 1.5, 10**9, 10**30, -(10**30), float("nan"),
    float("inf"), "../../etc/passwd", "/dev/zero", "/dev/full", "!!python/object:os.system", *HOSTILE,
]  # fmt: skip
TABLE = re.compile(r"(?:^\|.*\|$\n?)+", re.MULTILINE)


class WrongError(AssertionError):
    """What no round may end in."""


def need(fact: object, said: str) -> None:
    if not fact:
        raise WrongError(said)


# Verbs

CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def verb(*arguments: str, codes: tuple[int, ...] = (0, 1, 2)) -> tuple[int, str, str]:
    """Exit code, standard output and error of a verb, which ends in no traceback and writes no control character."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = cli.main(list(arguments))
        except SystemExit as stop:  # argparse's own refusal
            code = int(stop.code or 0)
    told, warned = out.getvalue(), err.getvalue()
    said = f"saeval {' '.join(arguments)!a}: exit code {code}\n{told[-1000:]!a}\n{warned[-2000:]!a}"
    need(code in codes, said)
    need("Traceback" not in told + warned, said)
    need(code != 2 or warned.strip(), said)
    found = CONTROL.search(told) or CONTROL.search(warned)
    need(found is None, f"a control character {found and found[0]!a} in the output of {said}")
    for table in TABLE.findall(told):
        widths = {len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}
        need(len(widths) == 1, f"a table of uneven rows in the output of {said}")
    return code, told, warned


# Files


def damaged(content: bytes, chance: random.Random) -> bytes:
    """The same with a few bits, bytes or parts other than they were."""
    data = bytearray(content)
    for _ in range(chance.choice([1, 1, 1, 2, 8])):
        at = chance.randrange(len(data)) if data else 0
        match chance.randrange(7):
            case 0 if data:
                data[at] ^= 1 << chance.randrange(8)
            case 1:
                del data[at:]
            case 2:
                del data[at : at + chance.choice([1, 8, 64, 4096])]
            case 3:
                data[at:at] = chance.randbytes(chance.choice([1, 8, 64]))
            case 4:
                data[at : at + 16] = bytes(len(data[at : at + 16]))
            case 5 if data:
                start = chance.randrange(len(data))
                data[at : at + 32] = data[start : start + 32]
            case _:
                data += chance.choice([b"\0", b"}", content[:100], chance.randbytes(32)])
    return bytes(data)


def edited(value: Any, chance: random.Random) -> Any:
    """Plain data with one leaf or branch replaced, removed, renamed, or nested."""
    places = list(_places(value))
    holder, key = chance.choice(places) if places else (None, None)
    if holder is None:
        return chance.choice(ODD)
    match chance.randrange(6):
        case 0 if isinstance(holder, dict):
            del holder[key]
        case 1 if isinstance(holder, dict):
            holder[str(chance.choice(HOSTILE))] = holder.pop(key)
        case 2:
            deep: Any = holder[key]
            for _ in range(chance.choice([1, 50, 3000])):
                deep = [deep]
            holder[key] = deep
        case 3 if isinstance(holder[key], float | int):
            holder[key] = holder[key] * chance.choice([-1, 2, 1e300, 1 + 1e-12]) + chance.choice([0, 1])
        case 4:
            other, name = chance.choice(places)
            holder[key] = json.loads(_dumped(other[name]))
        case _:
            holder[key] = chance.choice(ODD)
    return value


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in list(pairs):
        yield value, key
        yield from _places(one)


def _dumped(value: Any) -> str:
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(100_000)
    try:
        return json.dumps(value)
    finally:
        sys.setrecursionlimit(limit)


def damage(path: Path, chance: random.Random) -> str:
    """Do something to a file; returns what."""
    kind = chance.choice(["bytes", "bytes", "json", "json", "gone", "empty", "folder", "another", "nested"])
    if kind == "json" and path.suffix == ".json":
        path.write_text(_dumped(edited(json.loads(path.read_text()), chance)))
    elif kind == "gone":
        path.unlink()
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "folder":
        path.unlink()
        path.mkdir()
    elif kind == "another":
        others = [p for p in path.parent.glob(f"*{path.suffix}") if p != path and p.is_file()]
        if others:
            shutil.copyfile(chance.choice(others), path)
    elif kind == "nested":
        path.write_text("[" * 100_000 + "]" * 100_000)
    else:
        path.write_bytes(damaged(path.read_bytes(), chance))
    return f"{kind} of {path.name}"


# Trials

SUITE = """\
# a suite in which most of what a suite may hold occurs
suite: tried
model: {use: testbed}
data: {use: python-stdlib, context: 32, sequences: 8, bos: true, exclude: [bos], packing: documents}
saes:
  - testbed/relu-5
  - testbed/topk-8
groups:
  both: [testbed/relu-5, testbed/topk-*]
controls:
  - mean
  - {use: random, seeds: 2, of: testbed/relu-5}
metrics:
  - l0
  - reconstruction
  - ce: {ablation: mean}
  - ce: {ablation: zero, as: ce_zero}
  - perturbation: {draws: 2}
  - seed_stability: {over: both}
precision: {ce.delta_ce: 0.1}
leaderboard:
  rank_by: ce.delta_ce
  columns: [l0.l0, ce.delta_ce, ce_zero.recovered]
"""
WORDS = re.compile(r"[\w./*-]+")


def suites(chance: random.Random, folder: Path) -> str:
    """A suite with lines, words or bytes other than they were is checked: planned, or refused in one sentence."""
    lines = SUITE.splitlines()
    for _ in range(chance.choice([1, 1, 1, 2, 4])):
        at = chance.randrange(len(lines))
        words = list(WORDS.finditer(lines[at]))
        match chance.randrange(7):
            case 0:
                del lines[at]
            case 1:
                lines.insert(at, chance.choice(lines))
            case 2:
                lines[at] = chance.choice([" ", "  ", "\t", "- "]) + lines[at]
            case 3 if words:
                word = chance.choice(words)
                odd = chance.choice(
                    [json.dumps(chance.choice(ODD)), str(chance.choice(ODD)), "&a [*a, *a]", "!!bool maybe"]
                )
                lines[at] = lines[at][: word.start()] + odd + lines[at][word.end() :]
            case 4 if words:
                word = chance.choice(words)
                start = chance.randrange(word.start(), word.end())
                lines[at] = lines[at][:start] + chance.choice("xyz0") + lines[at][start + 1 :]
            case 5:
                lines[at] += chance.choice(["[" * 2000, "9" * 5000, " #", ":", " {", "}", "\0", "\ufeff"])
            case _:
                lines[at] = lines[at].replace(":", chance.choice([" ", "::", ""]), 1)
    content = ("\n".join(lines) + "\n").encode(errors="surrogatepass")
    if chance.random() < 0.2:
        content = damaged(content, chance)
    path = folder / "tried.yaml"
    path.write_bytes(content)
    code, _, _ = verb("check", str(path), "--out", str(folder / "results"), codes=(0, 2))
    need(not list(folder.glob("**/outside*")), "a file was written outside")
    return "planned" if code == 0 else "refused"


METRICS = ["l0", "reconstruction", "ce", {"perturbation": {"draws": 2, "positions": 1}}]


def tiny_run(out: Path) -> Any:
    return evaluate_tiny(
        METRICS, saes={"a": TinySAE(seed=1), "b": TinySAE(seed=2)}, rows=tiny_tokens(), controls=["mean"],
        out=out, key="these", name="tried",
    )  # fmt: skip


def facts(results: Any) -> dict[str, Any]:
    return {f"{r.metric} {r.subject}": (r.status, r.values) for r in results}


@cache
def undamaged() -> tuple[Path, dict[str, Any], str]:
    """A folder of results, what they are, and their leaderboard."""
    out = Path(tempfile.mkdtemp(prefix="undamaged-", dir=SCRATCH))
    results = tiny_run(out)
    (folder,) = (p.parent for p in out.glob("*/manifest.json"))
    return folder, facts(results), verb("leaderboard", str(folder))[1]


def reading_verbs(folder: Path, to: Path) -> list[tuple[int, str, str]]:
    return [
        verb("leaderboard", str(folder)),
        verb("leaderboard", str(folder), "--format", "csv"),
        verb("show", str(folder)),
        verb("compare", str(folder), "a", "b"),
        verb("report", str(folder), "--to", str(to)),
        verb("plot", str(folder), "--format", "json", "--to", str(to / "plots")),
    ]


def stores(chance: random.Random, folder: Path) -> str:
    """A results folder with damaged files is read without a traceback, and the next run gives the same numbers."""
    whole, expected, board = undamaged()
    out = folder / "out"
    store = out / whole.name
    shutil.copytree(whole, store)
    files = sorted(p for p in store.rglob("*") if p.is_file())
    done = [damage(path, chance) for path in chance.sample(files, chance.choice([1, 1, 2, 3])) if path.is_file()]
    told, *_ = reading_verbs(store, folder / "pages")
    need(
        told[1] == board or told[2] or "not computed" in told[1] or "damaged" in told[1],
        f"after {done} a leaderboard differs without a word:\n{told[1]}\n{board}",
    )
    try:
        found = facts(tiny_run(out))
    except SaevalError as refused:  # a folder that has a file's name is not saeval's to remove
        need(any(path.is_dir() for path in store.rglob("*.*")), f"after {done} a run is refused: {refused}")
        return "refused"
    else:
        need(found == expected, f"after {done} and a run again the results differ: {_difference(found, expected)}")
    again = verb("leaderboard", str(store))
    need(again[1] == board, f"after {done} and a run again the leaderboard differs:\n{again[1]}\n{board}")
    return done[0].partition(" of ")[0]


def _difference(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    return [key for key in {*one, *other} if one.get(key) != other.get(key)]


def reports(chance: random.Random, folder: Path) -> str:
    """Names and texts of somebody else's results: nothing is written outside, and no name forges a row or a line."""
    whole, _, _ = undamaged()
    store = folder / "home" / "out" / whole.name
    shutil.copytree(whole, store)
    for _ in range(chance.choice([1, 1, 3])):
        path = chance.choice(sorted(store.glob("*.json")))
        record = renamed(json.loads(path.read_text()), chance)
        manifest = CHECKSUM not in record  # somebody who forges a result gives it its checksum as well
        record.pop(CHECKSUM, None)
        path.write_bytes(_dumped(record).encode() if manifest else sealed(record))
    before = set(folder.rglob("*"))
    pages = folder / "home" / "pages"
    codes = [code for code, _, _ in reading_verbs(store, pages)]
    outside = set(folder.rglob("*")) - before - {pages} - {*pages.rglob("*")}
    need(not outside, f"written outside of its folder: {outside}")
    for page in pages.rglob("*.md"):
        text = page.read_text()
        need(not CONTROL.search(text), f"a control character in {page.name}")
        need("<script" not in text, f"markup in {page.name}")
        for table in TABLE.findall(text):
            widths = {len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}
            need(len(widths) == 1, f"a table of uneven rows in {page.name}:\n{table}")
    return "shown" if codes[0] == 0 else "refused"


def renamed(value: Any, chance: random.Random) -> Any:
    """Every equal text replaced by one that is hostile."""
    texts = sorted({holder[key] for holder, key in _places(value) if isinstance(holder[key], str)})
    if not texts:
        return value
    old, new = chance.choice(texts), chance.choice(HOSTILE)
    for holder, key in list(_places(value)):
        if holder[key] == old:
            holder[key] = new
    return value


def kills(chance: random.Random, folder: Path) -> str:
    """A run killed at random moments until it is done gives what an undisturbed one gives, bit by bit."""
    out, killed = folder / "out", 0
    while True:
        process = PROCESSES.Process(target=work, args=(out, folder / "log"))
        process.start()
        process.join(chance.uniform(0.05, 4.0) if killed < 30 else None)
        process.kill()
        process.join()
        for file in out.rglob("*.json"):
            json.loads(file.read_text())
        if process.exitcode == 0:
            break
        need(process.exitcode == -signal.SIGKILL, f"a run ended with exit code {process.exitcode} after {killed} kills")
        killed += 1
    need(stored(out) == stored(quiet()), f"after {killed} kills the results differ")
    leftovers = [*out.rglob("*.part"), *out.glob("*/passes/*")]
    need(not leftovers, f"left behind after {killed} kills: {leftovers}")
    TALLY["kills"] += killed
    return "finished"


def workers(chance: random.Random, folder: Path) -> str:
    """Two processes, of which one or the run itself is killed in the middle of its shards, give what one gives."""
    return _killed(chance, folder, "local:2", {"worker": _is_worker, "driver": None})


def heads(chance: random.Random, folder: Path) -> str:
    """The same with two actors of Ray, of which one, the run itself or Ray's head is killed."""
    head = {"gcs_server", "raylet"}
    victims = {"worker": _is_actor, "driver": None, "head": lambda process: process.name() in head}
    return _killed(chance, folder, "ray:2", victims)


def _is_worker(process: psutil.Process) -> bool:
    return "saeval_engines" in " ".join(process.cmdline())


def _is_actor(process: psutil.Process) -> bool:
    return process.name().startswith("ray::Actor")


def _killed(
    chance: random.Random, folder: Path, engine: str, victims: dict[str, Callable[[psutil.Process], bool] | None]
) -> str:
    """Kill one of the victims when some shards are done, run again until the run ends, and compare the results."""
    out, kills = folder / "out", chance.choice([1, 1, 2])
    done: list[str] = []
    while True:
        process = PROCESSES.Process(target=unlimited, args=(out, engine))
        process.start()
        family = _family(process.pid)
        if len(done) < kills and _some_shards(out, process, chance):
            time.sleep(chance.uniform(0.0, 0.5))
            family |= _family(process.pid)
            which = chance.choice([*victims])
            chosen = victims[which]
            them = [psutil.Process(process.pid)] if chosen is None else [p for p in family if _alive(p) and chosen(p)]
            if them:
                done.append(which)
                TALLY[f"{which} of {engine}"] += 1
            for victim in them if which == "head" else them[:1]:
                victim.kill()
        process.join(_PATIENCE)
        need(process.exitcode is not None, f"a run hangs after the kill of {done}")
        for left in family:  # what Ray leaves where its head has died
            if _alive(left):
                left.kill()
        if process.exitcode == 0:
            break
        need(done and done[-1] != "worker", f"a run ended with exit code {process.exitcode} after the kill of {done}")
    need(stored(out) == stored(by_one()), f"after the kill of {done} the results differ")
    leftovers = [*out.rglob("*.part"), *out.glob("*/passes/*"), *out.glob("*/shards/*")]
    need(not leftovers, f"left behind after the kill of {done}: {leftovers}")
    TALLY["kills"] += len(done)
    return "finished"


def unlimited(out: Path, engine: str) -> None:
    """Work without the limit of memory: Ray's processes reserve far more addresses than they use."""
    resource.setrlimit(resource.RLIMIT_AS, (resource.getrlimit(resource.RLIMIT_AS)[1],) * 2)
    work_elsewhere(out, engine)


def _some_shards(out: Path, process: Any, chance: random.Random) -> bool:
    """Wait until a random number of further shards is written; False if the run ends before."""
    wanted = len(list(out.glob("*/shards/*.npz"))) + chance.randrange(1, 12)
    while process.is_alive() and len(list(out.glob("*/shards/*.npz"))) < wanted:
        time.sleep(0.02)
    return bool(process.is_alive())


def _family(pid: int) -> set[psutil.Process]:
    with contextlib.suppress(psutil.NoSuchProcess):
        return set(psutil.Process(pid).children(recursive=True))
    return set()


def _alive(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    return False


@cache
def by_one() -> Path:
    out = Path(tempfile.mkdtemp(prefix="by-one-", dir=SCRATCH))
    process = PROCESSES.Process(target=work_elsewhere, args=(out, "local"))
    process.start()
    process.join()
    need(process.exitcode == 0, "an undisturbed run failed")
    return out


@cache
def quiet() -> Path:
    out = Path(tempfile.mkdtemp(prefix="quiet-", dir=SCRATCH))
    process = PROCESSES.Process(target=work, args=(out, out / "log"))
    process.start()
    process.join()
    need(process.exitcode == 0, "an undisturbed run failed")
    return out


def stored(out: Path) -> dict[str, Any]:
    """Values and arrays of every cell, by its name."""
    found = {}
    for path in out.glob("*/*.json"):
        record = json.loads(path.read_text())
        if "values" in record:
            arrays = path.with_suffix(".npz")
            held = np.load(arrays) if arrays.exists() else {}
            digests = {name: held[name].tobytes() for name in (held.files if arrays.exists() else ())}
            found[path.stem] = (record["status"], json.dumps(record["values"], sort_keys=True), digests)
    return found


TRIALS: dict[str, Callable[[random.Random, Path], str]] = {
    "kills": kills, "workers": workers, "heads": heads, "suites": suites, "stores": stores, "reports": reports,
}  # fmt: skip
TALLY: Counter[str] = Counter()
SCRATCH = ""
PROCESSES = multiprocessing.get_context("forkserver")


def attempted(name: str, seed: int) -> str | None:
    """One round; None, with what went wrong printed, where it did."""
    folder = Path(tempfile.mkdtemp(dir=SCRATCH))
    there = os.getcwd()
    try:
        with _alarm(ROUND_OF_WORKERS if name in ("workers", "heads") else ROUND_SECONDS):
            os.chdir(folder)
            return TRIALS[name](random.Random(seed), folder)
    except Exception as error:
        kept = "" if isinstance(error, WrongError) else traceback.format_exc()
        print(f"\n{name}, seed {seed}: {error}\n{kept}\nRepeat it with: python tests/torture.py {name} --seed {seed}")
        return None
    finally:
        os.chdir(there)
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _alarm(seconds: int) -> Iterator[None]:
    def ring(*_: Any) -> None:
        raise WrongError(f"not done after {seconds} s")

    signal.signal(signal.SIGALRM, ring)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)


def main() -> int:
    global SCRATCH
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trials", nargs="*", default=[*TRIALS], metavar="TRIAL", help=f"of {', '.join(TRIALS)}")
    parser.add_argument(
        "--seconds", type=float, default=600, help="start no more rounds of a trial after these (default: 600)"
    )
    parser.add_argument("--rounds", type=int, help="at most so many of each trial")
    parser.add_argument("--seed", type=int, help="one round of each trial, of this seed")
    arguments = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_AS, (MOST_MEMORY, resource.getrlimit(resource.RLIMIT_AS)[1]))
    torch.set_num_threads(1)
    logging.getLogger("saeval").setLevel(logging.ERROR)
    PROCESSES.set_forkserver_preload(["saeval.testing", "saeval_models", "saeval_testbed"])
    failed = 0
    with tempfile.TemporaryDirectory(prefix="torture-") as SCRATCH:
        os.environ |= {"SAEVAL_CACHE": str(Path(SCRATCH) / "cache"), **HEADLESS}
        for name in arguments.trials:
            end, outcomes = time.monotonic() + arguments.seconds, Counter[str]()
            for number in itertools.count():
                if time.monotonic() > end or number == (1 if arguments.seed is not None else arguments.rounds):
                    break
                seed = random.SystemRandom().randrange(2**32) if arguments.seed is None else arguments.seed
                outcome = attempted(name, seed)
                outcomes[outcome or "FAILED"] += 1
                failed += outcome is None
            print(f"{name}: {sum(outcomes.values())} rounds ({_counted(outcomes)})", flush=True)
        if TALLY["kills"]:
            print(f"{TALLY.pop('kills')} kills; {_counted(TALLY)}")
    return 1 if failed else 0


def _counted(outcomes: Counter[str]) -> str:
    return ", ".join(f"{count} {outcome}" for outcome, count in outcomes.most_common())


if __name__ == "__main__":
    sys.exit(main())
