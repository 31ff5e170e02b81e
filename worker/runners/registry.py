"""The choice of a runner of `shared/tasks/runner_table.py` for a model directory.

A runner is imported when it is used: echo needs no torch.
"""

import stat
from collections.abc import Callable, Set
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import msgspec

from shared.plugins import import_target
from shared.tasks import runner_table
from shared.tasks.runner_table import AUTO, WITHOUT_FILES
from worker.engine.engines import AnyRunner
from worker.engine.runner import Runner, RunnerOptions
from worker.models.errors import ModelFormatError
from worker.models.reading import converted, read_json_object, unusable

_EPOCH_PREFIX = "fsdp2_epoch_"
_READING_HEADS = ("ForMaskedLM", "ForPreTraining", "ForSequenceClassification")
_SPEAKING_HEADS = ("ForCausalLM", "LMHeadModel")
_READERS = ("electra", "mpnet")
_IMPLANT_FILES = frozenset({"starter_brain.json", "q_head.pt"})


class _Config(msgspec.Struct):
    """The fields of a Hugging Face `config.json` that tell which runner serves it."""

    model_type: str | None = None
    architectures: list[str] | None = None


def load_runner(kind: str, options: RunnerOptions) -> AnyRunner:
    """Load a model. For `kind` auto the files decide. Raise ModelFormatError with a sentence for
    the operator."""
    name = detect(options.path) if kind == AUTO else kind
    factory: Callable[[RunnerOptions], AnyRunner] = import_target(runner_table.info_of(name).target)
    return factory(options)


def load_sequence_runner(kind: str, options: RunnerOptions) -> Runner:
    """Load a model whose sequences are stepped. Raise ModelFormatError for one whose tasks are done
    whole."""
    runner = load_runner(kind, options)
    if runner.spec.mechanism != "sequence":
        raise ModelFormatError(
            f"The tasks of {options.path} are done whole: it has no sequences to step."
        )
    return runner


def detect(path: str) -> str:
    """Return the name of the runner for the model at `path`. A name that stands there itself is
    one. Raise ModelFormatError."""
    if path in WITHOUT_FILES:
        return path
    directory = _directory(Path(path))
    try:
        names = {entry.name for entry in directory.iterdir()}
    except OSError as error:
        raise unusable(directory, error) from error
    listing = DirectoryListing(directory, names)
    for is_its, runner in DETECTORS:
        if is_its(listing):
            return runner
    raise _refusal(listing)


@dataclass(frozen=True)
class DirectoryListing:
    """A model's directory, and the names of its files."""

    directory: Path
    names: Set[str]

    @cached_property
    def config(self) -> _Config | None:
        """The config of a Hugging Face directory. Raise ModelFormatError for a damaged one."""
        file = self.directory / "config.json"
        if file.name not in self.names:
            return None
        return converted(read_json_object(file), _Config, file)


def _is_brain(listing: DirectoryListing) -> bool:
    return "brain.json" in listing.names


def _is_implant(listing: DirectoryListing) -> bool:
    return not listing.names.isdisjoint(_IMPLANT_FILES)


def _is_raw_hrm_text(listing: DirectoryListing) -> bool:
    # The directory may be that of one epoch, or hold those of several.
    names = (listing.directory.name, *listing.names)
    return any(name.startswith(_EPOCH_PREFIX) for name in names)


def _is_puzzle_checkpoint(listing: DirectoryListing) -> bool:
    """Return whether Sapient's HRM wrote it."""
    names = listing.names
    # HRM-Text has an all_config.yaml, too, beside a train_metadata.yaml.
    if "all_config.yaml" not in names or "train_metadata.yaml" in names:
        return False
    return "checkpoint" in names or any(name.startswith("step_") for name in names)


def _is_hrm_text(listing: DirectoryListing) -> bool:
    return listing.config is not None and listing.config.model_type == "hrm_text"


def _is_sentence_model(listing: DirectoryListing) -> bool:
    """Return whether sentence-transformers wrote it, whatever the network is."""
    if listing.config is None:
        return False
    # It imports safetensors, which the echo runner does without.
    from worker.models.hf_directory import is_sentence_directory

    return is_sentence_directory(listing.directory)


def _is_encoder(listing: DirectoryListing) -> bool:
    """Return whether the network has a head that reads texts, or is of a family that does little
    else."""
    if listing.config is None:
        return False
    names = listing.config.architectures or ()
    family = listing.config.model_type or ""
    if any(name.endswith(_READING_HEADS) for name in names):
        return True
    is_reader = "bert" in family or family in _READERS
    speaks = any(name.endswith(_SPEAKING_HEADS) for name in names)
    return is_reader and not speaks


def _is_hugging_face(listing: DirectoryListing) -> bool:
    return listing.config is not None


DETECTORS: tuple[tuple[Callable[[DirectoryListing], bool], str], ...] = (
    (_is_brain, "hrm-act"),
    (_is_implant, "causal"),
    (_is_raw_hrm_text, "hrm-text"),
    (_is_puzzle_checkpoint, "hrm-puzzle"),
    (_is_hrm_text, "hrm-text"),
    (_is_sentence_model, "encoder"),
    (_is_encoder, "encoder"),
    (_is_hugging_face, "causal"),
)
"""Questions to a directory, and the runner for it, in an order that matters: the first question
with the answer yes decides."""


def _refusal(listing: DirectoryListing) -> ModelFormatError:
    directory = listing.directory
    if "adapter_config.json" in listing.names:
        return ModelFormatError(
            f"{directory} holds a PEFT adapter (adapter_config.json) and no model: merge it into "
            "its base model (merge_and_unload, then save_pretrained)."
        )
    # It imports safetensors, which the echo runner does without.
    from worker.models.hf_directory import check_weights_format

    check_weights_format(directory)
    expected = (
        "brain.json (an AI-OS brain), q_head.pt or starter_brain.json (an AI-OS implant), "
        "config.json (a Hugging Face model), all_config.yaml with checkpoint or step_<N> (a "
        f"Sapient HRM) nor {_EPOCH_PREFIX}<number> (a raw HRM-Text checkpoint)"
    )
    return ModelFormatError(
        f"What lies at {directory} is no model we know: neither {expected} is there."
    )


def _directory(path: Path) -> Path:
    """Return the directory of a model, given by it or by a file in it. Raise ModelFormatError."""
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        raise ModelFormatError(f"There is no model at {path}: the path does not exist.") from None
    except (OSError, ValueError) as error:  # a ValueError of a NUL in the name
        raise unusable(path, error) from error
    return path if stat.S_ISDIR(mode) else path.parent
