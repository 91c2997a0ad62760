"""Engines: processes of this machine, Ray and SLURM. Each library is imported when its engine starts."""

from __future__ import annotations

from saeval.plugin import WorkerEngine, hookimpl
from saeval_engines.local import Local
from saeval_engines.on_ray import Ray
from saeval_engines.slurm import Slurm


@hookimpl
def saeval_engines() -> list[type[WorkerEngine]]:
    return [Local, Ray, Slurm]
