"""The fleets of this user on this machine, as the tools find them: one file for each in a private
folder.

`aios serve hrm` holds a lock on its file as long as it lives, however it ends. So a file that can
be locked is stale, and is removed. The file holds the password of the fleet's Redis: the folder is
open to its owner alone.
"""

import json
import logging
import os
import secrets
import stat
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from shared.settings.layers import SettingsError
from shared.settings.settings import Settings
from shared.telemetry.logging_setup import fields

try:
    import fcntl
except ImportError:  # Windows, where a fleet has no Redis of its own either
    fcntl = None  # type: ignore[assignment]

FOLDER_ENV = "AIOS_RUN_DIR"
PORT_HELP = "which of the fleets that run on this machine, by the port of its front"
_SUFFIX = ".fleet.json"

log = logging.getLogger("aios.serve")


@dataclass(frozen=True)
class LocalFleet:
    """A fleet that runs on this machine.

    `url` is where it answers. `has_open_metrics` says that its `/metrics` asks for no key. Neither
    is known of a fleet whose front is in another server's process: its `port` is 0.
    """

    pid: int
    port: int
    url: str
    redis_url: str
    redis_shards: int
    has_open_metrics: bool
    artifact_url: str | None = None


@contextmanager
def announced(fleet: LocalFleet) -> Iterator[None]:
    """Let the tools find `fleet` in this context.

    Where there is no folder for its file they do not find it, and a warning says so.
    """
    try:
        file, descriptor = _write(fleet)
    except OSError as error:
        log.warning("fleet not found by tools", extra=fields(error=str(error)))
        yield
        return
    try:
        yield
    finally:
        file.unlink(missing_ok=True)
        os.close(descriptor)


def running_fleets() -> list[LocalFleet]:
    """Return the fleets that run now, by their ports. Remove the files of others."""
    fleets: list[LocalFleet] = []
    for folder in _folders():
        if fcntl is None or not _is_private(folder):
            continue
        for file in folder.glob(f"*{_SUFFIX}"):
            fleet = _read(file)
            if fleet is not None:
                fleets.append(fleet)
    return sorted(fleets, key=lambda fleet: fleet.port)


def choose_fleet(port: int | None = None) -> LocalFleet:
    """Return the one fleet that runs here, or the one with this port of several.

    Raise SettingsError if there is not exactly one.
    """
    running = running_fleets()
    chosen = [fleet for fleet in running if port is None or fleet.port == port]
    if len(chosen) == 1:
        return chosen[0]
    if not running:
        raise SettingsError(
            "redis_url: expected a URL in --redis-url or AIOS_REDIS_URL: no `aios serve "
            "hrm` of this user runs here"
        )
    shown = ", ".join(f"{fleet.url} (process {fleet.pid})" for fleet in running)
    if chosen:
        raise SettingsError(
            f"redis_url: several fleets run here: {shown}; choose one by --port, or give "
            "--redis-url"
        )
    raise SettingsError(f"port: no fleet with port {port} runs here; there is {shown}")


def with_local_fleet(
    settings: Settings, port: int | None = None
) -> tuple[Settings, LocalFleet | None]:
    """Return the settings with a Redis: the one they name, or that of the fleet that runs here.

    In the second case the fleet is returned too. Raise SettingsError if no fleet can be chosen.
    """
    if settings.redis_url is not None:
        if port is not None:
            raise SettingsError(
                "port: chooses a fleet of this machine, but redis_url names one; expected "
                "one of the two"
            )
        return settings, None
    fleet = choose_fleet(port)
    update: dict[str, object] = {"redis_url": fleet.redis_url, "redis_shards": fleet.redis_shards}
    if settings.artifact_url is None:
        update["artifact_url"] = fleet.artifact_url
    return settings.model_copy(update=update), fleet


def _folders() -> Sequence[Path]:
    """Return the folders where files may lie, the best one first.

    All are searched, as one shell of a user may know of a runtime folder and another not.
    """
    if os.environ.get(FOLDER_ENV):
        return [Path(os.environ[FOLDER_ENV])]
    folders = []
    if os.environ.get("XDG_RUNTIME_DIR"):
        folders.append(Path(os.environ["XDG_RUNTIME_DIR"]) / "aios")
    state = os.environ.get("XDG_STATE_HOME") or os.path.expanduser(
        os.path.join("~", ".local", "state")
    )
    # A user without an entry and without HOME, as in containers, has no home folder.
    if os.path.isabs(state):
        folders.append(Path(state) / "aios")
    folders.append(Path(tempfile.gettempdir()) / f"aios-{_uid()}")
    return folders


def _write(fleet: LocalFleet) -> tuple[Path, int]:
    """Write the file of a fleet; return it, in place and locked, and the descriptor that holds the
    lock. Raise OSError."""
    if fcntl is None:
        raise OSError("no file locks on this system")
    problem = OSError("no folder")
    for folder in _folders():
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not _is_private(folder):
                raise PermissionError(f"{folder} is open to others")
            return _write_in(folder, fleet)
        except OSError as error:
            problem = error
    raise problem


def _write_in(folder: Path, fleet: LocalFleet) -> tuple[Path, int]:
    name = f"{fleet.pid}-{secrets.token_hex(4)}"
    # Locked before it gets the name that tools look for: they would remove it as stale.
    unfinished = folder / f"{name}.part"
    descriptor = os.open(unfinished, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        os.write(descriptor, json.dumps(asdict(fleet)).encode())
        file = folder / f"{name}{_SUFFIX}"
        unfinished.rename(file)
    except OSError:
        os.close(descriptor)
        unfinished.unlink(missing_ok=True)
        raise
    return file, descriptor


def _read(file: Path) -> LocalFleet | None:
    """Return the fleet of a file, or None for a file that nobody holds any more, which is removed,
    or that another version wrote."""
    try:
        if not file.is_file():  # to open a pipe would wait for its writer
            return None
        with file.open("rb") as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return LocalFleet(**json.loads(stream.read()))
            file.unlink(missing_ok=True)
            return None
    except (OSError, ValueError, TypeError):
        return None


def _is_private(folder: Path) -> bool:
    """Return whether it is a folder of this user that is closed to others."""
    try:
        status = folder.lstat()  # a link to a folder is refused
    except OSError:
        return False
    return stat.S_ISDIR(status.st_mode) and status.st_uid == _uid() and not status.st_mode & 0o077


def _uid() -> int:
    return os.getuid() if hasattr(os, "getuid") else 0
