"""Files by which tools find the fleets of this user on this machine, one for each fleet.

`aios serve hrm` holds a lock on its file, which the kernel releases however the process ends. So a
file that can be locked is stale, and is removed. A file holds the password of the fleet's Redis, so
its folder is open to its owner alone.
"""

import json
import logging
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from scripts.cli.private_folders import is_private, make_private, run_folders
from shared.settings.layers import SettingsError
from shared.settings.settings import Settings
from shared.telemetry.logging_setup import fields

try:
    import fcntl
except ImportError:  # Windows, where a fleet has no Redis of its own either
    fcntl = None  # type: ignore[assignment]

PORT_HELP = "which of the fleets that run on this machine, by the port of its front"
_SUFFIX = ".fleet.json"

log = logging.getLogger("aios.serve")


@dataclass(frozen=True)
class LocalFleet:
    """A fleet that runs on this machine.

    `url` is that of its front. `has_open_metrics` is true if its `/metrics` needs no key. Neither
    is known of a fleet whose front runs in another server's process: its `port` is 0.
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
    """Let the tools find `fleet` while the context lasts.

    If its file cannot be written, they do not find it, and a warning is logged.
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
    """Return the fleets that run now, in the order of their ports. Remove the files of others."""
    fleets: list[LocalFleet] = []
    for folder in run_folders():
        if fcntl is None or not is_private(folder):
            continue
        for file in folder.glob(f"*{_SUFFIX}"):
            fleet = _read(file)
            if fleet is not None:
                fleets.append(fleet)
    return sorted(fleets, key=lambda fleet: fleet.port)


def choose_fleet(
    port: int | None = None,
    *,
    setting: str = "redis_url",
    given_by: str = "--redis-url or AIOS_REDIS_URL",
    chosen_by_port: bool = True,
) -> LocalFleet:
    """Return the only fleet that runs here, or the one with this port.

    Raise SettingsError if there is not exactly one. Its message names the setting that would have
    told the fleet, and by what it is given. `chosen_by_port` is false for a command whose --port is
    another one.
    """
    running = running_fleets()
    matches = [fleet for fleet in running if port is None or fleet.port == port]
    if len(matches) == 1:
        return matches[0]
    if not running:
        raise SettingsError(
            f"{setting}: expected a URL in {given_by}: no `aios serve hrm` of this user runs here"
        )
    listing = ", ".join(f"{fleet.url} (process {fleet.pid})" for fleet in running)
    if matches:
        remedy = f"give {given_by}"
        if chosen_by_port:
            remedy = f"choose one by --port, or {remedy}"
        raise SettingsError(f"{setting}: several fleets run here: {listing}; {remedy}")
    raise SettingsError(f"port: no fleet with port {port} runs here; there is {listing}")


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


def _write(fleet: LocalFleet) -> tuple[Path, int]:
    """Write the file of a fleet and lock it.

    Return the file, and the descriptor that holds the lock. Raise OSError if no folder can take it.
    """
    if fcntl is None:
        raise OSError("no file locks on this system")
    problem = OSError("no folder")
    for folder in run_folders():
        try:
            make_private(folder)
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
    """Return the fleet of a file.

    Return None for a stale file, which is removed, and for one that another version wrote.
    """
    try:
        # Opening a named pipe would wait for its writer.
        if not file.is_file():
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
