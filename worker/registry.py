"""Which runner serves a model directory. A dict of strings, imported on use: the echo runner needs no torch."""

import importlib
import stat
from collections.abc import Callable, Set
from pathlib import Path

import msgspec

from shared import plugins
from worker.models.errors import ModelFormatError
from worker.models.reading import converted, read_json_object, unusable
from worker.runners.base import Runner, RunnerOptions

RUNNERS = {
    "echo": "worker.runners.echo:Echo",
    "hrm-text": "worker.runners.hrm_text:load",
    "hrm-act": "worker.runners.hrm_act:load",
    "causal": "worker.runners.causal:load",
    "encoder": "worker.runners.encoder:load",
    "hrm-puzzle": "worker.runners.hrm_puzzle:load",
} | {name: entry.value for name, entry in plugins.entries("aios.runners").items()}

_EPOCH_PREFIX = "fsdp2_epoch_"
_READING_HEADS = ("ForMaskedLM", "ForPreTraining", "ForSequenceClassification")
_SPEAKING_HEADS = ("ForCausalLM", "LMHeadModel")
_READERS = ("electra", "mpnet")
_IMPLANT_FILES = ("starter_brain.json", "q_head.pt")


class _Config(msgspec.Struct):
    """What of a Hugging Face `config.json` tells which runner serves it."""

    model_type: str | None = None
    architectures: list[str] | None = None


def load_runner(kind: str, options: RunnerOptions) -> Runner:
    """Load a model; `kind` auto looks at the files. Raises ModelFormatError with a sentence for the operator."""
    name = detect(options.path) if kind == "auto" else kind
    module, _, attribute = RUNNERS[name].partition(":")
    factory: Callable[[RunnerOptions], Runner] = getattr(importlib.import_module(module), attribute)
    return factory(options)


def detect(path: str) -> str:
    """The runner for what lies at `path`; the word `echo` is the model-free one."""
    if path == "echo":
        return "echo"
    place = Path(path)
    directory = _directory(place)
    try:
        names = {entry.name for entry in directory.iterdir()}
    except OSError as error:
        raise unusable(directory, error) from error
    if "brain.json" in names:
        return "hrm-act"
    if names.intersection(_IMPLANT_FILES):
        return "causal"
    if directory.name.startswith(_EPOCH_PREFIX) or any(name.startswith(_EPOCH_PREFIX) for name in names):
        return "hrm-text"
    if _is_puzzle_checkpoint(names):
        return "hrm-puzzle"
    return _by_config(directory, names)


def _by_config(directory: Path, names: Set[str]) -> str:
    """The runner for a Hugging Face directory. Raises ModelFormatError where it is none."""
    if "config.json" not in names and "adapter_config.json" in names:
        raise ModelFormatError(
            f"{directory} holds a PEFT adapter (adapter_config.json) and no model: merge it into its base model "
            "(merge_and_unload, then save_pretrained)."
        )
    if "config.json" not in names:
        from worker.models.hf_directory import check_weights_format  # needs safetensors, which echo does not

        check_weights_format(directory)
        expected = (
            "brain.json (an AI-OS brain), q_head.pt or starter_brain.json (an AI-OS implant), "
            "config.json (a Hugging Face model), all_config.yaml with checkpoint or step_<N> (a Sapient HRM) nor "
            f"{_EPOCH_PREFIX}<number> (a raw HRM-Text checkpoint)"
        )
        raise ModelFormatError(f"What lies at {directory} is no model we know: neither {expected} is there.")
    file = directory / "config.json"
    config = converted(read_json_object(file), _Config, file)
    if config.model_type == "hrm_text":
        return "hrm-text"
    from worker.models.hf_directory import is_sentence_directory  # safetensors, which the echo runner does without

    if is_sentence_directory(directory):  # whatever the network is
        return "encoder"
    return "encoder" if _is_encoder(config) else "causal"


def _directory(place: Path) -> Path:
    """The directory of a model that is given by it or by a file in it. Raises ModelFormatError."""
    try:
        mode = place.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        raise ModelFormatError(f"There is no model at {place}: the path does not exist.") from None
    except (OSError, ValueError) as error:  # a ValueError of a NUL in the name
        raise unusable(place, error) from error
    return place if stat.S_ISDIR(mode) else place.parent


def _is_encoder(config: _Config) -> bool:
    """Whether the network was saved with a head that reads texts, or is of a family that does little else."""
    names = config.architectures or ()
    family = config.model_type or ""
    is_reader = "bert" in family or family in _READERS
    speaks = any(name.endswith(_SPEAKING_HEADS) for name in names)
    return any(name.endswith(_READING_HEADS) for name in names) or (is_reader and not speaks)


def _is_puzzle_checkpoint(names: Set[str]) -> bool:
    """Whether Sapient's HRM wrote it. HRM-Text has an all_config.yaml too, but beside a train_metadata.yaml."""
    has_weights = "checkpoint" in names or any(name.startswith("step_") for name in names)
    is_text = "train_metadata.yaml" in names
    return "all_config.yaml" in names and has_weights and not is_text
