"""The choice of a CPU fleet's shape by measuring, once for each model and machine."""

import logging
from collections.abc import Sequence

from scripts.cli import shape_cache
from scripts.cli.child_env import child_env, without_keys
from scripts.cli.shape_probes import MOST_S, Candidate, Measured, ProbeError, measure
from shared.settings.settings import ModelEntry, Settings, model_entries
from shared.tasks.runner_table import AUTO, WITHOUT_FILES, info_of
from shared.telemetry.logging_setup import fields
from worker.hardware.device import HUGE_PAGES, TUNABLES_ENV
from worker.hardware.machine import Machine
from worker.hardware.measurements import Measurement, best_of, in_words
from worker.hardware.shapes import Shape, bytes_of_weights
from worker.models.errors import ModelFormatError
from worker.runners.registry import detect

log = logging.getLogger("aios.serve")

_MOST_DELAY = 0.1
"""The largest share of time without a processor at which measurements count for later starts."""


def chosen_shape(
    settings: Settings, machine: Machine, candidates: Sequence[Candidate]
) -> Shape | None:
    """Return the best of the candidates, by measurements that were kept or are made now.

    Where several models are served, the one with the largest weights is measured. Return None, for
    the rule to decide, where that one generates no text, and where measuring fails. Raise
    SettingsError for options that the model's runner does not have.
    """
    entry = _largest(settings)
    if entry is None:
        return None
    runner = _runner_of(entry)
    if runner is None or "generate" not in info_of(runner).tasks:
        return None
    try:
        key = shape_cache.key_of(entry, runner, settings, machine)
    except OSError as error:
        _not_measured(entry, error)
        return None

    kept = shape_cache.kept(key)
    if kept is not None:
        measurements = _of(candidates, kept.measurements)
        if len(measurements) == len(candidates):
            return _best(measurements, settings, when=f" on {kept.day}")
    measured = _measured(entry, settings, candidates)
    if measured is None:
        return None
    _keep(key, measured)
    return _best(measured.shapes, settings)


def _keep(key: str, measured: Measured) -> None:
    """Keep measurements for later starts, unless other work took the processors meanwhile."""
    if measured.delay > _MOST_DELAY:
        reason = f"other work had the processors for {measured.delay:.0%} of the time"
        log.warning("measurements not kept", extra=fields(error=reason))
        return
    try:
        shape_cache.keep(key, measured.shapes)
    except OSError as error:
        log.warning("measurements not kept", extra=fields(error=str(error)))


def _largest(settings: Settings) -> ModelEntry | None:
    """Return the model with the largest weights, of those that are loaded on a CPU."""
    entries: list[ModelEntry] = []
    for entry in model_entries(settings):
        if entry.runner not in WITHOUT_FILES and not entry.gpu_required:
            entries.append(entry)
    return max(entries, key=bytes_of_weights, default=None)


def _runner_of(entry: ModelEntry) -> str | None:
    """Return the runner of a model, None for files of no model."""
    if entry.runner != AUTO:
        return entry.runner
    try:
        return detect(entry.path)
    except ModelFormatError:
        # The workers say what is wrong.
        return None


def _measured(
    entry: ModelEntry, settings: Settings, candidates: Sequence[Candidate]
) -> Measured | None:
    """Measure the candidates. Return None if that fails."""
    shapes = [f"{candidate.workers} x {candidate.threads}" for candidate in candidates]
    log.info(
        "measuring shapes",
        extra=fields(model=entry.id, shapes=", ".join(shapes), most_s=MOST_S),
    )
    env = {TUNABLES_ENV: HUGE_PAGES, **without_keys(child_env(settings))}
    try:
        return measure(entry.id, candidates, env, rows=settings.max_batch_size)
    except ProbeError as error:
        _not_measured(entry, error)
        return None


def _not_measured(entry: ModelEntry, error: Exception) -> None:
    log.warning("shapes not measured", extra=fields(model=entry.id, error=str(error)))


def _of(candidates: Sequence[Candidate], measurements: Sequence[Measurement]) -> list[Measurement]:
    """Return the measurements of these candidates: memory may hold fewer workers than it did."""
    shapes = {(candidate.workers, candidate.threads) for candidate in candidates}
    return [one for one in measurements if (one.workers, one.threads) in shapes]


def _best(measurements: Sequence[Measurement], settings: Settings, when: str = "") -> Shape:
    best = best_of(measurements)
    why = f"measured{when}: {in_words(measurements, settings.max_batch_size)}"
    return Shape(best.workers, best.threads, why)
