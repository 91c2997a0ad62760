"""Finds and loads plugins, and calls their hooks one plugin at a time, so that each name and failure has an owner."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import json
import os
import sys
import traceback
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

import pluggy

from saeval.base.errors import SaevalError, said, searched_in, suggestion
from saeval.base.identity import Origin
from saeval.base.provenance import version
from saeval.registry import hookspecs

GROUP = "saeval"


@dataclass(frozen=True)
class Failure:
    """An error of one plugin while it was loaded or called; `error` is one line, `details` the traceback."""

    origin: Origin
    error: str
    details: str = ""

    def __str__(self) -> str:
        return f"{self.origin} failed: {self.error}"


class Plugins:
    """The plugins of this process: those installed, unless `discover=False`, and those in `files`.

    An installed plugin that does not load raises nothing: `failures` records it. Raises `SaevalError` for one of
    `files` that is missing or does not load.
    """

    def __init__(self, files: Sequence[Path | str] = (), *, discover: bool = True) -> None:
        self._manager = pluggy.PluginManager("saeval")
        self._manager.add_hookspecs(hookspecs)
        self.origins: dict[str, Origin] = {}
        self.failures: list[Failure] = []
        self.discovered = discover
        self.files = [str(Path(file).absolute()) for file in files]
        """The plugin files: what another process needs, beside the installed plugins, to have the same ones."""
        self.added: list[str] = []
        """Names of the plugins that exist in this process alone."""
        self._register(Origin("saeval", "core", version(), _is_editable(None)), _core)
        if discover:
            for entry_point in sorted(entry_points(group=GROUP), key=lambda e: (_distribution(e), e.name)):
                self._register(_origin(entry_point), entry_point.load)
        for file in files:
            path = Path(file)
            if not os.path.isfile(path):
                raise SaevalError(f"--plugin {path}: no such file{searched_in(path)}")
            origin = Origin(str(path), path.stem, hashlib.sha256(path.read_bytes()).hexdigest()[:16], True)
            before = len(self.failures)
            self._register(origin, functools.partial(_load_file, path))
            if len(self.failures) > before and str(origin) not in self.origins:
                raise SaevalError(f"--plugin {path}: {self.failures[-1].error}")

    def add(self, plugin: object, name: str, version: str | None = None) -> None:
        """Register an object with hook implementations, such as a test module.

        Keys of results hash the source of what it supplies; a thing without a source file gets a new key in every
        process. With a `version`, keys hold the version instead.
        """
        origin = Origin(name, name, uuid.uuid4().hex if version is None else version, version is None)
        self._register(origin, lambda: plugin)
        self.added.append(name)

    @property
    def folders(self) -> set[Path]:
        """Folders of the loaded plugins' modules."""
        names = [getattr(plugin, "__name__", type(plugin).__module__) for _, plugin in self._manager.list_name_plugin()]
        modules = [sys.modules.get(name) for name in names]
        return {Path(module.__file__).parent for module in modules if module is not None and module.__file__}

    def copy(self) -> Plugins:
        """Return a copy with the same plugins; adding to it leaves this collection as it is. They share `failures`."""
        copied = Plugins(discover=False)
        for name, plugin in self._manager.list_name_plugin():
            if name not in copied.origins and plugin is not None:
                copied._manager.register(plugin, name=name)
                copied.origins[name] = self.origins[name]
        copied.failures = self.failures
        copied.discovered, copied.files, copied.added = self.discovered, [*self.files], [*self.added]
        return copied

    def _register(self, origin: Origin, load: Callable[[], object]) -> None:
        name = str(origin)
        if name in self.origins:
            return
        try:
            plugin = load()
            self._manager.register(plugin, name=name)
        except (Exception, SystemExit) as error:  # an error while loading is a failure of this plugin alone
            self._fail(origin, error)
            return
        self.origins[name] = origin
        hooks = [hook for hook in dir(hookspecs) if hook.startswith("saeval_")]
        for hook in (name for name in dir(plugin) if name.startswith("saeval_") and name not in hooks):
            if getattr(getattr(plugin, hook, None), "saeval_impl", None):
                self.failures.append(Failure(origin, f"implements an unknown hook '{hook}'{suggestion(hook, hooks)}"))

    def _fail(self, origin: Origin, error: BaseException) -> None:
        details = "".join(traceback.format_exception(error))
        self.failures.append(Failure(origin, said(error), details))

    def collect(self, hook: str, **arguments: Any) -> list[tuple[Any, Origin]]:
        """Call a collecting hook of every plugin; return all items, each with its origin, in loading order."""
        collected: list[tuple[Any, Origin]] = []
        for origin, returned in self._call_each(hook, **arguments):
            if not isinstance(returned, list | tuple):
                error = f"{hook} returned {type(returned).__name__}; return a list"
                self.failures.append(Failure(origin, error))
                continue
            collected += [(item, origin) for item in returned]
        return collected

    def notify(self, hook: str, **arguments: Any) -> None:
        """Call a notification hook of every plugin; an error in one is a failure of that plugin alone."""
        self._call_each(hook, **arguments)

    def _call_each(self, hook: str, **arguments: Any) -> list[tuple[Origin, Any]]:
        results = []
        plugins = dict(self._manager.list_name_plugin())
        for name, origin in self.origins.items():
            excluded = [plugin for key, plugin in plugins.items() if key != name and plugin is not None]
            try:
                returned = self._manager.subset_hook_caller(hook, excluded)(**arguments)
            except (Exception, SystemExit) as error:  # an error in a hook is a failure of this plugin alone
                self._fail(origin, error)
                continue
            results += [(origin, result) for result in returned or []]
        return results


def _core() -> ModuleType:
    from saeval.registry import builtin_quantities  # late: it imports torch, which `--help` must not

    return builtin_quantities


def _load_file(path: Path) -> ModuleType:
    name = f"saeval_plugin_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:12]}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def _origin(entry_point: EntryPoint) -> Origin:
    own = entry_point.dist.version if entry_point.dist else ""
    return Origin(_distribution(entry_point), entry_point.name, own, _is_editable(entry_point))


def _distribution(entry_point: EntryPoint) -> str:
    return (entry_point.dist.name if entry_point.dist else None) or "unknown"  # None if its metadata are damaged


def _is_editable(entry_point: EntryPoint | None) -> bool:
    if entry_point is None:
        first_party = [e for e in entry_points(group=GROUP) if e.dist and e.dist.name == "saeval"]
        return _is_editable(first_party[0]) if first_party else True
    distribution = entry_point.dist
    # In its source tree, Python finds a package by the metadata that its build left there, ahead of those installed.
    if distribution and not any(distribution.read_text(name) for name in ("RECORD", "INSTALLER")):
        return True
    text = distribution.read_text("direct_url.json") if distribution else None
    try:
        return bool(text and json.loads(text).get("dir_info", {}).get("editable"))
    except (ValueError, AttributeError):  # a damaged record: hash the source, which is always right
        return True
