"""A client of `/v1/completions` that needs little CPU time.

It opens a socket for each stream and reads its lines without an HTTP library.
"""

import asyncio
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from time import perf_counter as now
from typing import Any
from urllib.parse import urlsplit


@dataclass
class Stream:
    """A streamed completion.

    `moments` are those at which a piece of the text came.

    Times are those of `time.perf_counter`, and infinite until they are known.
    """

    started_at: float
    text: str = ""
    moments: list[float] = field(default_factory=list)
    ended_at: float = math.inf
    completion_tokens: int = 0

    @property
    def first_at(self) -> float:
        return self.moments[0] if self.moments else math.inf


def complete_all(url: str, prompts: Sequence[Sequence[int]], length: int) -> list[Stream]:
    """Send all prompts at the same time, and return their greedy streams of `length` tokens."""

    async def gather() -> list[Stream]:
        streams = []
        for prompt in prompts:
            body = {
                "prompt": prompt,
                "max_tokens": length,
                "temperature": 0,
                "stream": True,
                "stream_options": {"include_usage": True},
            }
            streams.append(stream_completion(url, body, length))
        return await asyncio.gather(*streams)

    return asyncio.run(gather())


async def stream_completion(url: str, body: Mapping[str, Any], length: int) -> Stream:
    """Return the stream that answers a request with this body.

    Raise RuntimeError, with the server's answer, if it is not a whole stream. If the body asks for
    usage, a whole stream has `length` tokens.
    """
    data = json.dumps(body).encode()
    address = urlsplit(url)
    head = (
        "POST /v1/completions HTTP/1.1\r\n"
        f"Host: {address.netloc}\r\n"
        "Content-Type: application/json\r\n"
        "Connection: close\r\n"
        f"Content-Length: {len(data)}\r\n"
        "\r\n"
    )

    stream = Stream(now())
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    writer.write(head.encode() + data)
    lines = [await reader.readline()]
    while (line := await reader.readline()) and b"[DONE]" not in line:
        lines.append(line)
        if line.startswith(b"data: "):
            _read(stream, json.loads(line.removeprefix(b"data: ")))
    writer.close()
    is_whole = b" 200 " in lines[0] and bool(stream.text)
    if "stream_options" in body:
        is_whole = is_whole and stream.completion_tokens == length
    if not is_whole:
        raise RuntimeError(f"not a whole stream: {b''.join(lines[:1] + lines[-3:]).decode()}")
    stream.ended_at = now()
    return stream


def _read(stream: Stream, chunk: dict[str, object]) -> None:
    """Add a chunk to the stream."""
    choices = chunk.get("choices")
    usage = chunk.get("usage")
    if isinstance(choices, list) and choices and choices[0]["text"]:
        stream.moments.append(now())
        stream.text += choices[0]["text"]
    if isinstance(usage, dict):
        stream.completion_tokens = usage["completion_tokens"]
