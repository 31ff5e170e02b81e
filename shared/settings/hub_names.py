"""Names of models on the Hugging Face hub, which may stand in place of a path.

    hf://org/name[@revision][/folder]
    org/name[@revision]                 where no such path exists

This module only reads names. `shared/settings/hub.py` turns them into directories.
"""

import os
import re
from dataclasses import dataclass
from pathlib import PurePath

SCHEME = "hf://"
WEIGHT_SUFFIXES = {".pt", ".pth", ".bin", ".safetensors"}
_NAME = re.compile(
    r"(?P<repository>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)"
    r"(?:@(?P<revision>refs/pr/\d+|[\w.-]+))?"
    r"(?:/(?P<folder>[\w.-]+(?:/[\w.-]+)*))?"
)
# The layout of the hub's own cache.
_SNAPSHOT = re.compile(r"models--([^/]+?)--([^/]+)/snapshots/([0-9a-f]{40})(?:/|$)")


@dataclass(frozen=True)
class HubName:
    """A model on the hub. `revision` is a branch, a tag or a commit, None for `main`.

    `folder` is that of the model inside its repository, "" for the repository itself.
    """

    repository: str
    revision: str | None = None
    folder: str = ""

    @property
    def model_id(self) -> str:
        """The id that the model has where none is given: its name without org and revision."""
        return self.repository.partition("/")[2]

    @property
    def download_command(self) -> str:
        """The command of the hub's library that fetches the repository into the cache."""
        words = f"hf download {self.repository}"
        if self.revision is not None:
            words += f" --revision {self.revision}"
        return words


def hub_name(path: str) -> HubName | None:
    """Return the model on the hub that a path names, None for a path on a disk.

    A name without `hf://` is that of a path if there is one, or if it ends as a file of weights.
    """
    if path.startswith(SCHEME):
        match = _NAME.fullmatch(path.removeprefix(SCHEME))
    elif os.path.lexists(path) or PurePath(path).suffix in WEIGHT_SUFFIXES:
        return None
    else:
        match = _NAME.fullmatch(path)
        if match is not None and match["folder"]:
            return None

    if match is None:
        return None
    folder = match["folder"] or ""
    if ".." in folder.split("/"):
        return None
    return HubName(match["repository"], match["revision"], folder)


def commit_of(path: str) -> str | None:
    """Return `org/name@commit` for a path in the hub's cache, None for any other path."""
    match = _SNAPSHOT.search(path)
    if match is None:
        return None
    org, name, commit = match.groups()
    return f"{org}/{name}@{commit}"
