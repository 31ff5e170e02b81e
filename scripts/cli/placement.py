"""Placement of a fleet's workers: how many there are, their models, and the cores or GPU of each.

Models of images, or of sounds, have workers of their own where a number of these is set. A picture
that takes long then holds up no text, and each kind of work is scaled by itself.

The supervisor passes its placement to each worker through the environment. A worker that is
restarted keeps its placement.
"""

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

from shared.fleet.advice import advise, on_threads
from shared.settings.layers import env_name
from shared.settings.settings import ModelEntry, Settings, model_entries
from shared.tasks.specs import Modality
from shared.telemetry.logging_setup import fields
from worker.hardware.device import CORES_ENV, HUGE_PAGES, TUNABLES_ENV
from worker.hardware.machine import Machine, survey
from worker.hardware.shapes import Shape, shape_of, shapes_to_measure

MODALITIES: dict[str, tuple[Modality, ...]] = {
    "image": ("image", "video", "3d"),
    "audio": ("audio",),
}
"""The modalities of the pools whose number of workers may be set. That of text has the others."""
DEFAULT_POOL = "default"

log = logging.getLogger("aios.serve")


def place_workers(settings: Settings) -> tuple[Settings, list[dict[str, str]]]:
    """Return the settings with `workers` and `threads` as numbers, and the workers' environments.

    There is an environment for each worker: the variables to add to that of the supervisor. Raise
    SettingsError for options that a model's runner does not have.
    """
    machine = survey(settings.device)
    pools = pools_of(settings)
    if pools:
        return _place_pools(settings, pools, machine)
    shape = _shape(settings, machine)
    settings = settings.model_copy(update={"workers": shape.workers, "threads": shape.threads})
    envs = _placed(shape, settings, machine)
    _ask_for_huge_pages(envs)
    _log_placed(shape, machine)
    advise(on_threads(shape.workers, shape.threads, machine.num_cores))
    return settings, envs


@dataclass(frozen=True)
class Pool:
    """Workers for models of some modalities alone.

    Its settings have the pool's models and number of workers. A pool without models serves those
    of the catalogue.
    """

    name: str
    modalities: tuple[Modality, ...]
    settings: Settings
    has_models: bool


def pools_of(settings: Settings) -> list[Pool]:
    """Return the pools, those with models first, or none where all workers serve all models.

    There is a pool for images, or for sounds, if its number of workers is set, and one for all
    other models, unless there are none and `workers` is not set. Raise SettingsError for a model
    that cannot be read.
    """
    # Imported here, because other commands do without it.
    from worker.host.facts import modality_of

    numbers = {"image": settings.image_workers, "audio": settings.audio_workers}
    shared_out: dict[str, tuple[Modality, ...]] = {}
    others = list(get_args(Modality))
    for name, number in numbers.items():
        if number is None:
            continue
        shared_out[name] = MODALITIES[name]
        for modality in MODALITIES[name]:
            others.remove(modality)
    if not shared_out:
        return []
    pools: list[Pool] = []
    for name, modalities in {"text": tuple(others), **shared_out}.items():
        workers = settings.workers
        if name in shared_out:
            workers = numbers[name]
        entries: list[ModelEntry] = []
        for entry in model_entries(settings):
            if modality_of(entry, settings) in modalities:
                entries.append(entry)
        if not entries and workers is None:
            continue
        update = {
            "models": tuple(entries),
            "default_model": None,
            "options": (),
            "workers": workers,
        }
        pools.append(
            Pool(name, modalities, settings.model_copy(update=update), has_models=bool(entries))
        )
    # The first worker starts alone, and the fleet is ready when it is.
    return sorted(pools, key=lambda pool: not pool.has_models)


def _place_pools(
    settings: Settings, pools: Sequence[Pool], machine: Machine
) -> tuple[Settings, list[dict[str, str]]]:
    """Return what `place_workers` does, for the workers of all pools, one pool after the other.

    Each pool has the threads that it would have alone, and nobody is pinned: which of the pools
    have work changes all the time.
    """
    own_envs: list[dict[str, str]] = []
    for pool in pools:
        shape = _shape(pool.settings, machine)
        name = pool.name
        if settings.pool != DEFAULT_POOL:
            name = f"{settings.pool}-{pool.name}"
        for _ in range(shape.workers):
            own_envs.append(
                {
                    env_name("modalities"): ",".join(pool.modalities),
                    env_name("pool"): name,
                    env_name("threads"): str(shape.threads),
                }
            )
        _log_placed(shape, machine, pool=name)

    envs: list[dict[str, str]] = [{} for _ in own_envs]
    if machine.num_gpus:
        envs = worker_envs(Shape(len(own_envs), 1), machine, os.environ)
    for env, own_env in zip(envs, own_envs, strict=True):
        env.update(own_env)
    _ask_for_huge_pages(envs)
    return settings.model_copy(update={"workers": len(envs)}), envs


def _ask_for_huge_pages(envs: Sequence[dict[str, str]]) -> None:
    """Ask malloc for huge pages, unless the supervisor was told otherwise."""
    if TUNABLES_ENV in os.environ:
        return
    for env in envs:
        env[TUNABLES_ENV] = HUGE_PAGES


def _log_placed(shape: Shape, machine: Machine, pool: str | None = None) -> None:
    log.info(
        "workers placed",
        extra=fields(
            shape=str(shape),
            why=shape.why,
            num_cores=machine.num_cores,
            num_gpus=machine.num_gpus,
            pool=pool,
        ),
    )


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
