"""Workers inside this process, of which some fail: the run sees what it sees of workers elsewhere."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import saeval
from saeval.plugin import Worker, WorkerEngine, WorkerSession, hookimpl
from saeval.registry.discovery import Plugins


class Inside(Worker):
    """A session in this process; `why` is asked before each request and may return why the worker ends."""

    def __init__(self, name, why):
        self.name, self._session, self._ends = name, WorkerSession(), why
        self._request = self._why = None

    def send(self, request):
        self._request = request

    def answer(self):
        if self._request is None or self._why:
            return None
        request, self._request = self._request, None
        self._why = self._ends(self.name, json.loads(request))
        return None if self._why else self._session.answer(request)

    def ended(self):
        return self._why


class Fleet(WorkerEngine):
    """Workers inside this process."""

    name = "inside"

    def start(self, count, needs, folder):
        return [Inside(f"w{number}", noted) for number in range(count or 1)]

    def stop(self):
        pass


asked = []
fails = []


def noted(name, request):
    asked.append((name, request))
    return fails[0](name, request)


@hookimpl
def saeval_engines():
    return [Fleet]


def fleet(why=lambda name, request: None, files=()):
    """Plugins with an engine `inside`, and the requests that its workers get; `why` may end one of them."""
    plugins = Plugins([__file__, *files])
    digest = hashlib.sha256(str(Path(__file__).resolve()).encode()).hexdigest()[:12]
    module = sys.modules[f"saeval_plugin_{digest}"]
    module.fails.append(why)
    return plugins, module.asked


def values(results):
    """Values and arrays of each cell, bit for bit."""
    return {
        (r.metric, r.subject): (r.status, r.reason, r.values, {name: a.tobytes() for name, a in r.arrays.items()})
        for r in results
    }


def run(suite, out, engine="local", plugins=None, **options):
    return saeval.run(suite, out=out, engine=engine, plugins=plugins, **options)
