"""From settings to loaded, warmed runners. Where a bad path becomes a sentence for the operator."""

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from msgspec.structs import replace as replace_struct
from pydantic import ValidationError

from shared.errors import FleetError, from_event
from shared.logging_setup import fields
from shared.messages import Embedded, Failed, Labelled, ModelInfo, Prompting, Solution, name_of
from shared.model_options import options_of
from shared.runner_options import Options, PagedOptions
from shared.runner_table import AUTO, WITHOUT_FILES
from shared.setting_models import PromptingEntry
from shared.settings import ModelEntry, Settings, SettingsError, completed, model_entries
from shared.vectors import unpack
from worker import device
from worker.engines import AnyRunner, engine_for
from worker.facts import facts_of
from worker.fingerprint import fingerprint
from worker.models.errors import ModelFormatError, is_out_of_memory
from worker.models.reading import reason_of, unusable
from worker.registry import detect, load_runner
from worker.request import Emission
from worker.runners.base import SMALLEST_WINDOW, RunnerOptions
from worker.shapes import DEFAULT_KV_BYTES
from worker.take import Take

logger = logging.getLogger("aios.loading")

PROMPTING_FILE = "prompting.json"
"""In a model's directory: how it is asked, where the caller and the model's entry leave it open."""

_CPU_STEP_TOKENS, _GPU_STEP_TOKENS = 256, 4096
"""Enough for full speed of the matrix products; more would only keep decoding sequences waiting."""
_PAGE_SIZE, _FLASH_PAGE_SIZE = 16, 256
"""Tokens in a page: few waste the least and share the most, but torch's flash attention asks for
many."""
_DEFAULT_KV_FRACTION = 0.9
"""Of the memory that weights leave free on a GPU; the rest is for activations."""


@dataclass(frozen=True)
class LoadedModel:
    """`again` loads it once more, from what lies there then. It takes `num_bytes` of memory.

    `fingerprint`: see `worker.fingerprint`. Loading took `load_s`, its first try `warm_up_s`. Files
    that are `not_obeyed` ask for something in vain, each with the reason.
    """

    info: ModelInfo
    runner: AnyRunner
    again: "Callable[[], LoadedModel]"
    num_bytes: int = 0
    fingerprint: str = ""
    load_s: float = 0.0
    warm_up_s: float = 0.0
    not_obeyed: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class UnloadedModel:
    """A model that is not in memory. `info` and `num_bytes` are what is known of it before it is
    loaded.

    `again` loads it. `reason` says why it could not be loaded; "" where nobody has tried.
    """

    info: ModelInfo
    again: "Callable[[], LoadedModel]"
    reason: str = ""
    num_bytes: int = 0


def load_models(settings: Settings) -> list[LoadedModel]:
    """Load and warm every model of the settings but those with `obstacles`.

    Raises SettingsError naming the model at fault, or if none is left.
    """
    return load_known_models(settings, {})[0]


def load_known_models(
    settings: Settings, known: Mapping[str, ModelInfo], *, most: int | None = None
) -> tuple[list[LoadedModel], list[UnloadedModel]]:
    """Load and warm the models of the settings but those with `obstacles`, `most` of them at the
    most.

    The default model comes first. A worker that is started again, while the files of one model are
    damaged, must not take the others down: models that the fleet has served before, which are
    `known`, may fail as long as another one loads. Raises SettingsError naming the model at fault,
    or if none is left.
    """
    entries = model_entries(settings)
    default = settings.default_model or entries[0].id
    if any(entry.runner not in WITHOUT_FILES for entry in entries):
        chosen = device.select_device(settings.device)
        logger.info(
            "device chosen", extra=fields(device=str(chosen), **device.device_capabilities())
        )
    missing = obstacles(settings)
    if len(missing) == len(entries):
        raise SettingsError(missing[entries[0].id])
    models: list[LoadedModel] = []
    unloaded: list[UnloadedModel] = []
    for entry in sorted(entries, key=lambda entry: entry.id != default):
        if entry.id in missing:
            continue
        load = partial(_load, entry, settings, is_default=entry.id == default)
        if most is not None and len(models) >= most:
            unloaded.append(survey(entry, settings, is_default=entry.id == default))
            continue
        try:
            models.append(load())
        except SettingsError as error:
            if entry.id not in known:
                raise
            unloaded.append(UnloadedModel(known[entry.id], load, str(error)))
    if unloaded and not models:
        raise SettingsError(unloaded[0].reason)
    device.give_back_memory()
    return models, unloaded


def survey(entry: ModelEntry, settings: Settings, *, is_default: bool = False) -> UnloadedModel:
    """Return what the files tell of a model that is loaded when work comes for it. Raise
    SettingsError.

    What an entry of the catalogue leaves open is as the settings of this worker say.
    """
    entry = completed(entry, settings)
    load = partial(_load, entry, settings, is_default=is_default)
    try:
        facts = facts_of(entry, settings)
    except ModelFormatError as error:
        raise SettingsError(_sentence(entry, str(error))) from error
    info = replace_struct(facts.info, is_default=is_default, prompting=prompting_of(entry))
    return UnloadedModel(info, load, num_bytes=facts.num_bytes)


def obstacles(settings: Settings) -> dict[str, str]:
    """The models that are not loaded because they require a GPU and there is none, each with what
    to do about it."""
    names = [entry.id for entry in model_entries(settings) if entry.gpu_required]
    if not names or device.select_device(settings.device).type != "cpu":
        return {}
    remedy = (
        "start a worker where there is a GPU (CUDA or MPS), or serve it without gpu_required, "
        "with `quantize: int8` to make the most of a CPU"
    )
    return {name: f"model: {name!r} requires a GPU, and there is none; {remedy}." for name in names}


def _load(entry: ModelEntry, settings: Settings, *, is_default: bool) -> LoadedModel:
    begun_s = time.monotonic()
    bytes_before = device.bytes_in_use()
    try:
        kind = detect(entry.path) if entry.runner == AUTO else entry.runner
        options = _options(entry, settings, kind)
        runner = (
            load_runner(kind, options) if kind in WITHOUT_FILES else _load_fitting(kind, options)
        )
    except ModelFormatError as error:
        raise SettingsError(_sentence(entry, str(error))) from error
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        problem = (
            f"does not fit into memory ({reason_of(error)}); serve a smaller one, or lower "
            "context_window."
        )
        raise SettingsError(_sentence(entry, problem)) from error
    spec = runner.spec
    if spec.mechanism == "sequence" and spec.context_window < SMALLEST_WINDOW:
        raise SettingsError(
            f"context_window: model {entry.id!r} would have {spec.context_window} tokens; at least "
            f"{SMALLEST_WINDOW} are expected"
        )
    loaded_s = time.monotonic()
    try:
        warm_up(runner)
    except FleetError as error:
        problem = f"model {entry.id!r} loads but does not work: {error.message}"
        raise SettingsError(
            f"{problem} Its files in {entry.path} are broken; copy them again."
        ) from None
    load_s, warm_up_s = loaded_s - begun_s, time.monotonic() - loaded_s
    times = {"load_s": round(load_s, 1), "warm_up_s": round(warm_up_s, 1)}
    logger.info("model loaded", extra=fields(model=entry.id, found=spec.found, **times))
    ignored = _not_obeyed(entry, spec.runner)
    for name, reason in ignored.items():
        logger.warning("file not obeyed", extra=fields(model=entry.id, file=name, reason=reason))
    try:
        mark = fingerprint(spec.runner, options)
    except OSError as error:
        raise SettingsError(
            _sentence(entry, str(unusable(error.filename or entry.path, error)))
        ) from error
    info = ModelInfo(
        entry.id,
        spec.runner,
        spec.found,
        spec.context_window,
        settings.max_new_tokens,
        spec.max_batch,
        tasks=spec.tasks,
        is_default=is_default,
        fingerprint=mark,
        device=options.device,
        dtype=options.dtype,
        prompting=prompting_of(entry),
    )
    return LoadedModel(
        info,
        runner,
        again=partial(_load, entry, settings, is_default=is_default),
        num_bytes=max(0, device.bytes_in_use() - bytes_before),
        fingerprint=mark,
        load_s=load_s,
        warm_up_s=warm_up_s,
        not_obeyed=ignored,
    )


def _not_obeyed(entry: ModelEntry, runner: str) -> dict[str, str]:
    """What files of a Hugging Face directory ask for in vain."""
    if runner not in ("causal", "encoder", "hrm-text"):
        return {}
    from worker.models.hf_directory import directory_of, not_obeyed

    try:
        return not_obeyed(directory_of(Path(entry.path)))
    except ModelFormatError as error:
        raise SettingsError(_sentence(entry, str(error))) from error


def prompting_of(entry: ModelEntry) -> Prompting:
    """What the entry says of how the model is asked, and else its own directory. Raises
    SettingsError."""
    declared = (
        {} if entry.runner in WITHOUT_FILES else _declared_prompting(Path(entry.path).expanduser())
    )
    if entry.prompting is not None:
        declared |= entry.prompting.model_dump(exclude_none=True)
    return Prompting(**declared)


def _declared_prompting(path: Path) -> dict[str, Any]:
    directory = path if path.is_dir() else path.parent
    file = directory / PROMPTING_FILE
    if not file.is_file():
        return {}
    try:
        declared = PromptingEntry.model_validate_json(file.read_bytes())
    except OSError as error:
        raise SettingsError(
            f"{file}: cannot be read: {error.strerror}; make it readable, or remove it"
        ) from error
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        field = ".".join(map(str, problem["loc"]))
        raise SettingsError(f"{file}: {field or 'the file'}: {problem['msg']}") from None
    return declared.model_dump(exclude_none=True)


def _sentence(entry: ModelEntry, problem: str) -> str:
    """What is wrong with a model, in one line that names where it lies."""
    said = problem if entry.path in problem else f"{problem.rstrip('.')} (in {entry.path})."
    return " ".join(f"model {entry.id!r}: {said}".split())


def _load_fitting(kind: str, options: RunnerOptions) -> AnyRunner:
    """Load on a device whose memory is checked before and after."""
    from worker import memory

    memory.check_weights_fit(options)
    runner = load_runner(kind, options)
    memory.check_below_cap(options)
    return runner


def _options(entry: ModelEntry, settings: Settings, kind: str) -> RunnerOptions:
    own = options_of(entry, dict(settings), kind)
    options = RunnerOptions(
        path=entry.path,
        name=entry.id,
        tokenizer_path=entry.tokenizer_path,
        quantize=entry.quantize or settings.quantize,
        max_batch=settings.max_batch_size,
        context_window=entry.context_window or settings.context_window,
        kv_bytes=DEFAULT_KV_BYTES
        if settings.kv_memory_mib == "auto"
        else settings.kv_memory_mib * 2**20,
        page_size=settings.page_size or _PAGE_SIZE,
        prefix_cache=settings.prefix_cache,
        step_tokens=settings.step_tokens or _CPU_STEP_TOKENS,
        own=own,
    )
    return (
        options if kind in WITHOUT_FILES else replace(options, **_placement(entry, settings, own))
    )


def _placement(entry: ModelEntry, settings: Settings, own: Options) -> dict[str, Any]:
    """Where a model lies and in what: the options that need torch to be known. Raises
    SettingsError."""
    chosen = device.select_device(settings.device)
    cap = settings.max_gpu_memory_gb
    fraction = settings.kv_memory_fraction
    if fraction is not None and (settings.kv_memory_mib != "auto" or chosen.type != "cuda"):
        raise SettingsError(
            "kv_memory_fraction: expected on cuda only, and without kv_memory_mib; the device is "
            f"{chosen} and kv_memory_mib is {settings.kv_memory_mib}"
        )
    if fraction is None and settings.kv_memory_mib == "auto" and chosen.type == "cuda":
        fraction = _DEFAULT_KV_FRACTION
    dtype = device.choose_dtype(entry.dtype or settings.dtype, chosen)
    may_flash = isinstance(own, PagedOptions) and own.flash_attention
    is_flash = may_flash and chosen.type == "cuda" and dtype != "float32"
    return {
        "device": str(chosen),
        "step_tokens": settings.step_tokens
        or (_CPU_STEP_TOKENS if chosen.type == "cpu" else _GPU_STEP_TOKENS),
        "dtype": dtype,
        "page_size": settings.page_size or (_FLASH_PAGE_SIZE if is_flash else _PAGE_SIZE),
        "kv_fraction": None if fraction is None else fraction / len(model_entries(settings)),
        "max_device_bytes": None if cap is None else int(cap * 2**30),
    }


def warm_up(runner: AnyRunner) -> str:
    """Do the model's trial through a real engine, so that the first request finds everything ready;
    says what came.

    Raises the FleetError that ended it.
    """
    trial = runner.spec.trial
    said: list[Emission] = []
    engine = engine_for(runner, said.extend)
    work = engine.prepare(Take("warm-up", trial))
    if work.answer is not None:
        return f"answered a {name_of(trial)} task"
    engine.submit(work)
    while engine.has_work:
        engine.step()
    ended = said[-1].ended
    if isinstance(ended, Failed):
        raise from_event(ended)
    assert ended is not None
    result = ended.result
    if isinstance(result, Solution):
        return f"answered a blank grid with confidence {result.confidence:.3f}"
    if isinstance(result, Embedded):
        return f"embedded a text in {len(unpack(result.vector))} dimensions"
    if isinstance(result, Labelled):
        return f"labelled a text {result.labels[0].name!r}"
    if runner.spec.mechanism == "task":
        return f"did a {name_of(trial)} task"
    return f"decoded one token: {''.join(item.text for item in said)!r}"
