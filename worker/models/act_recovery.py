"""The choice of an AI-OS bundle's weights when its training did not end as it should. No file is
changed.

A save is written to `<name>.safetensors.tmp` and then renamed: one that was finished but not
renamed is the newer state. Training on several GPUs leaves
`parallel_checkpoints/gpu<i>_final.safetensors`, whose mean is the final model.
"""

import logging
from collections.abc import Sequence
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from shared.telemetry.logging_setup import fields
from worker.models.errors import ModelFormatError
from worker.models.weights import check_names, read_tensors

logger = logging.getLogger("aios.models")


def read_newest(directory: Path, names: Sequence[str]) -> tuple[dict[str, Tensor], Path]:
    """Return the tensors of the first of the weights files `names` that is there, and the path that
    they were read from.

    Log it when that is not simply the file. Raise ModelFormatError when nothing is there, or
    nothing whole.
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
    """Return `file`, or the finished save beside it that is newer; None if there is neither."""
    renamed = file if file.is_file() else None
    unrenamed = file.with_name(file.name + ".tmp")
    if file.suffix != ".safetensors" or not unrenamed.is_file():
        return renamed
    if renamed is not None and unrenamed.stat().st_mtime_ns <= renamed.stat().st_mtime_ns:
        return renamed
    if not _is_whole(unrenamed):
        logger.warning("unfinished save left aside", extra=fields(path=str(unrenamed)))
        return renamed
    logger.info(
        "finished save never renamed, taken",
        extra=fields(path=str(unrenamed), taken_for=file.name),
    )
    return unrenamed


def _is_whole(file: Path) -> bool:
    """Return whether the header is valid and the tensors it lists fill the file exactly."""
    # Opening checks both.
    try:
        with safe_open(file, framework="pt"):
            return True
    except SafetensorError:
        return False


def _mean(parts: Sequence[Path]) -> dict[str, Tensor]:
    """Return the plain mean in float32; raise ModelFormatError unless all parts hold the same
    tensors."""
    first = read_tensors(parts[0])
    check_names(first, first, parts[0])
    total = {name: tensor.float() for name, tensor in first.items()}
    for part in parts[1:]:
        tensors = read_tensors(part)
        check_names(first, tensors, part)
        for name, tensor in tensors.items():
            total[name] = total[name] + tensor.float()
    return {name: tensor / len(parts) for name, tensor in total.items()}
