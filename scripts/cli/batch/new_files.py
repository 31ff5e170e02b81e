"""The folder beside an output for the files that its answers tell of."""

import asyncio
import hashlib
from dataclasses import dataclass
from pathlib import Path

from scripts.cli.fleet_tool import ToolError
from shared.messages import ArtifactRef

_SUFFIX = ".files"


@dataclass(frozen=True)
class NewFiles:
    """The files of an output. The folder has its name with `.files`, and is made for the first."""

    output: Path

    async def write(self, data: bytes, media_type: str, name: str = "") -> ArtifactRef:
        """Write a file under the id in the reference that is returned. Raise ToolError."""
        digest = hashlib.sha256(data).hexdigest()
        ref = ArtifactRef(f"file-{digest[:24]}", media_type, len(data), digest, name)
        try:
            await asyncio.to_thread(self._write, ref.id, data)
        except OSError as error:
            raise ToolError(f"{self._folder}: {error.strerror}") from None
        return ref

    @property
    def _folder(self) -> Path:
        return self.output.with_name(self.output.name + _SUFFIX)

    def _write(self, name: str, data: bytes) -> None:
        self._folder.mkdir(exist_ok=True)
        (self._folder / name).write_bytes(data)
