"""Networks of transformers that do a task in one call: they look, listen or read, and answer at once.

What a task does with its inputs and outputs is a row of `worker/tasks`. Tasks with the same options
whose inputs have equal shapes share a call.
"""

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import torch
import transformers
from torch import Tensor, nn
from transformers import (
    AutoFeatureExtractor,
    AutoImageProcessor,
    PretrainedConfig,
    PreTrainedModel,
    pipeline,
)
from transformers.pipelines.base import ChunkPipeline, pad_collate_fn
from transformers.pipelines.pt_utils import PipelineIterator, PipelinePackIterator
from transformers.utils.generic import ModelOutput

from shared.errors import FleetError, InvalidRequest
from shared.messages import Task, TaskName, name_of
from shared.tasks.runner_options import OneShotOptions
from shared.tasks.task_table import TASKS, task_of
from worker.engine.runner import RunnerOptions
from worker.engine.sampler import broken
from worker.engine.task_runner import BatchProgress, Files, TaskOutput, TaskRunnerSpec
from worker.models.errors import ModelFormatError
from worker.models.hf_directory import directory_of
from worker.models.reading import reading
from worker.models.weight_size import weight_size
from worker.models.weights import NO_NETWORK, check_all_loaded, load_tokenizer, read_config
from worker.runners.accelerators import prepare
from worker.runners.allocation import tells_out_of_memory
from worker.runners.layer_heartbeats import beat_by_layer
from worker.tasks.one_shot import Loaded, OneShot, Part
from worker.tasks.series import SERIES
from worker.tasks.sound import SOUND
from worker.tasks.vision import VISION
from worker.tasks.watch import Watch
from worker.tasks.words import WORDS
from worker.tasks.writing import WRITING

ONE_SHOTS: dict[TaskName, OneShot] = {**WORDS, **WRITING, **VISION, **SOUND, **SERIES}
_PROCESSOR = "preprocessor_config.json may be missing or damaged: copy it again"


@dataclass(frozen=True)
class Item:
    """A task that has been read: the pipeline's inputs, in one or more chunks, and its parameters.

    Items with the same `group` can be computed together.
    """

    task: Any
    seconds: float
    chunks: list[dict[str, Any]]
    forward: Mapping[str, Any]
    postprocess: Mapping[str, Any]
    group: Hashable


class OneShotRunner:
    """A network that does the tasks of one name."""

    def __init__(self, loaded: Loaded, one_shot: OneShot, spec: TaskRunnerSpec) -> None:
        self.spec = spec
        self._loaded = loaded
        self._one_shot = one_shot
        pipe = loaded.pipe
        self._collate: Callable[[Sequence[Any]], Any] = _collate_of(pipe)

    def read(self, task: Task, files: Files) -> Item:
        if name_of(task) not in self.spec.tasks:
            raise InvalidRequest(f"This model does not serve {name_of(task)!r}.", field="model")
        decoded = self._one_shot.read(task, files, self._loaded)
        pipe = self._loaded.pipe
        options = self._one_shot.options(task, decoded, self._loaded)
        preprocess, forward, postprocess = pipe._sanitize_parameters(**options)
        # Here, not in `run`: many inputs are read at once, while the network computes others.
        try:
            read = pipe.preprocess(decoded.value, **preprocess)
            chunks = list(read) if _is_chunked(pipe) else [read]
        except Exception as error:
            # The trial has shown that inputs can be read: it is this one that cannot.
            raise InvalidRequest(f"This model cannot read the input: {error}") from error
        group: Hashable = (repr(sorted(options.items())), self._shapes_of(chunks[0]))
        if self._one_shot.alone(task, self._loaded):
            group = object()
        return Item(task, decoded.seconds, chunks, forward, postprocess, group)

    def _shapes_of(self, chunk: dict[str, Any]) -> tuple[tuple[str, torch.Size], ...]:
        """Return the shapes that chunks must have in common to be computed together."""
        pipe = self._loaded.pipe
        # Texts of any lengths are padded, pictures and sounds are not.
        if pipe.image_processor is None and pipe.feature_extractor is None:
            return ()
        shapes = []
        for name, value in chunk.items():
            if isinstance(value, Tensor):
                shapes.append((name, value.shape))
        return tuple(shapes)

    def group_key(self, item: Item) -> Hashable:
        return item.group

    @tells_out_of_memory
    def run(self, items: Sequence[Item], progress: BatchProgress) -> list[TaskOutput | FleetError]:
        pipe = self._loaded.pipe

        chunks: list[Any] = []
        owners: list[int] = []
        for index, item in enumerate(items):
            # Copies, because a pipeline takes its own parts out of what it is given.
            chunks.extend(dict(chunk) for chunk in item.chunks)
            owners += [index] * len(item.chunks)
        batches = chunks
        batch_size = None
        size = min(self.spec.max_batch, len(chunks))
        starts = iter(range(0, len(chunks), size))

        def forward(inputs: Any, **params: Any) -> Any:
            progress.heartbeat()
            start = next(starts)
            if hasattr(pipe, "watch"):
                pipe.watch = Watch(progress, owners[start : start + size])
            return _without_empty(pipe.forward(inputs, **params))

        if size > 1:
            batch_size = size
            batches = []
            for start in range(0, len(chunks), size):
                batches.append(self._collate(chunks[start : start + size]))

        # It divides what the network returns for a batch among the items again.
        divide: Any = PipelineIterator
        if _is_chunked(pipe):
            divide = PipelinePackIterator
        found = divide(batches, forward, items[0].forward, loader_batch_size=batch_size)
        outputs: list[TaskOutput | FleetError] = []
        for item, network_output in zip(items, found, strict=True):
            result = pipe.postprocess(network_output, **item.postprocess)
            output = self._one_shot.output(item.task, result, item.seconds)
            outputs.append(output if _is_finite(output.result) else broken(self.spec.name))
        return outputs


def _collate_of(pipe: Any) -> Callable[[Sequence[Any]], Any]:
    """Return the function that makes the inputs of a batch from those of several items."""
    if hasattr(pipe, "collate"):
        collate: Callable[[Sequence[Any]], Any] = pipe.collate
        return collate
    processor = pipe.feature_extractor or pipe.image_processor
    return pad_collate_fn(pipe.tokenizer, processor)  # type: ignore[no-any-return]


def _is_chunked(pipe: Any) -> bool:
    return isinstance(pipe, ChunkPipeline) or getattr(pipe, "is_chunked", False)


def _is_finite(value: Any) -> bool:
    """Return whether all numbers in a result are finite."""
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, tuple):
        return all(map(_is_finite, value))
    if isinstance(value, msgspec.Struct):
        return all(_is_finite(getattr(value, name)) for name in value.__struct_fields__)
    return True


def _without_empty(output: Any) -> Any:
    """Return a network's output without empty tuples, which cannot be divided among items."""
    if not isinstance(output, ModelOutput):
        return output
    kept = {name: value for name, value in output.items() if not _is_empty(value)}
    return type(output)(kept)


def _is_empty(value: Any) -> bool:
    return isinstance(value, tuple) and not value


def load(options: RunnerOptions) -> OneShotRunner:
    """Load a network and the processors of its inputs.

    Raise ModelFormatError for files that are missing or damaged, and for a network of no task that
    is known here.
    """
    path = directory_of(Path(options.path))
    config = read_config(path)
    declared = options.declared(OneShotOptions)
    task = declared.task or _task_of(config, path)
    one_shot = ONE_SHOTS[task]
    model = _load_model(path, config, getattr(torch, options.dtype))
    model = nn.Module.to(model, torch.device(options.device))
    beat_by_layer(model)
    parts = {part: _PARTS[part](path, options) for part in one_shot.parts}

    count = model.num_parameters() / 1e6
    # After the count of parameters, which needs the layers that it replaces.
    prepare(model, options)
    make: Callable[..., Any] = one_shot.pipeline or pipeline
    pipe = make(task=task, model=model, device=model.device, **parts)
    loaded = Loaded(pipe, declared.max_pixels, declared.max_seconds, declared.max_frames)
    trial = one_shot.trial(loaded) if callable(one_shot.trial) else one_shot.trial
    spec = TaskRunnerSpec(
        "one-shot",
        options.name,
        found=f"{type(model).__name__}: {count:.1f} M parameters, {task}, {options.precision}",
        max_batch=options.max_batch,
        tasks=(task,),
        trial=trial[0],
        trial_files=trial[1],
        weights=weight_size(model),
    )
    return OneShotRunner(loaded, one_shot, spec)


def _task_of(config: PretrainedConfig, path: Path) -> TaskName:
    """Return the task of a network, by the end of its architecture's name."""
    architectures = config.architectures or ()
    task = task_of(architectures)
    if task is not None:
        return task
    heads = ", ".join(head for name in ONE_SHOTS for head in TASKS[name].heads)
    raise ModelFormatError(
        f"{path} is a network for no task that is done in one call: its config names "
        f"{', '.join(architectures) or 'no architecture'}, expected a name that ends in {heads}; "
        "or name the task by --option task=..."
    )


def _load_model(path: Path, config: PretrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    """Load the network. Raise ModelFormatError, which names weights that do not match."""
    [architecture, *_] = config.architectures or [""]
    kind: Any = getattr(transformers, architecture, None)
    is_network = isinstance(kind, type) and issubclass(kind, PreTrainedModel)
    if not is_network:
        raise ModelFormatError(
            f"{path}: config.json names the architecture {architecture!r}, which this version of "
            "transformers does not have."
        )
    with reading(path, NO_NETWORK, kind="a network"):
        model, info = kind.from_pretrained(
            path,
            dtype=dtype,
            local_files_only=True,
            output_loading_info=True,
        )
    check_all_loaded(info, path)
    loaded: PreTrainedModel = model.requires_grad_(False).eval()
    return loaded


def _tokenizer(path: Path, options: RunnerOptions) -> Any:
    return load_tokenizer(Path(options.tokenizer_path or path))


def _image_processor(path: Path, options: RunnerOptions) -> Any:
    with reading(path, _PROCESSOR):
        return AutoImageProcessor.from_pretrained(path, local_files_only=True)


def _feature_extractor(path: Path, options: RunnerOptions) -> Any:
    with reading(path, _PROCESSOR):
        return AutoFeatureExtractor.from_pretrained(path, local_files_only=True)


_PARTS: dict[Part, Callable[[Path, RunnerOptions], Any]] = {
    "tokenizer": _tokenizer,
    "image_processor": _image_processor,
    "feature_extractor": _feature_extractor,
}
