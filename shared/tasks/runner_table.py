"""The table of runners, which serve models, and of the options that each declares.

A new runner is a file and a row here. A package adds rows by the entry points `aios.runners` and,
for options, `aios.runner_options` (docs/plugins.md).
"""

import re
from dataclasses import dataclass
from typing import get_args

from shared import plugins
from shared.plugins import PluginError
from shared.tasks.runner_options import (
    DiffusionOptions,
    HrmActOptions,
    HrmTextOptions,
    MediaOptions,
    MultimodalOptions,
    OneShotOptions,
    OneShotTask,
    Options,
    PagedOptions,
    ProxyOptions,
    PuzzleOptions,
    TextOptions,
)
from shared.tasks.specs import TaskName

AUTO = "auto"
"""The name that stands for the runner that a model's files ask for."""
PROXY = "proxy"
"""The runner of models that an engine elsewhere serves, at a URL in place of a path."""
_URL = re.compile(r"https?://", re.IGNORECASE)


@dataclass(frozen=True)
class RunnerInfo:
    """One runner. `target` names the function (module:attribute) that loads a model.

    Workers import the function when a model needs it. A runner without `has_files` needs no model:
    its name stands in place of a path, or a URL where the model is served elsewhere.

    `tasks` and `keeps_kv` (keys and values) hold for its models before one is loaded; a loaded
    model declares its own. Some of its models do `tasks_of_some` as well. Nothing is known
    beforehand about the models of a plugin's runner.
    """

    target: str
    options: type[Options] = Options
    tasks: tuple[TaskName, ...] = ()
    tasks_of_some: tuple[TaskName, ...] = ()
    keeps_kv: bool = False
    has_files: bool = True


TEXT_TASKS: tuple[TaskName, ...] = (
    "generate",
    "score",
    "read",
    "tokenize",
    "detokenize",
    "embed",
)
"""The tasks of every language model."""

ONNX_TASKS: tuple[TaskName, ...] = (
    "image-classification",
    "object-detection",
    "image-segmentation",
    "classify",
    "embed",
    "audio-classification",
    "automatic-speech-recognition",
    "voice-activity-detection",
    "optical-character-recognition",
)
"""The tasks that the YAML of an ONNX model may declare."""

RUNNERS = {
    "hrm-text": RunnerInfo(
        "worker.runners.hrm_text:load",
        HrmTextOptions,
        tasks=TEXT_TASKS,
        keeps_kv=True,
    ),
    "hrm-act": RunnerInfo("worker.runners.hrm_act:load", HrmActOptions, tasks=TEXT_TASKS),
    "hrm-puzzle": RunnerInfo("worker.runners.hrm_puzzle:load", PuzzleOptions, tasks=("solve",)),
    "causal": RunnerInfo(
        "worker.runners.causal:load",
        PagedOptions,
        tasks=TEXT_TASKS,
        keeps_kv=True,
    ),
    "multimodal": RunnerInfo(
        "worker.runners.multimodal:load",
        MultimodalOptions,
        tasks=TEXT_TASKS,
        keeps_kv=True,
    ),
    "encoder": RunnerInfo(
        "worker.runners.encoder:load",
        TextOptions,
        tasks=("embed", "tokenize", "detokenize"),
        tasks_of_some=("classify", "text-ranking"),
    ),
    "one-shot": RunnerInfo(
        "worker.runners.one_shot:load",
        OneShotOptions,
        tasks=get_args(OneShotTask),
    ),
    "onnx": RunnerInfo(
        "worker.runners.onnx_model:load",
        MediaOptions,
        tasks=ONNX_TASKS,
    ),
    "diffusion": RunnerInfo(
        "worker.runners.diffusion:load",
        DiffusionOptions,
        tasks=(
            "text-to-image",
            "image-to-image",
            "text-to-video",
            "image-to-video",
            "text-to-3d",
            "image-to-3d",
        ),
    ),
    "echo": RunnerInfo(
        "worker.runners.echo:Echo",
        tasks=(*TEXT_TASKS, "classify"),
        has_files=False,
    ),
    "echo-task": RunnerInfo(
        "worker.runners.echo_task:EchoTaskRunner",
        tasks=("echo_task",),
        has_files=False,
    ),
    PROXY: RunnerInfo(
        "worker.runners.proxy:load",
        ProxyOptions,
        tasks=("generate",),
        tasks_of_some=("score", "read"),
        has_files=False,
    ),
}

WITHOUT_FILES = tuple(name for name, info in RUNNERS.items() if not info.has_files)
"""The runners that need no model."""


def is_url(path: str) -> bool:
    """Return whether a model's path is the URL of an engine elsewhere."""
    return _URL.match(path) is not None


def names() -> tuple[str, ...]:
    """Return the names of all runners, those of plugins behind our own."""
    return (*RUNNERS, *plugins.entries("aios.runners"))


def info_of(name: str) -> RunnerInfo:
    """Return the row of a runner.

    Raise PluginError for a plugin whose options are no subclass of `Options`.
    """
    if name in RUNNERS:
        return RUNNERS[name]
    entry = plugins.entries("aios.runners")[name]
    options = plugins.load("aios.runner_options").get(name, Options)
    if not (isinstance(options, type) and issubclass(options, Options)):
        expected = "a subclass of shared.tasks.runner_options.Options"
        raise PluginError(f"aios.runner_options: {name!r}: expected {expected}, got {options!r}.")
    return RunnerInfo(entry.value, options)


def known_options() -> set[str]:
    """Return the names of all options that some runner declares."""
    options: set[str] = set()
    for name in names():
        options |= info_of(name).options.model_fields.keys()
    return options
