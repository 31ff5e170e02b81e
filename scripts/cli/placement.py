"""Placement of a fleet's workers: how many there are, and the cores or the GPU of each.

The supervisor passes its placement to each worker through the environment. A worker that is
restarted keeps its placement.
"""

import logging
import os
from collections.abc import Mapping, Sequence

from shared.fleet.advice import advise, on_threads
from shared.settings.settings import Settings
from shared.telemetry.logging_setup import fields
from worker.hardware.device import CORES_ENV, HUGE_PAGES, TUNABLES_ENV
from worker.hardware.machine import Machine, survey
from worker.hardware.shapes import Shape, shape_of, shapes_to_measure

log = logging.getLogger("aios.serve")


def place_workers(settings: Settings) -> tuple[Settings, list[dict[str, str]]]:
    """Return the settings with `workers` and `threads` as numbers, and the workers' environments.

    There is an environment for each worker: the variables to add to that of the supervisor. Raise
    SettingsError for options that a model's runner does not have.
    """
    machine = survey(settings.device)
    shape = _shape(settings, machine)
    settings = settings.model_copy(update={"workers": shape.workers, "threads": shape.threads})
    envs = _placed(shape, settings, machine)
    if TUNABLES_ENV not in os.environ:
        for env in envs:
            env[TUNABLES_ENV] = HUGE_PAGES

    log.info(
        "workers placed",
        extra=fields(
            shape=str(shape),
            why=shape.why,
            num_cores=machine.num_cores,
            num_gpus=machine.num_gpus,
        ),
    )
    advise(on_threads(shape.workers, shape.threads, machine.num_cores))
    return settings, envs


def _shape(settings: Settings, machine: Machine) -> Shape:
    """Return the shape that was measured to be the best, or else that of the rule."""
    shapes = shapes_to_measure(settings, machine)
    measured = None
    if shapes:
        measured = _measured(shapes, settings, machine)
    return measured or shape_of(settings, machine)


def _measured(shapes: Sequence[Shape], settings: Settings, machine: Machine) -> Shape | None:
    """Return the best of the shapes, None where that cannot be measured."""
    # Imported here, because other commands do without the engine that this loads.
    from scripts.cli.shape_choice import chosen_shape
    from scripts.cli.shape_probes import Candidate

    processors = [processor for core in machine.cores for processor in core]
    candidates: list[Candidate] = []
    for shape in shapes:
        cores: list[str] = []
        for env in _placed(shape, settings, machine):
            cores.append(env.get(CORES_ENV, _text(processors)))
        candidates.append(Candidate(shape.threads, cores))
    return chosen_shape(settings, machine, candidates)


def _placed(shape: Shape, settings: Settings, machine: Machine) -> list[dict[str, str]]:
    """Return the variables that place each worker, none where workers are not placed."""
    if settings.pin_cores or machine.num_gpus:
        return worker_envs(shape, machine, os.environ)
    return [{} for _ in range(shape.workers)]


def worker_envs(shape: Shape, machine: Machine, env: Mapping[str, str]) -> list[dict[str, str]]:
    """Return the variables that give each worker a GPU or cores of its own.

    Workers share the GPUs in turn. Cores are given only if there are enough for the threads of all
    workers.
    """
    envs: list[dict[str, str]] = []
    if machine.num_gpus:
        variable = "CUDA_VISIBLE_DEVICES"
        if env.get("HIP_VISIBLE_DEVICES"):
            variable = "HIP_VISIBLE_DEVICES"
        gpus = _visible_gpus(env.get(variable, ""), machine.num_gpus)
        for copy in range(shape.workers):
            envs.append({variable: gpus[copy % len(gpus)]})
        return envs

    # Under a quota of processor time, other containers may run, and pin, on the same cores.
    has_quota = machine.num_cores < len(machine.cores)
    has_too_few = shape.workers * shape.threads > machine.num_cores
    if shape.workers == 1 or has_quota or has_too_few:
        return [{} for _ in range(shape.workers)]
    for processors in core_shares(machine.cores, shape.workers):
        envs.append({CORES_ENV: _text(processors)})
    return envs


def _text(processors: Sequence[int]) -> str:
    return ",".join(str(processor) for processor in processors)


def _visible_gpus(text: str, num_gpus: int) -> list[str]:
    """Return the names of the first `num_gpus` GPUs in a comma-separated list.

    If the list is empty, return their numbers.
    """
    names = []
    for part in text.split(","):
        name = part.strip()
        if name:
            names.append(name)
    if not names:
        return [str(number) for number in range(num_gpus)]
    return names[:num_gpus]


def core_shares(cores: Sequence[tuple[int, ...]], workers: int) -> list[tuple[int, ...]]:
    """Return the logical processors of each worker.

    `cores` holds the logical processors of each physical core. A worker gets whole cores that are
    neighbours. The workers' numbers of cores differ by one at most.
    """
    shares = []
    for copy in range(workers):
        start = len(cores) * copy // workers
        end = len(cores) * (copy + 1) // workers
        processors: list[int] = []
        for core in cores[start:end]:
            processors += core
        shares.append(tuple(processors))
    return shares
