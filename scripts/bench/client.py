"""A light client of `/v1/completions`: one socket per stream, lines read as they come, no HTTP
library."""

import asyncio
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter as now
from urllib.parse import urlsplit


@dataclass
class Stream:
    """One streamed completion; times by `time.perf_counter`."""

    begun_at: float
    text: str = ""
    first_at: float = math.inf
    ended_at: float = math.inf
    completion_tokens: int = 0


def complete_all(url: str, prompts: Sequence[Sequence[int]], length: int) -> list[Stream]:
    """Greedy streams of all prompts, all asked for at once."""

    async def gather() -> list[Stream]:
        return await asyncio.gather(*(_complete(url, prompt, length) for prompt in prompts))

    return asyncio.run(gather())


async def _complete(url: str, prompt: Sequence[int], length: int) -> Stream:
    """RuntimeError with the server's words if it is anything but a whole stream."""
    body = {"prompt": prompt, "max_tokens": length, "temperature": 0, "stream": True}
    data = json.dumps(body | {"stream_options": {"include_usage": True}}).encode()
    address = urlsplit(url)
    stream = Stream(now())
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    head = (
        f"POST /v1/completions HTTP/1.1\r\nHost: {address.netloc}\r\nContent-Type: "
        "application/json\r\n"
    )
    writer.write(f"{head}Connection: close\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data)
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
    choices, usage = chunk.get("choices"), chunk.get("usage")
    if isinstance(choices, list) and choices and choices[0]["text"]:
        stream.first_at = min(stream.first_at, now())
        stream.text += choices[0]["text"]
    if isinstance(usage, dict):
        stream.completion_tokens = usage["completion_tokens"]
