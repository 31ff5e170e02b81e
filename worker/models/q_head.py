"""AI-OS implants: a causal LM, and a small trained head that says whether to halt or to go on.

An implant is a directory in one of two forms:

    starter_brain.json    {model, q_head, max_seq_len, peft_dir, ...}
    q_head.pt             beside model/ or base_model/

The head reads the last hidden state and does not change the LM's predictions. Trained adapters
(PEFT) would change them, so they are refused, not left out. Device and dtype are those of the
settings, whatever the bundle says.
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

STARTER_FILE = "starter_brain.json"
HEAD_FILE = "q_head.pt"


@dataclass(frozen=True)
class QHead:
    """A trained head: `weight` [2, hidden] and `bias` [2] in float32.

    The first row is q_halt, the second q_continue.
    """

    weight: Tensor
    bias: Tensor

    def __call__(self, hidden: Tensor) -> Tensor:
        """Return q_halt and q_continue [..., 2] in float32 of last hidden states [..., hidden].

        The states may be of any dtype.
        """
        return F.linear(hidden.float(), self.weight, self.bias)

    def to(self, device: torch.device) -> "QHead":
        return QHead(self.weight.to(device), self.bias.to(device))


@dataclass(frozen=True)
class Implant:
    """Paths of the parts of a bundle; `max_seq_len` is in tokens."""

    base: Path
    q_head: Path
    max_seq_len: int | None = None


class _Starter(msgspec.Struct):
    model: str
    q_head: str
    max_seq_len: Count | None = None
    peft_dir: str | None = None


def find_implant(path: Path) -> Implant | None:
    """Return the bundle at `path`, which is its directory or a file in it.

    Return None where there is no q head. Raise ModelFormatError for a base model that is missing,
    and for adapters.
    """
    directory = path if path.is_dir() else path.parent
    starter_file = directory / STARTER_FILE
    adapters = [directory / "lora"]
    if is_there(starter_file):
        starter = _read_starter(starter_file)
        if starter.peft_dir:
            adapters.append(_part(directory, starter.peft_dir))
        implant = Implant(
            base=_part(directory, starter.model),
            q_head=_part(directory, starter.q_head),
            max_seq_len=starter.max_seq_len,
        )
    elif is_there(directory / HEAD_FILE):
        implant = Implant(base=_base_beside(directory), q_head=directory / HEAD_FILE)
    else:
        return None

    if not is_there(implant.base / "config.json"):
        problem = f"{directory}: the base model {implant.base} is no Hugging Face directory here"
        raise ModelFormatError(f"{problem}; copy it there, or name it in {STARTER_FILE}.")
    for adapter in adapters:
        if adapter.is_dir() and any(adapter.iterdir()):
            raise ModelFormatError(
                f"{adapter} holds trained adapters (LoRA), which are not served: merge them first."
            )
    return implant


def load_q_head(file: Path, hidden_size: int) -> QHead:
    """Load the head in `file` for states of `hidden_size`.

    Raise ModelFormatError for a file that is missing, or that holds anything else.
    """
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


def _part(directory: Path, name: str) -> Path:
    """Return the path of a part of the bundle.

    Its name is relative to the bundle, or else to the working directory, as the trainer writes it.
    """
    in_bundle = directory / name
    if not in_bundle.exists() and Path(name).exists():
        return Path(name)
    return in_bundle


def _base_beside(directory: Path) -> Path:
    """Return the directory of the base model that belongs to a bare q head."""
    for path in (directory / "model", directory / "base_model", directory):
        if (path / "config.json").is_file():
            return path
    return directory / "model"
