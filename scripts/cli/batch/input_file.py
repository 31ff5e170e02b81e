"""The input of `aios batch run`: the lines of OpenAI's batches, or bare prompts.

A line may be a request as in `/v1/batches`. It may also be a prompt as a JSON string, or the body
of a completion, an object with `prompt` or `messages`. These get a `custom_id` from the number of
their line, and are greedy and short unless they say otherwise.
"""

import json
from collections.abc import AsyncGenerator, AsyncIterator, Hashable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from api.batches.batch_posts import BATCH_POSTS
from api.batches.lines import BatchLine, LineFault, RawLine, duplicate, raw_lines, read_line
from scripts.cli.fleet_tool import ToolError

_PIECE = 1 << 20
_URLS = {"prompt": "/v1/completions", "messages": "/v1/chat/completions"}
_BARE = {"max_tokens": 128, "temperature": 0.0, "seed": 0}
"""The fields of a bare prompt, unless it has its own."""


@dataclass(frozen=True)
class InputFile:
    """A file of lines, each of at most `max_line_bytes`."""

    path: Path
    max_line_bytes: int

    async def lines(self) -> AsyncGenerator[BatchLine | LineFault, None]:
        """Yield the lines that are not blank. A `custom_id` is a request's only the first time."""
        seen: set[str] = set()
        async for raw in raw_lines(self._pieces(), max_bytes=self.max_line_bytes):
            if raw.is_blank:
                continue
            line = read_line(_as_request(raw), url=None, max_bytes=self.max_line_bytes)
            if isinstance(line, BatchLine) and line.url not in BATCH_POSTS:
                known = f"url: expected one of {', '.join(sorted(BATCH_POSTS))}"
                message = f"{known}; got {line.url[:256]!r}."
                line = LineFault(line.number, line.custom_id, "mismatched_url", message)
            elif isinstance(line, BatchLine) and line.custom_id in seen:
                line = duplicate(line)
            if isinstance(line, BatchLine):
                seen.add(line.custom_id)
            yield line

    async def _pieces(self) -> AsyncIterator[bytes]:
        try:
            with self.path.open("rb") as file:
                while piece := file.read(_PIECE):
                    yield piece
        except OSError as error:
            raise ToolError(f"{self.path}: {error.strerror}") from None


async def numbers_of(file: InputFile) -> dict[Hashable, int]:
    """Return the number of each line of an input by the line's id.

    Raise ToolError for a file that cannot be read, and for one without a line.
    """
    numbers: dict[Hashable, int] = {}
    async for line in file.lines():
        numbers[id_of_line(line)] = line.number
    if not numbers:
        raise ToolError(f"{file.path}: expected lines of requests; the file has none")
    return numbers


def id_of_line(line: BatchLine | LineFault) -> Hashable:
    """Return the id by which the answer of a line is found again.

    It is the `custom_id` of a request, and the number of a line that is none.
    """
    return line.custom_id if isinstance(line, BatchLine) else line.number


def id_of_answer(answer: Mapping[str, Any]) -> Hashable:
    """Return the id of the line that a line of the output answers. Raise KeyError, TypeError."""
    # Only what is wrong with the line itself has no response.
    if answer["response"] is None:
        return int(answer["line"])
    return str(answer["custom_id"])


def with_model(line: BatchLine, model: str | None) -> BatchLine:
    """Return a line that asks for `model`, if it asks for none."""
    if model is None:
        return line
    try:
        body = json.loads(line.body)
    except (ValueError, RecursionError):
        return line
    if not isinstance(body, dict) or body.get("model") is not None:
        return line
    return replace(line, body=json.dumps({**body, "model": model}).encode())


def _as_request(raw: RawLine) -> RawLine:
    """Return a bare prompt as a request, and any other line as it is."""
    if raw.data is None:
        return raw
    try:
        value = json.loads(raw.data)
    except (ValueError, RecursionError):
        return raw
    if isinstance(value, str):
        value = {"prompt": value}
    if not isinstance(value, dict) or "body" in value:
        return raw
    for name, url in _URLS.items():
        if name in value:
            request = {
                "custom_id": f"line-{raw.number}",
                "method": "POST",
                "url": url,
                "body": {**_BARE, **value},
            }
            return replace(raw, data=json.dumps(request).encode())
    return raw
