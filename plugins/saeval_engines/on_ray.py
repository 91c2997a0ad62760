"""`ray`: an actor for each worker, on a cluster or on this machine."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from saeval.plugin import Needs, SaevalError, Worker, WorkerEngine


class Actor:
    """What an actor runs: one session, which keeps the model and the SAEs in memory."""

    def __init__(self) -> None:
        from saeval.plugin import WorkerSession  # late: it imports torch, which listings do not need

        self._session = WorkerSession()

    def answer(self, request: str) -> str:
        return self._session.answer(request)


class RayWorker(Worker):
    """One actor. Ray's own retries are off: a request that fails goes to another worker."""

    def __init__(self, ray: Any, actor: Any, number: int) -> None:
        self._ray, self._actor, self.name = ray, actor, f"{number} (ray)"
        self._asked: Any = None
        self._why: str | None = None

    def send(self, request: str) -> None:
        self._asked = self._actor.answer.remote(request)

    def answer(self) -> str | None:
        if self._asked is None or not self._ray.wait([self._asked], timeout=0)[0]:
            return None
        asked, self._asked = self._asked, None
        try:
            return str(self._ray.get(asked))
        except self._ray.exceptions.RayError as error:
            self._why = str(error).strip() or type(error).__name__
            return None

    def ended(self) -> str | None:
        return self._why


class Ray(WorkerEngine):
    """Actors of Ray: `ray:N`, or one for each GPU, or for each core, of the cluster.

    `RAY_ADDRESS` names the cluster; without it Ray starts on this machine. Each actor asks for `cpus` cores, for
    `gpus` GPUs (1 if the device is one) and for `memory_gb` GB of memory (what the plan needs).
    """

    name = "ray"

    def __init__(
        self, cpus: int = 1, gpus: int | None = None, memory_gb: int | None = None, device: str | None = None
    ) -> None:
        self.cpus, self.gpus, self.memory_gb, self.device = cpus, gpus, memory_gb, device
        self._ray: Any = None

    def start(self, count: int | None, needs: Needs, folder: Path) -> list[Worker]:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        try:
            import ray  # late: it is an extra
        except ImportError:
            raise SaevalError("engine 'ray' needs Ray: pip install 'saeval[ray]'") from None
        given: dict[str, Any] = {"logging_level": "error", "log_to_driver": False}
        if not os.environ.get("RAY_ADDRESS"):
            cores = max((count or 0) * self.cpus, os.cpu_count() or 1)
            given |= {"address": "local", "num_cpus": cores, "include_dashboard": False}
        try:
            ray.init(**given)
        except Exception as error:
            ray.shutdown()  # of what has started
            raise SaevalError(f"engine 'ray': Ray does not start ({error}); is RAY_ADDRESS right?") from None
        self._ray = ray
        gpus = needs.gpus if self.gpus is None else self.gpus
        have: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
        count = count or max(1, int(have.get("GPU", 0) // gpus if gpus else have.get("CPU", 1) // self.cpus))
        memory = needs.memory if self.memory_gb is None else self.memory_gb * 10**9
        actor = ray.remote(Actor).options(
            num_cpus=self.cpus, num_gpus=gpus, memory=memory if os.environ.get("RAY_ADDRESS") else 0,
            max_restarts=0, max_task_retries=0,
        )  # fmt: skip
        return [RayWorker(ray, actor.remote(), number) for number in range(1, count + 1)]

    def stop(self) -> None:
        if self._ray is not None:
            self._ray.shutdown()
            self._ray = None
