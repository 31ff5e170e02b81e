"""From settings to loaded, warmed runners. Where a bad path becomes a sentence for the operator."""

import logging
from dataclasses import dataclass

from shared.messages import Done, Generate, ModelInfo
from shared.settings import ModelEntry, Settings, SettingsError, model_entries
from worker import device
from worker.engine import Engine
from worker.models.errors import ModelFormatError
from worker.registry import detect, load_runner
from worker.request import Emission, Work
from worker.runners.base import SMALLEST_WINDOW, Runner, RunnerOptions

logger = logging.getLogger("aios.loading")

_CPU_STEP_TOKENS, _GPU_STEP_TOKENS = 256, 4096
"""Enough for full speed of the matrix products; more would only keep decoding sequences waiting."""


@dataclass(frozen=True)
class LoadedModel:
    info: ModelInfo
    runner: Runner


def load_models(settings: Settings) -> list[LoadedModel]:
    """Load and warm every model of the settings. Raises SettingsError naming the model at fault."""
    entries = model_entries(settings)
    default = settings.default_model or entries[0].id
    return [_load(entry, settings, is_default=entry.id == default) for entry in entries]


def _load(entry: ModelEntry, settings: Settings, *, is_default: bool) -> LoadedModel:
    try:
        kind = detect(entry.path) if entry.runner == "auto" else entry.runner
        runner = load_runner(kind, _options(entry, settings, kind))
    except ModelFormatError as error:
        raise SettingsError(f"model {entry.id!r}: {error}") from None
    spec = runner.spec
    if spec.context_window < SMALLEST_WINDOW:
        raise SettingsError(
            f"context_window: model {entry.id!r} would have {spec.context_window} tokens; at least {SMALLEST_WINDOW} "
            "are expected"
        )
    warm_up(runner)
    logger.info("model %s: %s", entry.id, spec.found)
    info = ModelInfo(
        entry.id, spec.runner, spec.found, spec.context_window, settings.max_new_tokens, spec.max_batch,
        tasks=spec.tasks, is_default=is_default,
    )  # fmt: skip
    return LoadedModel(info, runner)


def _options(entry: ModelEntry, settings: Settings, kind: str) -> RunnerOptions:
    if kind != "echo":
        device.use_threads(settings.threads)
    place = "cpu" if kind == "echo" else device.choose(settings.device)
    return RunnerOptions(
        path=entry.path,
        name=entry.id,
        tokenizer_path=entry.tokenizer_path,
        device=place,
        dtype=entry.dtype or settings.dtype,
        max_batch=settings.max_batch_size,
        context_window=entry.context_window or settings.context_window,
        kv_bytes=settings.kv_memory_mib * 2**20,
        page_size=settings.page_size or _page_size(place, entry.dtype or settings.dtype),
        cuda_graphs=settings.cuda_graphs,
        compile_layers=settings.compile_layers,
        prefix_cache=settings.prefix_cache,
        step_tokens=settings.step_tokens or (_CPU_STEP_TOKENS if place == "cpu" else _GPU_STEP_TOKENS),
        condition=entry.condition or settings.condition,
        scoring=settings.scoring,
        segments=settings.segments,
        attention=settings.attention,
        use_ema=settings.use_ema,
    )


def _page_size(place: str, dtype: str) -> int:
    """Tokens in a page: few waste the least and share the most, but flash attention wants many."""
    if place != "cuda" or dtype == "float32":
        return 16
    from worker.kv.flash import PAGE_SIZE

    return PAGE_SIZE


def warm_up(runner: Runner) -> str:
    """Do the model's trial through a real engine, so that the first request finds everything ready; says what came."""
    said: list[Emission] = []
    engine = Engine(runner, said.extend)
    trial = runner.spec.trial
    sampling = trial.sampling if isinstance(trial, Generate) else None
    engine.submit(Work("warm-up", runner.encode(trial), sampling))
    while engine.has_work:
        engine.step()
    ended = said[-1].ended
    if not isinstance(ended, Done):
        raise SettingsError(f"the model loads but does not work: {ended.message if ended else 'nothing came'}")
    if ended.solution is not None:
        return f"answered a blank grid with confidence {ended.solution.confidence:.3f}"
    return f"decoded one token: {''.join(item.text for item in said)!r}"
