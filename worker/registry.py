"""Which runner serves a model directory. A dict of strings, imported on use: the echo runner needs no torch."""

import importlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from worker.models.errors import ModelFormatError
from worker.runners.base import Runner, RunnerOptions

RUNNERS = {
    "echo": "worker.runners.echo:Echo",
    "hrm-text": "worker.runners.hrm_text:load",
    "hrm-act": "worker.runners.hrm_act:load",
    "causal": "worker.runners.causal:load",
    "encoder": "worker.runners.encoder:load",
    "hrm-puzzle": "worker.runners.hrm_puzzle:load",
}

_EPOCH_PREFIX = "fsdp2_epoch_"
_READING_HEADS = ("ForMaskedLM", "ForPreTraining", "ForSequenceClassification")
_SPEAKING_HEADS = ("ForCausalLM", "LMHeadModel")
_READERS = ("electra", "mpnet")
_IMPLANT_FILES = ("starter_brain.json", "q_head.pt")


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
    if not place.exists():
        raise ModelFormatError(f"There is no model at {path}: the path does not exist.")
    directory = place if place.is_dir() else place.parent
    if (directory / "brain.json").is_file():
        return "hrm-act"
    if any((directory / name).is_file() for name in _IMPLANT_FILES):
        return "causal"
    if directory.name.startswith(_EPOCH_PREFIX) or any(directory.glob(f"{_EPOCH_PREFIX}*")):
        return "hrm-text"
    if _is_puzzle_checkpoint(directory):
        return "hrm-puzzle"
    if not (directory / "config.json").is_file():
        expected = (
            "brain.json (an AI-OS brain), q_head.pt or starter_brain.json (an AI-OS implant), "
            "config.json (a Hugging Face model), all_config.yaml with checkpoint or step_<N> (a Sapient HRM) nor "
            f"{_EPOCH_PREFIX}<number> (a raw HRM-Text checkpoint)"
        )
        raise ModelFormatError(f"What lies at {path} is no model we know: neither {expected} is there.")
    config = json.loads((directory / "config.json").read_text())
    if config.get("model_type") == "hrm_text":
        return "hrm-text"
    return "encoder" if _is_encoder(config) else "causal"


def _is_encoder(config: Mapping[str, Any]) -> bool:
    """Whether the network was saved with a head that reads texts, or is of a family that does little else."""
    names, family = config.get("architectures") or (), str(config.get("model_type"))
    is_reader = "bert" in family or family in _READERS
    speaks = any(name.endswith(_SPEAKING_HEADS) for name in names)
    return any(name.endswith(_READING_HEADS) for name in names) or (is_reader and not speaks)


def _is_puzzle_checkpoint(directory: Path) -> bool:
    """Whether Sapient's HRM wrote it. HRM-Text has an all_config.yaml too, but beside a train_metadata.yaml."""
    steps = (file for file in directory.glob("step_*") if file.is_file())
    has_weights = (directory / "checkpoint").is_file() or any(steps)
    is_text = (directory / "train_metadata.yaml").exists()
    return (directory / "all_config.yaml").is_file() and has_weights and not is_text
