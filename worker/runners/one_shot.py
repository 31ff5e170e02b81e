"""Networks of transformers that do a task in one call: they look, listen or read, and answer at once.

What a task does with its inputs and outputs is a row of `worker/tasks`. Tasks whose inputs have
equal shapes share a call.
"""

from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers import AutoImageProcessor, PreTrainedModel

from shared.errors import FleetError, InvalidRequest
from shared.messages import Task, TaskName, name_of
from shared.tasks.runner_options import OneShotOptions
from shared.tasks.task_table import TASKS
from worker.engine.runner import RunnerOptions
from worker.engine.task_runner import BatchProgress, Files, TaskOutput, TaskRunnerSpec
from worker.models.errors import ModelFormatError
from worker.models.hf_directory import directory_of
from worker.models.reading import reading
from worker.models.weights import NO_NETWORK, read_config
from worker.runners.accelerators import prepare
from worker.runners.allocation import tells_out_of_memory
from worker.tasks.one_shot import Item, Loaded, OneShot
from worker.tasks.vision import VISION

ONE_SHOTS: dict[TaskName, OneShot] = {**VISION}


class OneShotRunner:
    """A network that does the tasks of one name."""

    def __init__(self, loaded: Loaded, one_shot: OneShot, spec: TaskRunnerSpec) -> None:
        self.spec = spec
        self._loaded = loaded
        self._one_shot = one_shot

    def read(self, task: Task, files: Files) -> Item:
        if name_of(task) not in self.spec.tasks:
            raise InvalidRequest(f"This model does not serve {name_of(task)!r}.", field="model")
        return self._one_shot.read(task, files, self._loaded)

    def group_key(self, item: Item) -> Hashable:
        return tuple((name, value.shape) for name, value in item.inputs.items())

    @tells_out_of_memory
    @torch.inference_mode()
    def run(self, items: Sequence[Item], progress: BatchProgress) -> list[TaskOutput | FleetError]:
        model = self._loaded.model
        inputs: dict[str, Any] = {}
        for name in items[0].inputs:
            values = torch.stack([item.inputs[name] for item in items]).to(model.device)
            inputs[name] = values.to(model.dtype) if values.is_floating_point() else values
        return self._one_shot.results(items, model(**inputs), self._loaded)


def load(options: RunnerOptions) -> OneShotRunner:
    """Load a network and the processor of its inputs.

    Raise ModelFormatError for files that are missing or damaged, and for a network of no task that
    is known here.
    """
    path = directory_of(Path(options.path))
    config = read_config(path)
    task, one_shot = _task_of(config.architectures or (), path)
    model = _load_model(path, one_shot, getattr(torch, options.dtype))
    model = nn.Module.to(model, torch.device(options.device))
    with reading(path, "preprocessor_config.json may be missing: copy it too"):
        processor = AutoImageProcessor.from_pretrained(path, local_files_only=True)

    count = model.num_parameters() / 1e6
    # After the count of parameters, which needs the layers that it replaces.
    prepare(model, options)
    trial, files = one_shot.trial()
    spec = TaskRunnerSpec(
        "one-shot",
        options.name,
        found=f"{type(model).__name__}: {count:.1f} M parameters, {task}, {options.precision}",
        max_batch=options.max_batch,
        tasks=(task,),
        trial=trial,
        trial_files=files,
    )
    declared = options.declared(OneShotOptions)
    loaded = Loaded(options.name, model, processor, declared.max_pixels)
    return OneShotRunner(loaded, one_shot, spec)


def _task_of(architectures: Sequence[str], path: Path) -> tuple[TaskName, OneShot]:
    for name, one_shot in ONE_SHOTS.items():
        if any(architecture.endswith(TASKS[name].head) for architecture in architectures):
            return name, one_shot
    heads = ", ".join(TASKS[name].head for name in ONE_SHOTS)
    raise ModelFormatError(
        f"{path} is a network for no task that is done in one call: its config names "
        f"{', '.join(architectures) or 'no architecture'}, expected a name that ends in {heads}."
    )


def _load_model(path: Path, one_shot: OneShot, dtype: torch.dtype) -> PreTrainedModel:
    """Load the network. Raise ModelFormatError, which names weights that do not match."""
    auto = getattr(transformers, one_shot.auto)
    with reading(path, NO_NETWORK, kind="a network"):
        model, info = auto.from_pretrained(
            path,
            dtype=dtype,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    problems = [*info["missing_keys"], *info["unexpected_keys"]]
    if problems:
        names = ", ".join(sorted(str(name) for name in problems)[:5])
        raise ModelFormatError(
            f"The weights in {path} do not match the model of config.json: missing or left over: "
            f"{names}; copy both again."
        )
    loaded: PreTrainedModel = model.requires_grad_(False).eval()
    return loaded
