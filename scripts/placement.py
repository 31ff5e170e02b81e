"""Where each worker of a fleet computes: how many there are, and the cores or the GPU of each.

The supervisor's children get this through their environment, copy by copy, and keep it when they
are started again.
"""

import logging
import os
from collections.abc import Mapping, Sequence
from itertools import pairwise

from shared.advice import advise, on_threads
from shared.logging_setup import fields
from shared.settings import Settings
from worker.device import CORES_ENV
from worker.machine import Machine, survey
from worker.shapes import Shape, shape_of

log = logging.getLogger("aios.serve")


def place_workers(settings: Settings) -> tuple[Settings, list[dict[str, str]]]:
    """The settings with `workers` and `threads` as numbers, and what each worker's environment has
    besides."""
    machine = survey(settings.device)
    shape = shape_of(settings, machine)
    settings = settings.model_copy(update={"workers": shape.workers, "threads": shape.threads})
    places = (
        worker_envs(shape, machine, os.environ) if settings.pin_cores or machine.num_gpus else []
    )
    on = {"num_cores": machine.num_cores, "num_gpus": machine.num_gpus}
    log.info("workers placed", extra=fields(shape=str(shape), why=shape.why, **on))
    advise(on_threads(shape.workers, shape.threads, machine.num_cores))
    return settings, places or [{} for _ in range(shape.workers)]


def worker_envs(shape: Shape, machine: Machine, env: Mapping[str, str]) -> list[dict[str, str]]:
    """A GPU for each worker, taken in turn; else cores of its own, where there are enough for all
    threads.

    Nobody is pinned under a quota of processor time: other containers may run, and pin, on the same
    cores.
    """
    if machine.num_gpus:
        variable = (
            "HIP_VISIBLE_DEVICES" if env.get("HIP_VISIBLE_DEVICES") else "CUDA_VISIBLE_DEVICES"
        )
        names = [name.strip() for name in env.get(variable, "").split(",") if name.strip()]
        names = names[: machine.num_gpus] or [str(number) for number in range(machine.num_gpus)]
        return [{variable: names[copy % len(names)]} for copy in range(shape.workers)]
    has_quota = machine.num_cores < len(machine.cores)
    if shape.workers == 1 or has_quota or shape.workers * shape.threads > machine.num_cores:
        return [{} for _ in range(shape.workers)]
    return [
        {CORES_ENV: ",".join(map(str, processors))}
        for processors in core_shares(machine.cores, shape.workers)
    ]


def core_shares(cores: Sequence[tuple[int, ...]], workers: int) -> list[tuple[int, ...]]:
    """The logical processors of each worker: whole cores, neighbours together, as evenly as it
    goes."""
    bounds = [len(cores) * copy // workers for copy in range(workers + 1)]
    return [
        tuple(processor for core in cores[start:end] for processor in core)
        for start, end in pairwise(bounds)
    ]
