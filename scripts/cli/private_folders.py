"""Folders for files of this user alone: of fleets that run, and of what is kept between them."""

import os
import stat
import tempfile
from pathlib import Path

FOLDER_ENV = "AIOS_RUN_DIR"
"""The variable that names one folder for all these files."""


def run_folders() -> list[Path]:
    """Return the folders where files of fleets that run may lie, the best one first.

    Tools search all of them, as XDG_RUNTIME_DIR may be set in one shell of a user and not in
    another.
    """
    folders = state_folders()
    if not os.environ.get(FOLDER_ENV) and os.environ.get("XDG_RUNTIME_DIR"):
        folders.insert(0, Path(os.environ["XDG_RUNTIME_DIR"]) / "aios")
    return folders


def state_folders() -> list[Path]:
    """Return the folders for files that outlive a session of the user, the best one first."""
    if os.environ.get(FOLDER_ENV):
        return [Path(os.environ[FOLDER_ENV])]
    folders = []
    state = os.environ.get("XDG_STATE_HOME") or os.path.expanduser(
        os.path.join("~", ".local", "state")
    )
    # A user without an entry and without HOME, as in containers, has no home folder.
    if os.path.isabs(state):
        folders.append(Path(state) / "aios")
    folders.append(Path(tempfile.gettempdir()) / f"aios-{_uid()}")
    return folders


def make_private(folder: Path) -> None:
    """Make a folder for this user alone. Raise OSError if there is one that is open to others."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not is_private(folder):
        raise PermissionError(f"{folder} is open to others")


def is_private(folder: Path) -> bool:
    """Return whether this is a folder of this user that is closed to others."""
    try:
        # Not stat(): a symbolic link to a folder is refused.
        status = folder.lstat()
    except OSError:
        return False
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != _uid():
        return False
    return status.st_mode & 0o077 == 0


def _uid() -> int:
    return os.getuid() if hasattr(os, "getuid") else 0
