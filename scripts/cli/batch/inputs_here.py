"""The files in lines that are answered in this process, which engines read from memory."""

import itertools
from collections.abc import Iterable

from api.submit.byte_inputs import StoredBytes, byte_input_of
from shared.errors import ArtifactNotFound, InvalidRequest
from worker.engine.task_runner import FilesAtHand


class InputsHere:
    """The bytes of inputs, each at most `max_bytes`. Engines read them by `files`."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._data: dict[str, bytes] = {}
        self._numbers = itertools.count()
        self.files = FilesAtHand(self._data)

    def keep(self, text: str, name: str) -> str:
        """Keep the bytes that a field of this name holds. Return the id by which tasks name them.

        Raise InvalidRequest, PayloadTooLarge, and ArtifactNotFound for the id of a stored file.
        """
        given = byte_input_of(text, name=name, max_bytes=self._max_bytes)
        if isinstance(given, StoredBytes):
            raise ArtifactNotFound(f"{name}: there are no stored files here.")
        if not given.data:
            raise InvalidRequest(f"{name}: expected at least one byte.", field=name)
        key = f"input-{next(self._numbers)}"
        self._data[key] = given.data
        return key

    def drop(self, keys: Iterable[str]) -> None:
        """Forget inputs."""
        for key in keys:
            self._data.pop(key, None)
