"""`slurm`: an array job of workers, by submitit."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from saeval.plugin import Needs, SaevalError, Worker, WorkerEngine
from saeval_engines.mailbox import SILENT, Mailbox, serve

_LAST = 2000
_ENDING = 10.0
"""Seconds that jobs of this machine have for ending."""


class Job(Worker):
    """One job of the array, asked through a mailbox in the results folder."""

    def __init__(self, job: Any, mailbox: Mailbox, number: int) -> None:
        self._job, self._mailbox, self.name = job, mailbox, f"{number} (job {job.job_id})"
        self._asked = False

    def send(self, request: str) -> None:
        self._mailbox.send(request)
        self._asked = True

    def answer(self) -> str | None:
        answer = self._mailbox.answer() if self._asked else None
        self._asked = self._asked and answer is None
        return answer

    def ended(self) -> str | None:
        if not self._job.done():
            return None
        said = (self._job.stderr() or "").strip()[-_LAST:]
        return f"the job ended: {self._job.state}\n{said}".strip()

    def stop(self) -> None:
        """End the job now."""
        self._mailbox.close()
        self._job.cancel(check=False)


class Slurm(WorkerEngine):
    """Jobs of SLURM: `slurm:N` is an array of N workers.

    `partition`, `account`, `qos` and `constraint` are SLURM's own. Each worker asks for `cpus` cores, for `gpus` GPUs
    (1 if the device is one), for `memory_gb` GB of memory (what the plan needs) and for `hours`. `cluster: local`
    starts the jobs on this machine, without SLURM.
    """

    name = "slurm"

    def __init__(
        self, partition: str | None = None, account: str | None = None, qos: str | None = None,
        constraint: str | None = None, cpus: int = 4, gpus: int | None = None, memory_gb: int | None = None,
        hours: int = 24, cluster: str = "slurm", device: str | None = None,
    ) -> None:  # fmt: skip
        self.own = {"partition": partition, "account": account, "qos": qos, "constraint": constraint}
        self.cpus, self.gpus, self.memory_gb, self.hours = cpus, gpus, memory_gb, hours
        self.cluster, self.device = cluster, device
        self._jobs: list[Job] = []
        self._stopped = threading.Event()

    def start(self, count: int | None, needs: Needs, folder: Path) -> list[Worker]:
        try:
            import submitit  # late: it is an extra
        except ImportError:
            raise SaevalError("engine 'slurm' needs submitit: pip install 'saeval[slurm]'") from None
        if count is None:
            raise SaevalError("engine 'slurm' needs the number of workers, as in slurm:8")
        gpus = needs.gpus if self.gpus is None else self.gpus
        memory = self.memory_gb or -(-needs.memory // 10**9)
        boxes = [Mailbox(folder / f"worker-{number}") for number in range(1, count + 1)]
        try:
            executor = submitit.AutoExecutor(folder / "jobs", cluster=self.cluster)
            executor.update_parameters(
                name="saeval", timeout_min=60 * self.hours, cpus_per_task=self.cpus, gpus_per_node=gpus,
                mem_gb=memory, slurm_array_parallelism=count,
                **{f"slurm_{name}": value for name, value in self.own.items() if value is not None},
            )  # fmt: skip
            jobs = executor.map_array(serve, [str(box.folder) for box in boxes])
        except Exception as error:
            words = f"SLURM does not take the jobs ({error}); check the options of --engine-option"
            raise SaevalError(f"engine 'slurm': {words}") from None
        threading.Thread(target=self._beat, args=(boxes,), daemon=True).start()
        self._jobs = [Job(job, box, number) for number, (job, box) in enumerate(zip(jobs, boxes, strict=True), 1)]
        return [*self._jobs]

    def _beat(self, boxes: Sequence[Mailbox]) -> None:
        """Give signs of life also while this process concludes cells."""
        while not self._stopped.wait(SILENT / 10):
            for box in boxes:
                with suppress(OSError):  # a full disk, perhaps for a moment
                    box.beat()

    def stop(self) -> None:
        self._stopped.set()
        for job in self._jobs:
            job.stop()
        latest = time.monotonic() + _ENDING
        while self.cluster == "local" and time.monotonic() < latest and not all(job.ended() for job in self._jobs):
            time.sleep(0.05)  # no queue looks after their processes
        self._jobs = []
