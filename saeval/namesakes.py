"""Two suites of one name would share a results folder, and the manifest of the second would replace the first's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from saeval import suitefile
from saeval.errors import Problem, SuiteError
from saeval.plan import Plan
from saeval.store import Store


def refuse_namesakes(plans: Sequence[Plan], out: Path | str) -> None:
    """`SuiteError` where a results folder belongs to another suite file than the one that is to run.

    A suite that was edited, moved or copied is the same one: the other file has to be there, to have this name still,
    and to differ. Suites given as mappings have no file and are not compared.
    """
    problems: list[Problem] = []
    for index, made in enumerate(plans):
        own, folder = made.suite.file, Path(out) / made.name
        if own is None:
            continue
        earlier = [(p.name, p.suite.file) for p in plans[:index] if p.suite.file is not None and p.name == made.name]
        listed = [(m["suite"], Path(m["file"])) for m in Store(folder).manifests() if m.get("file")]
        for name, other in [*earlier, *listed]:
            if other is not None and _another(name, other, own):
                message = (
                    f"another suite, {other}, is named '{name}' and has its results in {folder}; give one of them "
                    f"another name, or choose another --out"
                )
                problems.append(made.suite.problem(message, "suite"))
                break
    if problems:
        raise SuiteError(problems)


def _another(name: str, other: Path, own: Path) -> bool:
    if not other.is_file() or other.resolve() == own.resolve():
        return False
    try:
        there, _ = suitefile.read(other)
        here, _ = suitefile.read(own)
    except SuiteError:  # it is no suite any more
        return False
    return there.get("suite") == name and there != here
