"""Interface of engines: how the workers of a run are started, and how they are asked."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar, NamedTuple


class Needs(NamedTuple):
    """What each worker of a run must hold."""

    memory: int
    """Bytes for the model, the SAEs of a pass and a batch."""
    gpus: int
    """1 if the run's device is a GPU, else 0."""


class Worker(ABC):
    """A process, perhaps on another machine, that answers requests with a `saeval.plugin.WorkerSession`.

    Requests and answers are text (JSON): no object is ever pickled. A worker has at most one open request.
    """

    name: str
    """Its name in messages, such as a machine and a process id."""

    @abstractmethod
    def send(self, request: str) -> None:
        """Send the next request."""

    @abstractmethod
    def answer(self) -> str | None:
        """Return the answer to the open request; None if there is none yet. It never waits."""

    @abstractmethod
    def ended(self) -> str | None:
        """Return why the process has ended, in words; None while it is alive, or still waits for its machine."""


class WorkerEngine(ABC):
    """A way to start workers, chosen by `--engine NAME` or `NAME:WORKERS`.

    `__init__` is the schema of its options, given as `--engine-option KEY=VALUE`.
    """

    name: ClassVar[str]
    """The name that `--engine` selects."""
    device: str | None = None
    """Device of the workers, if it is not the run's own: the machine that starts a run may have no GPU."""

    @abstractmethod
    def start(self, count: int | None, needs: Needs, folder: Path) -> list[Worker]:
        """Start `count` workers, or the engine's own number; `SaevalError` if it cannot.

        `folder`, inside the results folder, is for whatever the engine has to write; it is removed after the run.
        """

    @abstractmethod
    def stop(self) -> None:
        """Stop all workers, whatever they are doing."""
