"""Keys of cells and folds, pinned: a change of any of them discards what every user has stored.

`python tests/plan/test_keys.py` pins the keys as they are now, in `keys.json`.
"""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError, replace
from pathlib import Path

import numpy as np
import pytest

from saeval.base.run_options import RunOptions
from saeval.plan.plan import Plan, plan
from saeval.registry.discovery import Plugins
from saeval.registry.registry import Registry
from saeval.suite.schema import validate
from saeval.suite.yaml_marks import Marks
from saeval.testing import TinyPlugin, register_rows
from saeval.testing.claims import every
from saeval.text.tokens import TokenDataset

FILE = Path(__file__).with_name("keys.json")


def planned() -> Plan:
    """A suite over the testbed's files and made-up tokens, its code as a release installs it."""
    tokens = (np.arange(8 * 17, dtype=np.int32) * 37 % 500).reshape(8, 17)
    clusters = np.arange(8, dtype=np.int32) // 2
    owners = np.repeat(clusters[:, None], 17, axis=1)
    plugins = Plugins()
    plugins.add(TinyPlugin(), "tests")
    for name, origin in plugins.origins.items():
        plugins.origins[name] = replace(origin, version="1", editable=False)
    suite = {
        "suite": "pinned",
        "model": "testbed",
        "data": register_rows("pinned", TokenDataset.from_arrays(tokens, owners, clusters, (0,))),
        "saes": ["testbed/relu-1", "testbed/relu-2"],
        "controls": ["mean", {"use": "resample", "name": "another"}, {"use": "pca", "of": "testbed/relu-1"}],
        "groups": {"seeds": ["testbed/relu-*"]},
        "metrics": ["ce", {"ce": {"ablation": "zero", "as": "ce_zero"}}, "l0", "reconstruction",
                    {"functional_stability": {"over": "seeds"}}],
    }  # fmt: skip
    return plan(validate(suite, Marks("pinned")), Registry(plugins), RunOptions())


def keys() -> dict[str, str]:
    """Every cell's key, by metric and subjects, and every fold's digest, by name and hook."""
    made = planned()
    found = {f"{cell.entry.alias} {' '.join(s.name for s in cell.subjects)}": cell.key for cell in made.cells}
    folds = sorted((f"fold {n.name} {n.hook_name}", n.digest) for n in made.folds(made.cells).values())
    for name, digest in folds:
        while name in found:
            name += " again"
        found[name] = digest[:24]
    return found


def changed() -> list[str]:
    now, pinned = keys(), json.loads(FILE.read_text(encoding="utf-8"))
    assert len(now) > 15
    return sorted(name for name in {*now, *pinned} if now.get(name) != pinned.get(name))


def test_keys_are_what_they_were():
    assert not (found := changed()), (
        f"keys changed: {found}. Every result that users have stored under them would be computed again. If that is "
        f"meant, because a number changes, raise the version of the metric, control or quantity (or SCHEMA), say so in "
        f"CHANGELOG.md, and pin the new keys: python tests/plan/test_keys.py"
    )


def test_a_changed_version_is_noticed(monkeypatch):
    metric = Registry(Plugins()).metrics["l0"]
    monkeypatch.setattr(metric, "version", metric.version + 1)
    assert every(name.startswith("l0 ") for name in changed())


def test_the_key_of_a_planned_cell_cannot_be_changed():
    cell = planned().cells[0]
    with pytest.raises(FrozenInstanceError):
        cell.key = "another"


if __name__ == "__main__":
    FILE.write_text(json.dumps(keys(), indent=1) + "\n", encoding="utf-8")
