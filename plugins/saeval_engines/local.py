"""`local:N`: processes of this machine, asked through pipes."""

from __future__ import annotations

import os
import queue
import subprocess
import sys
import threading
from pathlib import Path
from typing import IO

from saeval.plugin import Needs, Worker, WorkerEngine

_LAST = 2000
"""Characters of a worker's own output that an error shows."""
CHILD = "from saeval_engines.local import serve; serve()"


class Process(Worker):
    """A child process. It ends when its input does, so none outlives the run, however that ends."""

    def __init__(self, number: int, threads: int, folder: Path) -> None:
        self._said = folder / f"worker-{number}.txt"
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        with self._said.open("wb") as said:
            self._process = subprocess.Popen(
                [sys.executable, "-c", CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said,
                env=environment, text=True, encoding="utf-8",
            )  # fmt: skip
        self.name = f"{number} (process {self._process.pid})"
        self._answers: queue.SimpleQueue[str] = queue.SimpleQueue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as answers:
            for text in answers:
                self._answers.put(text)

    def send(self, request: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{request}\n")
        self._process.stdin.flush()

    def answer(self) -> str | None:
        try:
            return self._answers.get_nowait()
        except queue.Empty:
            return None

    def ended(self) -> str | None:
        code = self._process.poll()
        if code is None:
            return None
        how = f"killed by signal {-code}" if code < 0 else f"it ended with exit code {code}"
        said = self._said.read_text(encoding="utf-8", errors="replace")[-_LAST:].strip()
        return f"{how}\n{said}".strip()

    def stop(self) -> None:
        """End the process now."""
        self._process.kill()
        self._process.wait()
        if self._process.stdin is not None:
            self._process.stdin.close()


class Local(WorkerEngine):
    """Processes of this machine, `local:N`; `local` alone is this process.

    `threads` is the number of threads of each, by default its share of the cores.
    """

    name = "local"

    def __init__(self, threads: int | None = None, device: str | None = None) -> None:
        self.threads, self.device = threads, device
        self._processes: list[Process] = []

    def start(self, count: int | None, needs: Needs, folder: Path) -> list[Worker]:
        count = count or 1
        threads = self.threads or int(os.environ.get("OMP_NUM_THREADS", max(1, (os.cpu_count() or 1) // count)))
        for number in range(1, count + 1):
            self._processes.append(Process(number, threads, folder))
        return [*self._processes]

    def stop(self) -> None:
        for process in self._processes:
            process.stop()
        self._processes = []


def serve() -> None:
    """Answer requests from standard input until it ends. What libraries print goes to standard error."""
    from saeval.plugin import WorkerSession  # late: it imports torch, which listings do not need

    answers: IO[str] = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    session = WorkerSession()
    for request in sys.stdin:
        print(session.answer(request), file=answers, flush=True)
