"""The file that keeps measurements of shapes, so that a fleet measures at its first start only.

It lies in a folder of this user alone. A file that cannot be read is measured anew and replaced.
"""

import hashlib
import os
import secrets
from collections.abc import Iterable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import msgspec

import worker.native
from scripts.cli.private_folders import is_private, make_private, state_folders
from shared.settings.settings import ModelEntry, Settings
from shared.tasks.model_options import options_of
from worker.hardware.machine import Machine, processor
from worker.hardware.measurements import Measurement
from worker.hardware.openmp import find_runtime
from worker.hardware.shapes import kind_of_weights
from worker.models.model_files import stored_files

FILE = "shapes.json"
_MOST_KEPT = 64
_WHOLE_BYTES = 1 << 16
"""The largest file of a model that counts by its contents: a config, but no weights."""


class Kept(msgspec.Struct, frozen=True):
    """The measurements of one key, and the day on which they were made (2026-11-29)."""

    day: str
    measurements: tuple[Measurement, ...]


def kept(key: str) -> Kept | None:
    """Return the measurements of a key, None where there are none."""
    for folder in state_folders():
        if is_private(folder):
            found = _read(folder / FILE).get(key)
            if found is not None:
                return found
    return None


def keep(key: str, measurements: Iterable[Measurement]) -> None:
    """Keep the measurements of a key. Raise OSError where no folder can take them."""
    entry = Kept(datetime.now(UTC).date().isoformat(), tuple(measurements))
    problem = OSError("no folder")
    for folder in state_folders():
        try:
            make_private(folder)
            entries = _read(folder / FILE)
            # The newest come last, and the oldest are dropped.
            entries.pop(key, None)
            entries[key] = entry
            newest = dict(list(entries.items())[-_MOST_KEPT:])
            _replace(folder / FILE, msgspec.json.encode(newest))
            return
        except OSError as error:
            problem = error
    raise problem


def key_of(entry: ModelEntry, runner: str, settings: Settings, machine: Machine) -> str:
    """Return the hash of all that the speeds of a model on this machine depend on.

    Raise SettingsError for options that the runner does not have, OSError for files that cannot be
    read.
    """
    facts = {
        "files": _files(Path(entry.path).expanduser()),
        "runner": runner,
        "dtype": kind_of_weights(entry),
        "quantize": entry.quantize,
        "options": options_of(entry, dict(settings), runner).model_dump(mode="json"),
        "max_batch": settings.max_batch_size,
        "pin_cores": settings.pin_cores,
        "processor": processor(),
        "num_cores": machine.num_cores,
        "cores": machine.cores,
        "torch": version("torch"),
        "kernels": _kernels(),
        "openmp": Path(find_runtime() or "").name,
    }
    encoded = msgspec.json.encode(facts, order="deterministic")
    return hashlib.sha256(encoded).hexdigest()


def _files(path: Path) -> list[tuple[str, int, str]]:
    """Return the name, the size and, of small files, the hash of each file of a model."""
    directory = path if path.is_dir() else path.parent
    files: list[tuple[str, int, str]] = []
    for file in stored_files(path):
        size = file.stat().st_size
        digest = ""
        if size <= _WHOLE_BYTES:
            digest = hashlib.sha256(file.read_bytes()).hexdigest()
        files.append((str(file.relative_to(directory)), size, digest))
    return files


def _kernels() -> str:
    """Return the hash of the compiled kernels, of all sets of instructions."""
    digest = hashlib.sha256()
    for folder in worker.native.__path__:
        for file in sorted(Path(folder).glob("kernels_*.so")):
            digest.update(file.read_bytes())
    return digest.hexdigest()


def _read(file: Path) -> dict[str, Kept]:
    """Return the entries of the file, none where it is missing, damaged or of another version."""
    try:
        # Opening a named pipe would wait for its writer.
        if not file.is_file():
            return {}
        return msgspec.json.decode(file.read_bytes(), type=dict[str, Kept])
    except (OSError, msgspec.DecodeError):
        return {}


def _replace(file: Path, content: bytes) -> None:
    """Replace the file as a whole, so that nobody reads half of it."""
    unfinished = file.with_name(f"{file.name}-{secrets.token_hex(4)}.part")
    descriptor = os.open(unfinished, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(content)
        unfinished.replace(file)
    except OSError:
        unfinished.unlink(missing_ok=True)
        raise
