"""The verb `new`: a package with a plugin of one kind, its entry point, documentation and test, to begin from."""

from __future__ import annotations

import argparse
import keyword
import re
from dataclasses import dataclass
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from string import Template

from saeval.base.errors import OK, SaevalError
from saeval.base.provenance import version
from saeval.registry.discovery import Plugins
from saeval.registry.registry import Registry

_NAME = re.compile(r"[a-z][a-z0-9]*([_-][a-z0-9]+)*")
_TEMPLATES = files("saeval.cli") / "templates"


@dataclass(frozen=True)
class _Kind:
    registered: str
    """The attribute of `Registry` that has the names of this kind."""
    description: str
    use: str
    """How a suite uses it."""


_KINDS = {
    "metric": _Kind("metrics", "A metric of SAEs", "`metrics: [$plugin]` in a suite computes it."),
    "loader": _Kind(
        "loaders", "A format of SAE checkpoints",
        "`saes: [{use: $plugin, path: sae.npz, hook_name: blocks.6.hook_resid_pre}]` in a suite loads a file.",
    ),
    "source": _Kind("data", "A source of text", "`data: {use: $plugin, path: lines.txt, context: 128}` in a suite "
    "reads it."),
    "control": _Kind("controls", "An untrained baseline", "`controls: [$plugin]` in a suite gives it a row of its "
    "own."),
    "suite": _Kind("suites", "A suite", "`saeval run $plugin` runs it."),
}  # fmt: skip
KINDS = tuple(_KINDS)


def new(arguments: argparse.Namespace) -> int:
    """Write the package and print the next commands."""
    folder = Path(arguments.to or arguments.name)
    written = write(arguments.kind, arguments.name, folder)
    print(*written, sep="\n")
    print(f'\nNext: pip install --editable "{folder}[test]" && pytest {folder}')
    return OK


def write(kind: str, name: str, folder: Path) -> list[Path]:
    """Write a package for a plugin of a kind into a new folder and return its files.

    `SaevalError` if the name cannot be one of a module, is taken, or the folder exists.
    """
    module = name.replace("-", "_")
    plugin = name if kind == "suite" else module
    if not _NAME.fullmatch(name) or keyword.iskeyword(module):
        raise SaevalError(
            f"'{name}' cannot be the name of a {kind} and of its Python module; use lower-case letters, digits, - "
            "and _, "
            f"beginning with a letter"
        )
    names = getattr(Registry(Plugins()), _KINDS[kind].registered)
    if plugin in names:
        raise SaevalError(f"there is a {kind} '{plugin}' already ({names.entry(plugin).origin}); choose another name")
    if find_spec(module) is not None:
        raise SaevalError(
            f"there is a Python module '{module}' already, which the package would hide; choose another name"
        )
    if folder.exists():
        raise SaevalError(f"{folder} exists; choose another name, or another folder with --to")
    major, minor = version().split(".")[:2]
    values = {
        "kind": {"loader": "SAE format", "source": "data source"}.get(kind, kind), "name": name, "module": module,
        "plugin": plugin, "Class": "".join(word.capitalize() for word in module.split("_")),
        "description": f"{_KINDS[kind].description}.", "versions": f">={major}.{minor},<{major}.{int(minor) + 1}",
    }  # fmt: skip
    values["use"] = Template(_KINDS[kind].use).substitute(values)
    places = {
        "pyproject.toml.txt": "pyproject.toml",
        "README.md.txt": "README.md",
        f"{kind}/module.py.txt": f"{module}/__init__.py",
        f"{kind}/test.py.txt": f"tests/test_{module}.py",
    }
    if kind == "suite":
        places["suite/suite.yaml.txt"] = f"{module}/{plugin}.yaml"
    written = []
    for template, place in places.items():
        path = folder / place
        path.parent.mkdir(parents=True, exist_ok=True)
        text = _TEMPLATES.joinpath(template).read_text(encoding="utf-8")
        path.write_text(Template(text).substitute(values), encoding="utf-8")
        written.append(path)
    return written
