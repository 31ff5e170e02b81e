"""The files of a batch: its input, the parts of its answers, and the files that its caller gets."""

from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing, suppress

from api.batches.line_answers import not_run
from api.batches.lines import RawLine, custom_id_of, raw_lines
from shared.artifacts.store import ArtifactStore, Label, Upload
from shared.errors import ArtifactNotFound, StorageUnavailable
from shared.queue.batches import Batch, BatchEnding, LineOutcome

Results = Mapping[int, tuple[LineOutcome, bytes]]
"""Answers by their lines: the file that each belongs to, and its JSON."""

JSONL = "application/jsonl"
_PARTS_TENANT = "/batches"
"""The owner of parts. No caller's tenant has such a name."""


class BatchFiles:
    """Reads and writes the files of batches, in a `store` without quotas.

    What a caller has waited for is kept even where it goes beyond the quota. Files are kept for
    `ttl_s`, unless the caller wants less. `max_line_bytes` returns the most bytes of a line for an
    endpoint.
    """

    def __init__(
        self, store: ArtifactStore, *, ttl_s: float, max_line_bytes: Callable[[str], int]
    ) -> None:
        self.max_line_bytes = max_line_bytes
        self._store = store
        self._ttl_s = ttl_s

    async def lines(
        self, batch: Batch, *, first: int = 1, offset: int = 0
    ) -> AsyncGenerator[RawLine, None]:
        """Yield the lines of the input from the one that begins at `offset`.

        Raise ArtifactNotFound for an input that was deleted, and StorageUnavailable.
        """
        artifact = await self._store.find(batch.tenant, batch.spec.input_file_id)
        pieces = await self._store.read(artifact, offset)
        async with aclosing(pieces):
            max_bytes = self.max_line_bytes(batch.spec.endpoint)
            lines = raw_lines(pieces, first=first, offset=offset, max_bytes=max_bytes)
            async for line in lines:
                yield line

    async def keep_part(self, lines: Sequence[bytes]) -> str:
        """Keep a part of a file. Return its id, "" for a part without lines."""
        if not lines:
            return ""
        data = b"".join([line + b"\n" for line in lines])
        return (await self._store.put(_PARTS_TENANT, data, Label(JSONL, purpose="part"))).id

    async def write(
        self, batch: Batch, results: Results, ending: BatchEnding
    ) -> tuple[str | None, str | None]:
        """Write the files of answers and of errors. Return their ids, None for a file without lines.

        Lines are in the order of the input. Those that were not run are among the errors.
        """
        tenant = batch.tenant
        async with self._store.upload(tenant) as outputs, self._store.upload(tenant) as errors:
            for part in batch.output_parts:
                await self._copy(part, outputs)
            for part in batch.error_parts:
                await self._copy(part, errors)
            async with aclosing(self._rest(batch, results, ending)) as rest:
                async for outcome, line in rest:
                    upload = outputs if outcome == "completed" else errors
                    await upload.write(line + b"\n")
            output_id = await self._keep(batch, outputs, "output")
            error_id = await self._keep(batch, errors, "error")
        return output_id, error_id

    async def remove_parts(self, batch: Batch) -> None:
        """Remove the parts of a batch that has ended. What remains of them expires."""
        for part in (*batch.output_parts, *batch.error_parts):
            with suppress(ArtifactNotFound, StorageUnavailable):
                await self._store.delete(_PARTS_TENANT, part)

    async def _rest(
        self, batch: Batch, results: Results, ending: BatchEnding
    ) -> AsyncGenerator[tuple[LineOutcome, bytes], None]:
        """Yield the lines behind the parts: their answers, or that they were not run."""
        if ending != "completed":
            try:
                lines = self.lines(batch, first=batch.next_line, offset=batch.next_offset)
                async with aclosing(lines):
                    async for raw in lines:
                        if raw.number in results:
                            yield results[raw.number]
                        elif not raw.is_blank:
                            custom_id = custom_id_of(raw)
                            yield "failed", not_run(batch.id, raw.number, custom_id, ending)
                return
            except ArtifactNotFound:
                # Without its input nobody knows the names of the lines that were not run. It is
                # missed before the first line.
                pass
        for number in sorted(results):
            yield results[number]

    async def _copy(self, part: str, upload: Upload) -> None:
        artifact = await self._store.find(_PARTS_TENANT, part)
        async for piece in await self._store.read(artifact):
            await upload.write(piece)

    async def _keep(self, batch: Batch, upload: Upload, kind: str) -> str | None:
        if upload.num_bytes == 0:
            return None
        lives_s = self._ttl_s
        if batch.spec.output_lives_s is not None:
            lives_s = min(lives_s, batch.spec.output_lives_s)
        name = f"{batch.id}_{kind}.jsonl"
        label = Label(JSONL, name=name, purpose="batch_output", lives_s=lives_s)
        return (await upload.keep(label)).id
