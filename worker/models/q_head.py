"""AI-OS implants: a causal LM with a small trained head beside it that says whether to halt or to
go on.

    starter_brain.json {model, q_head, max_seq_len, peft_dir, ...} or q_head.pt beside model/ or
    base_model/

The head reads the last hidden state and does not change what the LM says. Trained adapters (PEFT)
would; they are refused, not left out. Where a bundle's device and dtype are concerned, the settings
decide.
"""

from dataclasses import dataclass
from pathlib import Path

import msgspec
import torch
import torch.nn.functional as F
from torch import Tensor

from worker.models.errors import ModelFormatError
from worker.models.hf_directory import is_there
from worker.models.reading import Count, converted, read_json_object
from worker.models.weights import check_finite, check_names, read_tensors

STARTER_FILE, HEAD_FILE = "starter_brain.json", "q_head.pt"


@dataclass(frozen=True)
class QHead:
    """`weight` [2, hidden] and `bias` [2] in float32; the first row is q_halt, the second
    q_continue."""

    weight: Tensor
    bias: Tensor

    def __call__(self, hidden: Tensor) -> Tensor:
        """Last hidden states [..., hidden] of any dtype -> (q_halt, q_continue) [..., 2] in
        float32."""
        return F.linear(hidden.float(), self.weight, self.bias)

    def to(self, device: torch.device) -> "QHead":
        return QHead(self.weight.to(device), self.bias.to(device))


@dataclass(frozen=True)
class Implant:
    """Where the parts of a bundle are. `max_seq_len` is in tokens."""

    base: Path
    q_head: Path
    max_seq_len: int | None = None


class _Starter(msgspec.Struct):
    model: str
    q_head: str
    max_seq_len: Count | None = None
    peft_dir: str | None = None


def find_implant(path: Path) -> Implant | None:
    """The bundle at `path`, its directory or a file in it; None where no q head lies.

    Raises ModelFormatError for a part that is named but missing, and for adapters.
    """
    directory = path if path.is_dir() else path.parent
    starter_file = directory / STARTER_FILE
    if is_there(starter_file):
        starter = _read_starter(starter_file)
        adapters = [
            directory / "lora",
            *([_place(directory, starter.peft_dir)] if starter.peft_dir else []),
        ]
        implant = Implant(
            _place(directory, starter.model), _place(directory, starter.q_head), starter.max_seq_len
        )
    elif is_there(directory / HEAD_FILE):
        adapters, implant = (
            [directory / "lora"],
            Implant(_base_beside(directory), directory / HEAD_FILE),
        )
    else:
        return None
    if not is_there(implant.base / "config.json"):
        problem = f"{directory}: the base model {implant.base} is no Hugging Face directory here"
        raise ModelFormatError(f"{problem}; copy it there, or name it in {STARTER_FILE}.")
    for place in adapters:
        if place.is_dir() and any(place.iterdir()):
            raise ModelFormatError(
                f"{place} holds trained adapters (LoRA), which are not served: merge them first."
            )
    return implant


def load_q_head(file: Path, hidden_size: int) -> QHead:
    """The head in `file` for states of `hidden_size`; raises ModelFormatError for anything else."""
    if not is_there(file):
        raise ModelFormatError(
            f"There is no q head at {file}; copy it there, or name it in {STARTER_FILE}."
        )
    tensors = read_tensors(file)
    check_names({"weight": torch.empty(2, hidden_size), "bias": torch.empty(2)}, tensors, file)
    check_finite(tensors, file)
    return QHead(tensors["weight"].float(), tensors["bias"].float())


def _read_starter(file: Path) -> _Starter:
    return converted(read_json_object(file), _Starter, file)


def _place(directory: Path, named: str) -> Path:
    """Relative names are of the bundle, else of the working directory, as the trainer writes
    them."""
    return next(
        (place for place in (directory / named, Path(named)) if place.exists()), directory / named
    )


def _base_beside(directory: Path) -> Path:
    places = (directory / "model", directory / "base_model", directory)
    return next((place for place in places if (place / "config.json").is_file()), places[0])
