"""Which weights of an AI-OS bundle count when its training did not end as it should. Reads only: no
file is changed.

A save is written to `<name>.safetensors.tmp` and then renamed: one that was finished but not
renamed is the newer state. Training on several GPUs leaves
`parallel_checkpoints/gpu<i>_final.safetensors`, whose mean is the final model.
"""

import logging
from collections.abc import Sequence
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from shared.logging_setup import fields
from worker.models.errors import ModelFormatError
from worker.models.weights import check_names, read_tensors

logger = logging.getLogger("aios.models")


def read_newest(directory: Path, names: Sequence[str]) -> tuple[dict[str, Tensor], Path]:
    """The tensors of the first of the weights files `names` that is there, and what they were read
    from.

    Says in the log when that is not simply the file. Raises ModelFormatError when nothing is there,
    or nothing whole.
    """
    for name in names:
        file = _newest_save(directory / name)
        if file is not None:
            return read_tensors(file), file
    parts = sorted((directory / "parallel_checkpoints").glob("gpu*_final.safetensors"))
    if not parts:
        raise ModelFormatError(
            f"{directory} has no weights file, looked for {', '.join(names)}; copy one there."
        )
    logger.info(
        "no final weights, parallel checkpoints averaged",
        extra=fields(path=str(directory), num_parts=len(parts)),
    )
    return _mean(parts), parts[0].parent


def _newest_save(file: Path) -> Path | None:
    """`file`, or the finished save beside it that is newer; None if there is neither."""
    unfinished = file.with_name(file.name + ".tmp")
    there = file if file.is_file() else None
    if file.suffix != ".safetensors" or not unfinished.is_file():
        return there
    if there is not None and unfinished.stat().st_mtime_ns <= there.stat().st_mtime_ns:
        return there
    if not _is_whole(unfinished):
        logger.warning("unfinished save left aside", extra=fields(path=str(unfinished)))
        return there
    logger.info(
        "finished save never renamed, taken",
        extra=fields(path=str(unfinished), taken_for=file.name),
    )
    return unfinished


def _is_whole(file: Path) -> bool:
    """Whether the header is valid and the tensors it lists fill the file exactly, which is checked
    on opening."""
    try:
        with safe_open(file, framework="pt"):
            return True
    except SafetensorError:
        return False


def _mean(parts: Sequence[Path]) -> dict[str, Tensor]:
    """The plain mean in float32; raises ModelFormatError unless all parts hold the same tensors."""
    first = read_tensors(parts[0])
    check_names(first, first, parts[0])
    total = {name: tensor.float() for name, tensor in first.items()}
    for part in parts[1:]:
        tensors = read_tensors(part)
        check_names(first, tensors, part)
        total = {name: total[name] + tensors[name].float() for name in total}
    return {name: tensor / len(parts) for name, tensor in total.items()}
