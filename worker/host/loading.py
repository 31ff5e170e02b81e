"""The loading of models: settings become loaded, warmed runners.

A model that cannot be loaded becomes a sentence for the operator.
"""

import logging
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from msgspec.structs import replace as replace_struct
from pydantic import ValidationError

from shared.errors import FleetError, from_event
from shared.messages import Embedded, Failed, Labelled, ModelInfo, Prompting, Solution, name_of
from shared.settings.hub_names import commit_of, hub_name
from shared.settings.models import PromptingEntry
from shared.settings.settings import ModelEntry, Settings, SettingsError, completed, model_entries
from shared.tasks.model_options import options_of
from shared.tasks.runner_options import Options, PagedOptions
from shared.tasks.runner_table import AUTO, PROXY, WITHOUT_FILES, is_url
from shared.tasks.specs import Modality
from shared.tasks.vectors import unpack
from shared.telemetry.logging_setup import fields
from worker.engine.engines import AnyRunner, engine_for
from worker.engine.request import Emission
from worker.engine.runner import RunnerOptions
from worker.engine.take import Take
from worker.hardware import device
from worker.hardware.shapes import DEFAULT_KV_BYTES
from worker.host.facts import facts_of, modality_of, modality_of_tasks
from worker.host.fingerprint import fingerprint
from worker.models.errors import ModelAway, ModelFormatError, is_out_of_memory
from worker.models.reading import reason_of, unusable
from worker.runners.registry import detect, load_runner
from worker.text.encoding import SMALLEST_WINDOW

logger = logging.getLogger("aios.loading")

PROMPTING_FILE = "prompting.json"
"""The file in a model's directory with its options for prompts.

The caller's options, and those of the model's entry, take precedence.
"""

_CPU_STEP_TOKENS = 256
_GPU_STEP_TOKENS = 4096
"""Tokens of a step: enough for full speed of the matrix products.

More would only keep decoding sequences waiting.
"""
_PAGE_SIZE = 16
_FLASH_PAGE_SIZE = 256
"""Tokens in a page. Small pages waste least and share most, but torch's flash attention needs 256.
"""
_DEFAULT_KV_FRACTION = 0.9
"""The share of keys and values in the memory that weights leave free on a GPU.

The rest is for activations.
"""


class ModelAwayError(SettingsError):
    """Error of a model whose engine elsewhere does not answer. It may do later."""


@dataclass(frozen=True)
class LoadedModel:
    """A model in memory, of which it takes `num_bytes`.

    `again` loads it anew, from the files that are there then. `fingerprint` is that of
    `worker.host.fingerprint`. Loading took `load_s` seconds, and the trial `warm_up_s`.
    `not_obeyed` names files whose options are ignored, each with the reason.
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
    """A model that is not in memory.

    `info` and `num_bytes` hold the facts that are known before it is loaded. `again` loads it.
    `reason` says why it could not be loaded. It is "" if no load was tried.
    """

    info: ModelInfo
    again: "Callable[[], LoadedModel]"
    reason: str = ""
    num_bytes: int = 0


def load_models(settings: Settings) -> list[LoadedModel]:
    """Load and warm all models of the settings but those with `obstacles`.

    Raise SettingsError for a model that cannot be loaded, which it names, or if no model is left.
    """
    models, unloaded = load_known_models(settings, {})
    for model in unloaded:
        raise ModelAwayError(model.reason)
    return models


def load_known_models(
    settings: Settings, known: Mapping[str, ModelInfo], *, most: int | None = None
) -> tuple[list[LoadedModel], list[UnloadedModel]]:
    """Load and warm the models of the settings but those with `obstacles`, at most `most` of them.

    The default model comes first. `known` are the models that the fleet has served before. They may
    fail as long as another model loads, and a model of an engine elsewhere while that is away.
    Return the loaded and the unloaded models, none if none is of a modality that is served. Raise
    SettingsError for an unknown model that cannot be loaded, which it names, or if no model is left.
    """
    all_entries = model_entries(settings)
    default = settings.default_model or all_entries[0].id
    entries = [entry for entry in all_entries if _is_served(entry, settings, known)]
    if not entries:
        return [], []
    # Choosing a device imports torch, which models without files do not need.
    if any(entry.runner not in WITHOUT_FILES for entry in entries):
        chosen = device.select_device(settings.device)
        logger.info(
            "device chosen", extra=fields(device=str(chosen), **device.device_capabilities())
        )
    obstacle_of = obstacles(settings)
    if all(entry.id in obstacle_of for entry in entries):
        raise SettingsError(obstacle_of[entries[0].id])

    models: list[LoadedModel] = []
    unloaded: list[UnloadedModel] = []
    for entry in sorted(entries, key=lambda entry: entry.id != default):
        if entry.id in obstacle_of:
            continue
        is_default = entry.id == default
        if most is not None and len(models) >= most:
            unloaded.append(survey(entry, settings, is_default=is_default))
            continue
        load = partial(_load, entry, settings, is_default=is_default)
        try:
            models.append(load())
        except ModelAwayError as error:
            # It is loaded when its engine is there.
            away = survey(entry, settings, is_default=is_default)
            unloaded.append(replace(away, reason=str(error)))
        except SettingsError as error:
            # Damaged files of one model must not keep a worker that starts again from serving the
            # others.
            if entry.id not in known:
                raise
            unloaded.append(UnloadedModel(known[entry.id], load, str(error)))
    are_away = any(model.info.runner == PROXY for model in unloaded)
    if unloaded and not models and not are_away:
        raise SettingsError(unloaded[0].reason)
    device.give_back_memory()
    return models, unloaded


def survey(entry: ModelEntry, settings: Settings, *, is_default: bool = False) -> UnloadedModel:
    """Return a model as its files describe it, to be loaded when work comes for it.

    Raise SettingsError where the files cannot be read, and for a modality that is not served.
    """
    # An entry of the catalogue is completed by each worker's own settings.
    entry = completed(entry, settings)
    named = hub_name(entry.path)
    if named is not None:
        raise SettingsError(
            f"model {entry.id!r}: {entry.path} is no path on this worker's machine, and only models "
            f"that are named when a worker starts are fetched from the hub; `{named.download_command}` "
            "prints the path to add."
        )
    load = partial(_load, entry, settings, is_default=is_default)
    try:
        facts = facts_of(entry, settings)
    except ModelFormatError as error:
        raise SettingsError(_sentence(entry, str(error))) from error
    if not serves(settings, modality_of_tasks(facts.info.tasks)):
        served = ", ".join(settings.modalities)
        raise SettingsError(f"model {entry.id!r}: this worker serves only {served} (modalities)")
    info = replace_struct(facts.info, is_default=is_default, prompting=prompting_of(entry))
    return UnloadedModel(info, load, num_bytes=facts.num_bytes)


def serves(settings: Settings, modality: Modality) -> bool:
    """Return whether a worker with these settings serves models of a modality."""
    return not settings.modalities or modality in settings.modalities


def _is_served(entry: ModelEntry, settings: Settings, known: Mapping[str, ModelInfo]) -> bool:
    """Return whether a model of the settings is served, by its modality."""
    if not settings.modalities:
        return True
    try:
        modality = modality_of(entry, settings)
    except SettingsError:
        # The files may have been damaged since the fleet served it.
        if entry.id not in known:
            raise
        modality = modality_of_tasks(known[entry.id].tasks)
    return serves(settings, modality)


def obstacles(settings: Settings) -> dict[str, str]:
    """Return a sentence for each model that cannot be loaded because it requires a GPU.

    There are none where there is a GPU. A sentence says what to do.
    """
    names = [entry.id for entry in model_entries(settings) if entry.gpu_required]
    if not names or device.select_device(settings.device).type != "cpu":
        return {}
    remedy = (
        "start a worker where there is a GPU (CUDA or MPS), or serve it without gpu_required, "
        "with `quantize: int8` to make the most of a CPU"
    )
    return {name: f"model: {name!r} requires a GPU, and there is none; {remedy}." for name in names}


def _load(entry: ModelEntry, settings: Settings, *, is_default: bool) -> LoadedModel:
    """Load one model and try it. Raise SettingsError with a sentence for the operator."""
    begun_s = time.monotonic()
    bytes_before = device.bytes_in_use()
    runner, options = _load_checked(entry, settings)
    loaded_s = time.monotonic()
    try:
        warm_up(runner)
    except FleetError as error:
        problem = f"model {entry.id!r} loads but does not work: {error.message}"
        if is_url(entry.path):
            raise ModelAwayError(problem) from None
        raise SettingsError(
            f"{problem} Its files in {entry.path} are broken; copy them again."
        ) from None
    load_s = loaded_s - begun_s
    warm_up_s = time.monotonic() - loaded_s
    spec = runner.spec
    figures: dict[str, float] = {"load_s": round(load_s, 1), "warm_up_s": round(warm_up_s, 1)}
    if spec.weights.num_weights:
        figures["weights_mib"] = round(spec.weights.num_bytes / 2**20, 1)
        figures["saved_of_fp16"] = round(spec.weights.saving, 3)
    logger.info("model loaded", extra=fields(model=entry.id, found=spec.found, **figures))

    ignored = _not_obeyed(entry, spec.runner)
    for name, reason in ignored.items():
        logger.warning("file not obeyed", extra=fields(model=entry.id, file=name, reason=reason))
    try:
        model_fingerprint = fingerprint(spec.runner, options)
    except OSError as error:
        problem = str(unusable(error.filename or entry.path, error))
        raise SettingsError(_sentence(entry, problem)) from error

    info = ModelInfo(
        entry.id,
        spec.runner,
        found=_with_commit(spec.found, entry.path),
        context_window=spec.context_window,
        max_new_tokens=settings.max_new_tokens,
        max_batch=spec.max_batch,
        tasks=spec.tasks,
        is_default=is_default,
        fingerprint=model_fingerprint,
        device=options.device,
        dtype=options.dtype,
        prompting=prompting_of(entry),
        puzzle=spec.puzzle,
    )
    return LoadedModel(
        info,
        runner,
        again=partial(_load, entry, settings, is_default=is_default),
        num_bytes=max(0, device.bytes_in_use() - bytes_before),
        fingerprint=model_fingerprint,
        load_s=load_s,
        warm_up_s=warm_up_s,
        not_obeyed=ignored,
    )


def _with_commit(found: str, path: str) -> str:
    """Return the description of a model, with its commit if it is one of the hub."""
    commit = commit_of(path)
    if commit is None:
        return found
    return f"{found}; {commit}"


def _load_checked(entry: ModelEntry, settings: Settings) -> tuple[AnyRunner, RunnerOptions]:
    """Load the runner of one model. Raise SettingsError with a sentence for the operator."""
    try:
        kind = detect(entry.path) if entry.runner == AUTO else entry.runner
        options = runner_options(entry, settings, kind)
        runner = _load_runner(kind, options)
    except ModelAway as error:
        raise ModelAwayError(_sentence(entry, str(error))) from error
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
    # A puzzle may have few cells.
    reads_texts = spec.mechanism == "sequence" and spec.tasks != ("solve",)
    if reads_texts and spec.context_window < SMALLEST_WINDOW:
        raise SettingsError(
            f"context_window: model {entry.id!r} would have {spec.context_window} tokens; at least "
            f"{SMALLEST_WINDOW} are expected"
        )
    return runner, options


def _not_obeyed(entry: ModelEntry, runner: str) -> dict[str, str]:
    """Return the files of a Hugging Face directory whose options are ignored, with the reasons."""
    if runner not in ("causal", "encoder", "hrm-text"):
        return {}
    from worker.models.hf_directory import directory_of, not_obeyed

    try:
        return not_obeyed(directory_of(Path(entry.path)))
    except ModelFormatError as error:
        raise SettingsError(_sentence(entry, str(error))) from error


def prompting_of(entry: ModelEntry) -> Prompting:
    """Return a model's options for prompts, from its entry, or else from its own directory.

    Raise SettingsError for a damaged file.
    """
    declared: dict[str, Any] = {}
    if entry.runner not in WITHOUT_FILES:
        declared = _declared_prompting(Path(entry.path).expanduser())
    if entry.prompting is not None:
        declared |= entry.prompting.model_dump(exclude_none=True)
    return Prompting(**declared)


def _declared_prompting(path: Path) -> dict[str, Any]:
    """Return the options in the `prompting.json` of a model, none without that file."""
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
        field = ".".join(str(part) for part in problem["loc"])
        raise SettingsError(f"{file}: {field or 'the file'}: {problem['msg']}") from None
    return declared.model_dump(exclude_none=True)


def _sentence(entry: ModelEntry, problem: str) -> str:
    """Return a model's problem as one line that names the model and its path."""
    if entry.path not in problem:
        problem = f"{problem.rstrip('.')} (in {entry.path})."
    return " ".join(f"model {entry.id!r}: {problem}".split())


def _load_runner(kind: str, options: RunnerOptions) -> AnyRunner:
    """Load a runner. Check before and after that the model fits into the memory of the device."""
    if kind in WITHOUT_FILES:
        return load_runner(kind, options)
    # Imported here, because it imports torch, which runners without files do not need.
    from worker.hardware import memory

    memory.check_weights_fit(options)
    runner = load_runner(kind, options)
    memory.check_below_cap(options)
    return runner


def runner_options(entry: ModelEntry, settings: Settings, kind: str) -> RunnerOptions:
    """Return the options of the runner `kind` for a model. Raise SettingsError."""
    own_options = options_of(entry, dict(settings), kind)
    kv_bytes = DEFAULT_KV_BYTES
    if settings.kv_memory_mib != "auto":
        kv_bytes = settings.kv_memory_mib * 2**20
    options = RunnerOptions(
        path=entry.path,
        name=entry.id,
        tokenizer_path=entry.tokenizer_path,
        quantize=entry.quantize or settings.quantize,
        max_batch=settings.max_batch_size,
        context_window=entry.context_window or settings.context_window,
        kv_bytes=kv_bytes,
        page_size=settings.page_size or _PAGE_SIZE,
        prefix_cache=settings.prefix_cache,
        step_tokens=settings.step_tokens or _CPU_STEP_TOKENS,
        own=own_options,
    )
    if kind == PROXY:
        # It computes on no device of this machine.
        return replace(options, device="", dtype="")
    if kind in WITHOUT_FILES:
        return options
    return replace(options, **_placement(entry, settings, own_options))


def _placement(entry: ModelEntry, settings: Settings, own_options: Options) -> dict[str, Any]:
    """Return the options that depend on the device and the dtype, which torch has to be asked for.

    Raise SettingsError for a device that is missing, or a `kv_memory_fraction` in the wrong place.
    """
    chosen = device.select_device(settings.device)
    fraction = settings.kv_memory_fraction
    if fraction is not None and (settings.kv_memory_mib != "auto" or chosen.type != "cuda"):
        raise SettingsError(
            "kv_memory_fraction: expected on cuda only, and without kv_memory_mib; the device is "
            f"{chosen} and kv_memory_mib is {settings.kv_memory_mib}"
        )
    if fraction is None and settings.kv_memory_mib == "auto" and chosen.type == "cuda":
        fraction = _DEFAULT_KV_FRACTION
    if fraction is not None:
        # The models of a worker share the memory evenly.
        fraction /= len(model_entries(settings))

    dtype = device.choose_dtype(entry.dtype or settings.dtype, chosen)
    step_tokens = _CPU_STEP_TOKENS if chosen.type == "cpu" else _GPU_STEP_TOKENS
    may_flash = isinstance(own_options, PagedOptions) and own_options.flash_attention
    is_flash = may_flash and chosen.type == "cuda" and dtype != "float32"
    page_size = _FLASH_PAGE_SIZE if is_flash else _PAGE_SIZE
    max_device_bytes = None
    if settings.max_gpu_memory_gb is not None:
        max_device_bytes = int(settings.max_gpu_memory_gb * 2**30)
    return {
        "device": str(chosen),
        "step_tokens": settings.step_tokens or step_tokens,
        "dtype": dtype,
        "page_size": settings.page_size or page_size,
        "kv_fraction": fraction,
        "max_device_bytes": max_device_bytes,
    }


def warm_up(runner: AnyRunner) -> str:
    """Run the model's trial task in a real engine, so that the first request meets no first run.

    Return a sentence on its result. Raise the FleetError that ended it.
    """
    trial = runner.spec.trial
    emissions: list[Emission] = []
    with closing(engine_for(runner, emissions.extend)) as engine:
        work = engine.prepare(Take("warm-up", trial))
        if work.answer is not None:
            return f"answered a {name_of(trial)} task"
        engine.submit(work)
        while engine.has_work:
            engine.step()
    ended = emissions[-1].ended
    if isinstance(ended, Failed):
        raise from_event(ended)
    assert ended is not None
    result = ended.result
    if isinstance(result, Solution):
        return f"answered a blank grid with confidence {result.confidence:.3f}"
    if isinstance(result, Embedded):
        return f"embedded a text in {len(unpack(result.vector))} dimensions"
    if isinstance(result, Labelled):
        return f"labelled its trial {result.labels[0].name!r}"
    if runner.spec.mechanism == "task":
        return f"did a {name_of(trial)} task"
    text = "".join(emission.text for emission in emissions)
    return f"decoded one token: {text!r}"
