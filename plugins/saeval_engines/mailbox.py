"""Requests and answers as files in a folder that all machines share, for workers that no pipe reaches."""

from __future__ import annotations

import os
import time
from pathlib import Path

from saeval.plugin import FREE_SPACE, write_whole

_PAUSE = 0.02
_MOST_PAUSE = 1.0
"""Seconds between two looks into the folder: short after a request, then longer and longer."""
SILENT = 300.0
"""Seconds without a sign of life of the run after which a worker ends."""


class Mailbox:
    """The run's end of a mailbox."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._number = self._beats = 0
        self.beat()

    def beat(self) -> None:
        """Give a sign of life, which the worker looks for."""
        self._beats += 1
        (self.folder / "alive").write_text(str(self._beats), encoding="utf-8")

    def send(self, request: str) -> None:
        self._number += 1
        write_whole(self.folder / f"request-{self._number}", request.encode(), f"{FREE_SPACE} --out")

    def answer(self) -> str | None:
        """Return the answer to the last request, if it is there."""
        try:
            return (self.folder / f"answer-{self._number}").read_text(encoding="utf-8")
        except FileNotFoundError:
            return None

    def close(self) -> None:
        """Tell the worker to end."""
        (self.folder / "closed").touch()


def serve(folder: str) -> None:
    """Answer the requests in a folder, until it is closed, removed, or nobody gives a sign of life."""
    from saeval.plugin import WorkerSession  # late: it imports torch, which listings do not need

    place, session, number = Path(folder), WorkerSession(), 1
    sign, seen, pause = "", time.monotonic(), _PAUSE
    (place / "began").write_text(f"{os.uname().nodename}, process {os.getpid()}", encoding="utf-8")
    while place.exists() and not (place / "closed").exists() and time.monotonic() - seen < SILENT:
        try:
            now = (place / "alive").read_text(encoding="utf-8")
        except OSError:
            now = sign
        if now != sign:  # clocks of two machines are not compared
            sign, seen = now, time.monotonic()
        try:
            request = (place / f"request-{number}").read_text(encoding="utf-8")
        except FileNotFoundError:
            os.listdir(place)  # a network disk looks for new names only now
            time.sleep(pause)
            pause = min(_MOST_PAUSE, 1.2 * pause)
            continue
        write_whole(place / f"answer-{number}", session.answer(request).encode(), "free some space")
        number, seen, pause = number + 1, time.monotonic(), _PAUSE
