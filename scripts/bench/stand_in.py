"""A stand-in for an engine in OpenAI's dialect: each answer gets a token every so many milliseconds.

    python -m scripts.bench.stand_in --port 8001 --step-ms 20

It knows `/v1/models` and streams of `/v1/completions`. The first token comes after one step, as if
the prompt took one. An answer has always `max_tokens` tokens.
"""

import argparse
import asyncio
import json
from collections.abc import Sequence
from typing import Any

MODEL = "stand-in"
_TOKEN = " word"


class StandIn:
    """The connections of a stand-in. Each is kept for the next request."""

    def __init__(self, step_s: float) -> None:
        self._step_s = step_s

    async def serve(self, port: int) -> None:
        """Answer until the task is cancelled."""
        server = await asyncio.start_server(self._connected, "127.0.0.1", port)
        async with server:
            await server.serve_forever()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                path, body = await _request(reader)
                await self._answer(path, body, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the client has closed it
        finally:
            writer.close()

    async def _answer(self, path: str, body: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        if path == "/v1/models":
            listed = [{"id": MODEL, "object": "model", "max_model_len": 4096}]
            _send(writer, "200 OK", {"object": "list", "data": listed})
        elif path != "/v1/completions":
            _send(writer, "404 Not Found", {"error": {"message": "no such path"}})
        elif not body.get("stream"):
            _send(writer, "400 Bad Request", {"error": {"message": "only streams are answered"}})
        else:
            await self._stream(int(body["max_tokens"]), writer)

    async def _stream(self, num_tokens: int, writer: asyncio.StreamWriter) -> None:
        loop = asyncio.get_running_loop()
        due_s = loop.time()
        writer.write(
            b"HTTP/1.1 200 OK\r\n"
            b"Content-Type: text/event-stream\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n"
        )
        for number in range(1, num_tokens + 1):
            due_s += self._step_s
            await asyncio.sleep(due_s - loop.time())
            reason = "length" if number == num_tokens else None
            _send_frame(writer, {"index": 0, "text": _TOKEN, "finish_reason": reason})
            await writer.drain()
        usage = {"prompt_tokens": 8, "completion_tokens": num_tokens}
        _send_chunk(writer, json.dumps({"choices": [], "usage": usage}))
        _send_chunk(writer, "[DONE]")
        writer.write(b"0\r\n\r\n")
        await writer.drain()


async def _request(reader: asyncio.StreamReader) -> tuple[str, dict[str, Any]]:
    """Return the path and the JSON body of the next request."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    request_line, *headers = head.split("\r\n")
    length = 0
    for line in headers:
        name, _, value = line.partition(":")
        if name.lower() == "content-length":
            length = int(value)
    content = await reader.readexactly(length)
    body = json.loads(content) if content else {}
    return request_line.split(" ")[1], body


def _send(writer: asyncio.StreamWriter, status: str, body: object) -> None:
    content = json.dumps(body).encode()
    head = (
        f"HTTP/1.1 {status}\r\n"
        "Content-Type: application/json\r\n"
        f"Content-Length: {len(content)}\r\n\r\n"
    )
    writer.write(head.encode() + content)


def _send_frame(writer: asyncio.StreamWriter, choice: dict[str, Any]) -> None:
    chunk = {"id": "cmpl-1", "object": "text_completion", "model": MODEL, "choices": [choice]}
    _send_chunk(writer, json.dumps(chunk))


def _send_chunk(writer: asyncio.StreamWriter, data: str) -> None:
    event = f"data: {data}\n\n".encode()
    writer.write(b"%x\r\n%b\r\n" % (len(event), event))


def main(argv: Sequence[str] | None = None) -> None:
    """Serve until the process is ended."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--port", type=int, default=8001)
    parser.add_argument("--step-ms", type=float, default=20.0)
    args = parser.parse_args(argv)
    asyncio.run(StandIn(args.step_ms / 1000).serve(args.port))


if __name__ == "__main__":
    main()
