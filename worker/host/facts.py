"""The facts of a model that are known before it is loaded: kind, size, context window and tasks.

They are read from the model's files, without torch. Loading tells the rest. Where the two differ,
loading is right.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shared.messages import ModelInfo
from shared.settings.settings import ModelEntry, Settings, SettingsError
from shared.tasks.runner_table import AUTO, info_of
from shared.tasks.specs import Modality, TaskName
from shared.tasks.task_table import TASKS, task_of
from worker.hardware.shapes import DEFAULT_KV_BYTES, kind_of_weights
from worker.models.diffusion_index import PIPELINES, class_of_index
from worker.models.errors import ModelFormatError
from worker.models.model_files import weight_bytes
from worker.models.reading import read_json_object
from worker.onnx.declaration import DECLARATIONS, only_file, read_declaration
from worker.runners.registry import detect

_CLASSIFIER = "ForSequenceClassification"
_WINDOWS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_len")


@dataclass(frozen=True)
class Facts:
    """A model as its files describe it.

    `num_bytes` is the memory of the weights, and of keys and values if the runner keeps them.
    """

    info: ModelInfo
    num_bytes: int


def facts_of(entry: ModelEntry, settings: Settings) -> Facts:
    """Return the facts of a model. Raise ModelFormatError where its path is no model."""
    kind = entry.runner
    if kind == AUTO:
        kind = detect(entry.path)
    window = entry.context_window or settings.context_window
    runner = info_of(kind)
    tasks = runner.tasks
    num_bytes = 0
    if runner.has_files:
        path = Path(entry.path).expanduser()
        config = _config(path)
        window = min([window, *_windows(config)])
        architectures = config.get("architectures") or ()
        if kind == "encoder" and any(str(name).endswith(_CLASSIFIER) for name in architectures):
            tasks = ("classify", *tasks)
            if len(config.get("id2label") or ()) == 1:
                tasks = ("text-ranking", *tasks)
        if kind == "one-shot":
            tasks = _one_shot_tasks(entry, architectures) or tasks
        directory = path if path.is_dir() else path.parent
        if kind == "diffusion":
            tasks = tuple(PIPELINES[class_of_index(directory)])
        if kind == "onnx":
            tasks = (read_declaration(only_file(directory, DECLARATIONS)).task,)
        num_bytes = weight_bytes(path, kind_of_weights(entry))
        if runner.keeps_kv:
            kv_bytes = DEFAULT_KV_BYTES
            if settings.kv_memory_mib != "auto":
                kv_bytes = settings.kv_memory_mib * 2**20
            num_bytes += kv_bytes

    info = ModelInfo(
        entry.id,
        kind,
        found=f"{kind}, not loaded yet",
        context_window=window,
        max_new_tokens=settings.max_new_tokens,
        max_batch=settings.max_batch_size,
        tasks=tasks,
    )
    return Facts(info, num_bytes)


def _one_shot_tasks(entry: ModelEntry, architectures: Sequence[str]) -> tuple[TaskName, ...]:
    """Return the only task of a network, () where its entry and its architecture name none."""
    named = entry.options.get("task")
    task = str(named) if named is not None else task_of(architectures)
    return () if task is None else (task,)


def modality_of(entry: ModelEntry, settings: Settings) -> Modality:
    """Return the modality of a model, by its files.

    Raise SettingsError where its path is no model.
    """
    try:
        facts = facts_of(entry, settings)
    except ModelFormatError as error:
        raise SettingsError(f"model {entry.id!r}: {error}") from error
    return modality_of_tasks(facts.info.tasks)


def modality_of_tasks(tasks: Sequence[TaskName]) -> Modality:
    """Return the modality of the model that does these tasks, which is that of the first one."""
    # The tasks of a plugin's models are known only when they are loaded, and an entry may name one
    # that there is not, which loading will refuse.
    if not tasks or tasks[0] not in TASKS:
        return "text"
    return TASKS[tasks[0]].modality


def _config(path: Path) -> dict[str, Any]:
    """Return the config of a Hugging Face directory or of a brain, {} where there is none."""
    directory = path if path.is_dir() else path.parent
    for name in ("config.json", "brain.json"):
        file = directory / name
        if file.is_file():
            return read_json_object(file)
    return {}


def _windows(config: dict[str, Any]) -> list[int]:
    """Return the lengths of the longest sequences that a config names.

    The config of a larger model's text part is read, too.
    """
    windows: list[int] = []
    for part in (config, config.get("text_config") or {}, config.get("config") or {}):
        if not isinstance(part, dict):
            continue
        for name in _WINDOWS:
            value = part.get(name)
            if isinstance(value, int) and value > 0:
                windows.append(value)
    return windows
