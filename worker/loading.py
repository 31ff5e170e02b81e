"""From settings to loaded, warmed runners. Where a bad path becomes a sentence for the operator."""

import logging
from dataclasses import dataclass

from shared.messages import Done, Generate, ModelInfo, Sampling
from shared.settings import ModelEntry, Settings, SettingsError, model_entries
from worker import device
from worker.engine import Emission, Engine, Work
from worker.models.errors import ModelFormatError
from worker.registry import detect, load_runner
from worker.runners.base import SMALLEST_WINDOW, Runner, RunnerOptions

logger = logging.getLogger("aios.loading")


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
        is_default=is_default,
    )  # fmt: skip
    return LoadedModel(info, runner)


def _options(entry: ModelEntry, settings: Settings, kind: str) -> RunnerOptions:
    if kind != "echo":
        device.use_threads(settings.threads)
    return RunnerOptions(
        path=entry.path,
        tokenizer_path=entry.tokenizer_path,
        device="cpu" if kind == "echo" else device.choose(settings.device),
        dtype=entry.dtype or settings.dtype,
        quantize=entry.quantize or settings.quantize,
        max_batch=settings.max_batch_size,
        context_window=entry.context_window or settings.context_window,
        kv_bytes=settings.kv_memory_mib * 2**20,
        page_size=settings.page_size,
        condition=settings.condition,
        scoring=settings.scoring,
        segments=settings.segments,
        attention=settings.attention,
    )


def warm_up(runner: Runner) -> str:
    """Decode one token through a real engine, so that the first request finds everything ready; returns its text."""
    said: list[Emission] = []
    engine = Engine(runner, said.extend)
    sampling = Sampling(max_tokens=1, seed=0, temperature=0.0)
    engine.submit(Work("warm-up", runner.encode(Generate("1", sampling)), sampling))
    while engine.has_work:
        engine.step()
    ended = said[-1].ended
    if not isinstance(ended, Done):
        raise SettingsError(f"the model loads but cannot decode: {ended.message if ended else 'nothing came'}")
    return "".join(item.text for item in said)
