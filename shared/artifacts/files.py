"""The files of artifacts, in a directory, on S3 or wherever else fsspec can write.

Every method blocks, and is called in a thread. Files are named by ids of ours alone. fsspec is
loaded by the first call that needs it.
"""

import os
from contextlib import suppress
from functools import cached_property
from typing import Any, BinaryIO, cast

from shared.queue import keys
from shared.settings.settings import Settings
from shared.settings.text import reason

_UNFINISHED = "tmp"
_FINISHED = "files"


class ArtifactFiles:
    """Files below `url`, which is a path or a URL that fsspec knows."""

    def __init__(self, url: str) -> None:
        self._url = url

    def create(self, artifact_id: str) -> BinaryIO:
        """Return a file to write to, which nobody reads before it is finished."""
        path = self._path(_UNFINISHED, artifact_id)
        return cast(BinaryIO, self._file_system.open(path, "wb"))

    def finish(self, artifact_id: str, file: BinaryIO) -> None:
        """Close the file and give it its name."""
        file.close()
        source = self._path(_UNFINISHED, artifact_id)
        self._file_system.mv(source, self._path(_FINISHED, artifact_id))

    def open(self, artifact_id: str, start: int) -> BinaryIO | None:
        """Return a file to read from `start` on, None if it is not there."""
        path = self._path(_FINISHED, artifact_id)
        try:
            file = cast(BinaryIO, self._file_system.open(path, "rb"))
        except FileNotFoundError:
            return None
        file.seek(start)
        return file

    def remove(self, artifact_id: str) -> None:
        """Remove the file, finished or not, if it is there."""
        for folder in (_UNFINISHED, _FINISHED):
            path = self._path(folder, artifact_id)
            with suppress(FileNotFoundError):
                if self._file_system.exists(path):
                    self._file_system.rm_file(path)

    def ids(self) -> list[str]:
        """Return the ids of all files that lie here, finished or not, in order."""
        ids: set[str] = set()
        for folder in (_UNFINISHED, _FINISHED):
            try:
                # An object store's listings may come from a cache, which would tell of the past.
                paths = self._file_system.ls(f"{self._root}/{folder}", detail=False, refresh=True)
            except FileNotFoundError:
                # A folder of an object store is there as long as it has files.
                continue
            for path in paths:
                name = str(path).rpartition("/")[2]
                # Files of other names are not ours.
                if keys.is_artifact_id(name):
                    ids.add(name)
        return sorted(ids)

    def _path(self, folder: str, artifact_id: str) -> str:
        return f"{self._root}/{folder}/{artifact_id}"

    @cached_property
    def _file_system(self) -> Any:
        import fsspec

        directory = local_directory(self._url)
        if directory is not None:
            make_directory(directory)
            return fsspec.filesystem("file")
        file_system, root = fsspec.core.url_to_fs(self._url)
        for folder in (_UNFINISHED, _FINISHED):
            file_system.makedirs(f"{root.rstrip('/')}/{folder}", exist_ok=True)
        return file_system

    @cached_property
    def _root(self) -> str:
        directory = local_directory(self._url)
        if directory is not None:
            return directory
        import fsspec

        return str(fsspec.core.url_to_fs(self._url)[1]).rstrip("/")


def local_directory(url: str) -> str | None:
    """Return the directory that `url` names, None where it names another kind of place."""
    scheme, separator, path = url.partition("://")
    if not separator:
        path = url
    elif scheme != "file":
        return None
    return os.path.abspath(os.path.expanduser(path))


def make_directory(directory: str) -> None:
    """Make the directory and its folders, where they are missing, for this user alone.

    Raise OSError where one cannot be made, or where this process may not write.
    """
    for folder in (directory, f"{directory}/{_UNFINISHED}", f"{directory}/{_FINISHED}"):
        os.makedirs(folder, mode=0o700, exist_ok=True)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(13, "permission denied", folder)


def check_artifact_url(settings: Settings) -> None:
    """Raise SettingsError if `artifact_url` names no place where files can be written."""
    url = settings.artifact_url
    if url is None:
        return

    directory = local_directory(url)
    remedy = "name a directory that this process may write to, or a URL such as s3://bucket/folder"
    if directory is not None:
        try:
            make_directory(directory)
        except OSError as error:
            problem = f"cannot write in {directory!r}: {reason(error)}"
            raise settings.refusal("artifact_url", problem, remedy) from None
        return

    import fsspec

    try:
        fsspec.get_filesystem_class(url.partition("://")[0])
    except (ImportError, ValueError) as error:
        raise settings.refusal("artifact_url", f"{error}".rstrip("."), remedy) from None
