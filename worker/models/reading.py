"""Readers of a model directory's small files, and errors of libraries that read large ones.

All errors become a ModelFormatError: one sentence that names the file and says what to do.
"""

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec
import yaml

from worker.models.errors import ModelFormatError, is_out_of_memory
from worker.text.foreign import is_foreign

logger = logging.getLogger("aios.models")

COPY_AGAIN = "copy it again from where it came from"
_GIVE_ACCESS = "let the user that runs the worker read it"
_LFS_POINTER = b"version https://git-lfs.github.com/spec/"
_MAX_REASON_LENGTH = 300

Count = Annotated[int, msgspec.Meta(gt=0)]
Positive = Annotated[float, msgspec.Meta(gt=0)]
"""Types of a configuration's numbers, for fields of structs: at least 1, and more than 0."""

_Kind = TypeVar("_Kind")


@contextmanager
def reading(source: Path | str, remedy: str = COPY_AGAIN, *, kind: str = "") -> Iterator[None]:
    """Turn any error of a library that reads `source` as a `kind` into ModelFormatError.

    `source` is a file or a directory. No code of our own belongs in the block, because our bugs
    must stay tracebacks.
    """
    try:
        yield
    except ModelFormatError:
        raise
    # A library may raise any error on a damaged file, even a panic of Rust, which is no Exception.
    except BaseException as error:
        # A lack of memory is no fault of the files.
        if not is_foreign(error) or is_out_of_memory(error):
            raise
        logger.debug("model file not read", exc_info=error)
        raise unusable(source, error, remedy, kind=kind) from error


def unusable(
    source: Path | str, error: BaseException, remedy: str = COPY_AGAIN, *, kind: str = ""
) -> ModelFormatError:
    """Return the error of a file that cannot be used."""
    if isinstance(error, PermissionError):
        remedy = _GIVE_ACCESS
    as_what = f" as {kind}" if kind else ""
    return faulty(source, f"cannot be read{as_what}: {reason_of(error)}; {remedy}.")


def faulty(source: Path | str, problem: str) -> ModelFormatError:
    """Return the error of a file with this problem, which is a predicate with its full stop."""
    # If the file is only a pointer of Git LFS, that explains any other problem.
    if _is_lfs_pointer(source):
        problem = (
            "is a pointer of Git LFS, not the file itself: get it by `git lfs pull` there, or "
            "copy it again."
        )
    return ModelFormatError(f"{source} {problem}")


def _is_lfs_pointer(source: Path | str) -> bool:
    """Return whether the file is the small text that a clone without Git LFS leaves."""
    try:
        with open(source, "rb") as file:
            return file.read(len(_LFS_POINTER)) == _LFS_POINTER
    except (OSError, ValueError):
        return False


def reason_of(error: BaseException) -> str:
    """Return the class of an error and the beginning of its message, in one line."""
    message = str(error)
    if isinstance(error, OSError) and error.strerror:
        # Without the path, which our own sentence names.
        message = error.strerror
    line = " ".join(message.split())
    if len(line) > _MAX_REASON_LENGTH:
        line = line[:_MAX_REASON_LENGTH] + "..."
    if not line:
        return type(error).__name__
    return f"{type(error).__name__}: {line}"


def read_json(file: Path) -> Any:
    """Return the contents of a JSON file. Raise ModelFormatError."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise unusable(file, error) from error
    except (ValueError, RecursionError) as error:
        raise faulty(file, f"is not valid JSON: {reason_of(error)}; {COPY_AGAIN}.") from error


def read_json_object(file: Path) -> dict[str, Any]:
    """Return the object in a JSON file. Raise ModelFormatError."""
    loaded = read_json(file)
    if not isinstance(loaded, dict):
        raise ModelFormatError(f"{file} is not a JSON object; {COPY_AGAIN}.")
    return loaded


def read_yaml(file: Path) -> Any:
    """Return the contents of a YAML file. Raise ModelFormatError."""
    try:
        return yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise unusable(file, error) from error
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        raise faulty(file, f"is not valid YAML: {reason_of(error)}; {COPY_AGAIN}.") from error


def read_yaml_mapping(file: Path) -> dict[str, Any]:
    """Return the mapping in a YAML file. Raise ModelFormatError."""
    loaded = read_yaml(file)
    if not isinstance(loaded, dict):
        raise faulty(file, f"is not a YAML mapping; {COPY_AGAIN}.")
    return loaded


def converted(
    value: object, kind: type[_Kind], source: Path | str, *, strict: bool = True
) -> _Kind:
    """Return `value` as a `kind`, which is a struct or a list of structs.

    Unless `strict`, numbers may be written as strings, as in YAML. Raise ModelFormatError, which
    names `source` and the field.
    """
    try:
        return msgspec.convert(value, kind, strict=strict)
    except msgspec.ValidationError as error:
        problem = f"{source} is not that of a network served here: {error}"
        raise ModelFormatError(f"{problem}; correct it, or copy it again.") from None
