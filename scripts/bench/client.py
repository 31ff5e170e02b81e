"""A client of `/v1/completions` that needs little CPU time.

It opens a socket for each stream and reads its lines without an HTTP library.
"""

import asyncio
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter as now
from urllib.parse import urlsplit


@dataclass
class Stream:
    """A streamed completion.

    Times are those of `time.perf_counter`, and infinite until they are known.
    """

    started_at: float
    text: str = ""
    first_at: float = math.inf
    ended_at: float = math.inf
    completion_tokens: int = 0


def complete_all(url: str, prompts: Sequence[Sequence[int]], length: int) -> list[Stream]:
    """Send all prompts at the same time, and return their greedy streams of `length` tokens."""

    async def gather() -> list[Stream]:
        return await asyncio.gather(*(_complete(url, prompt, length) for prompt in prompts))

    return asyncio.run(gather())


async def _complete(url: str, prompt: Sequence[int], length: int) -> Stream:
    """Return the stream of one prompt.

    Raise RuntimeError, with the server's answer, if it is not a stream of `length` tokens.
    """
    body = {
        "prompt": prompt,
        "max_tokens": length,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
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
    if b" 200 " not in lines[0] or stream.completion_tokens != length:
        raise RuntimeError(f"not a whole stream: {b''.join(lines[:1] + lines[-3:]).decode()}")
    stream.ended_at = now()
    return stream


def _read(stream: Stream, chunk: dict[str, object]) -> None:
    """Add a chunk to the stream."""
    choices = chunk.get("choices")
    usage = chunk.get("usage")
    if isinstance(choices, list) and choices and choices[0]["text"]:
        stream.first_at = min(stream.first_at, now())
        stream.text += choices[0]["text"]
    if isinstance(usage, dict):
        stream.completion_tokens = usage["completion_tokens"]
