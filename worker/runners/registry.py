"""The choice of a runner of `shared/tasks/runner_table.py` for a model directory.

A runner is imported only when it is used, because echo must run without torch.
"""

import stat
from collections.abc import Callable, Set
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePath
from typing import Any

import msgspec

from shared.plugins import import_target
from shared.tasks import runner_table
from shared.tasks.runner_table import AUTO, PROXY, WITHOUT_FILES, is_url
from shared.tasks.task_table import TASKS
from worker.engine.engines import AnyRunner
from worker.engine.runner import Runner, RunnerOptions
from worker.models.errors import ModelFormatError
from worker.models.reading import converted, read_json_object, unusable

_EPOCH_PREFIX = "fsdp2_epoch_"
_READING_HEADS = ("ForMaskedLM", "ForPreTraining", "ForSequenceClassification")
_ONE_SHOT_HEADS = tuple(head for info in TASKS.values() for head in info.heads)
_CAUSAL_HEADS = ("ForCausalLM", "LMHeadModel")
_READING_FAMILIES = ("electra", "mpnet")
_IMPLANT_FILES = frozenset({"starter_brain.json", "q_head.pt"})


class _Config(msgspec.Struct):
    """The fields of a Hugging Face `config.json` that tell which runner serves it."""

    model_type: str | None = None
    architectures: list[str] | None = None
    vision_config: dict[str, Any] | None = None
    audio_config: dict[str, Any] | None = None
    image_token_id: int | None = None
    image_token_index: int | None = None
    audio_token_id: int | None = None
    audio_token_index: int | None = None


def load_runner(kind: str, options: RunnerOptions) -> AnyRunner:
    """Load a model with the runner `kind`. For `auto` the files decide.

    Raise ModelFormatError with a sentence for the operator.
    """
    name = kind
    if kind == AUTO:
        name = detect(options.path)
    factory: Callable[[RunnerOptions], AnyRunner] = import_target(runner_table.info_of(name).target)
    return factory(options)


def load_sequence_runner(kind: str, options: RunnerOptions) -> Runner:
    """Load a model whose sequences are stepped.

    Raise ModelFormatError for a model whose tasks are done whole.
    """
    runner = load_runner(kind, options)
    if runner.spec.mechanism != "sequence":
        raise ModelFormatError(
            f"The tasks of {options.path} are done whole: it has no sequences to step."
        )
    return runner


def detect(path: str) -> str:
    """Return the name of the runner for the model at `path`.

    In place of a path, the name of a runner without files may be given, or the URL of an engine
    elsewhere. Raise ModelFormatError for a path that is no model.
    """
    if path in WITHOUT_FILES:
        return path
    if is_url(path):
        return PROXY
    directory = _directory(Path(path))
    try:
        names = {entry.name for entry in directory.iterdir()}
    except OSError as error:
        raise unusable(directory, error) from error
    listing = DirectoryListing(directory, names)
    for matches, runner in DETECTORS:
        if matches(listing):
            return runner
    raise _refusal(listing)


@dataclass(frozen=True)
class DirectoryListing:
    """A model's directory, and the names of its files."""

    directory: Path
    names: Set[str]

    @cached_property
    def config(self) -> _Config | None:
        """Return the config of a Hugging Face directory, None for any other directory.

        Raise ModelFormatError for a damaged config.
        """
        file = self.directory / "config.json"
        if file.name not in self.names:
            return None
        return converted(read_json_object(file), _Config, file)


def _is_pipeline(listing: DirectoryListing) -> bool:
    """Return whether diffusers wrote the directory."""
    return "model_index.json" in listing.names


def _is_brain(listing: DirectoryListing) -> bool:
    return "brain.json" in listing.names


def _is_implant(listing: DirectoryListing) -> bool:
    return not listing.names.isdisjoint(_IMPLANT_FILES)


def _is_raw_hrm_text(listing: DirectoryListing) -> bool:
    # The directory may be that of one epoch, or hold those of several.
    names = (listing.directory.name, *listing.names)
    return any(name.startswith(_EPOCH_PREFIX) for name in names)


def _is_puzzle_checkpoint(listing: DirectoryListing) -> bool:
    """Return whether a trainer of recurrent puzzle networks wrote the directory."""
    names = listing.names
    if any(name.endswith(".ckpt") for name in names) and "config.json" not in names:
        return True
    if "manifest.yaml" in names:
        return any(name.endswith(".pt") for name in names)
    # HRM-Text has an all_config.yaml, too, beside a train_metadata.yaml.
    if "all_config.yaml" not in names or "train_metadata.yaml" in names:
        return False
    if "checkpoint" in names:
        return True
    return any(name.startswith("step_") for name in names)


def _is_hrm_text(listing: DirectoryListing) -> bool:
    return listing.config is not None and listing.config.model_type == "hrm_text"


def _is_sentence_model(listing: DirectoryListing) -> bool:
    """Return whether sentence-transformers wrote the directory, whatever the network is."""
    if listing.config is None:
        return False
    # Imported here, because it imports safetensors, which the echo runner must run without.
    from worker.models.hf_directory import is_sentence_directory

    return is_sentence_directory(listing.directory)


def _is_encoder(listing: DirectoryListing) -> bool:
    """Return whether the network has an encoder's head, or is of an encoder family.

    A network of such a family that has the head of a causal LM is no encoder.
    """
    if listing.config is None:
        return False
    names = listing.config.architectures or ()
    family = listing.config.model_type or ""
    if any(name.endswith(_READING_HEADS) for name in names):
        return True
    if "bert" not in family and family not in _READING_FAMILIES:
        return False
    return not any(name.endswith(_CAUSAL_HEADS) for name in names)


def _is_one_shot(listing: DirectoryListing) -> bool:
    """Return whether the network does a task in one call, without generating."""
    if listing.config is None:
        return False
    names = listing.config.architectures or ()
    return any(name.endswith(_ONE_SHOT_HEADS) for name in names)


def _is_onnx_model(listing: DirectoryListing) -> bool:
    """Return whether there is one ONNX file, and one YAML that declares what it does."""
    suffixes = [PurePath(name).suffix for name in listing.names]
    num_yaml = suffixes.count(".yaml") + suffixes.count(".yml")
    return ".onnx" in suffixes and num_yaml == 1 and ".safetensors" not in suffixes


def _is_multimodal(listing: DirectoryListing) -> bool:
    """Return whether a language model has tokens that stand for pictures or sounds."""
    config = listing.config
    if config is None:
        return False
    sees = config.image_token_id is not None or config.image_token_index is not None
    hears = config.audio_token_id is not None or config.audio_token_index is not None
    return (sees and config.vision_config is not None) or (
        hears and config.audio_config is not None
    )


def _is_hugging_face(listing: DirectoryListing) -> bool:
    return listing.config is not None


DETECTORS: tuple[tuple[Callable[[DirectoryListing], bool], str], ...] = (
    (_is_pipeline, "diffusion"),
    (_is_brain, "hrm-act"),
    (_is_implant, "causal"),
    (_is_raw_hrm_text, "hrm-text"),
    (_is_puzzle_checkpoint, "hrm-puzzle"),
    (_is_hrm_text, "hrm-text"),
    (_is_onnx_model, "onnx"),
    (_is_sentence_model, "encoder"),
    (_is_one_shot, "one-shot"),
    (_is_multimodal, "multimodal"),
    (_is_encoder, "encoder"),
    (_is_hugging_face, "causal"),
)
"""Checks of a directory, each with the runner for it. The order matters: the first match decides.

Special kinds come before general ones.
"""


def _refusal(listing: DirectoryListing) -> ModelFormatError:
    """Return the error of a directory that no detector matches."""
    directory = listing.directory
    if "adapter_config.json" in listing.names:
        return ModelFormatError(
            f"{directory} holds a PEFT adapter (adapter_config.json) and no model: merge it into "
            "its base model (merge_and_unload, then save_pretrained)."
        )
    # Imported here, because it imports safetensors, which the echo runner must run without.
    from worker.models.hf_directory import check_weights_format

    if any(name.endswith(".onnx") for name in listing.names):
        raise ModelFormatError(
            f"{directory} has an ONNX file: it needs one YAML beside it that declares its task, "
            "inputs and outputs (docs/onnx.md)."
        )
    check_weights_format(directory)
    expected = (
        "brain.json (an AI-OS brain), q_head.pt or starter_brain.json (an AI-OS implant), "
        "config.json (a Hugging Face model), model_index.json (a pipeline of diffusers), "
        "all_config.yaml with checkpoint or step_<N> (an HRM, TRM or URM), one .onnx beside one .yaml (an "
        f"ONNX model) nor {_EPOCH_PREFIX}<number> (a raw HRM-Text checkpoint)"
    )
    return ModelFormatError(
        f"What lies at {directory} is no model we know: neither {expected} is there."
    )


def _directory(path: Path) -> Path:
    """Return the directory of a model, which `path` or a file at `path` names.

    Raise ModelFormatError where there is none.
    """
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        raise ModelFormatError(f"There is no model at {path}: the path does not exist.") from None
    except (OSError, ValueError) as error:  # ValueError is raised for a NUL in the name
        raise unusable(path, error) from error
    if stat.S_ISDIR(mode):
        return path
    return path.parent
