"""Reading a stream of server-sent events as the standard says, so that tests see what a client
sees."""

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import httpx


@dataclass(frozen=True)
class Frame:
    """One event; `id` is the last one given up to and with it."""

    id: str
    data: str

    @property
    def json(self) -> Any:
        return json.loads(self.data)

    @property
    def text(self) -> str:
        """What a completion's chunk adds; "" for any other frame."""
        return (
            ""
            if self.data == "[DONE]"
            else "".join(c["text"] for c in self.json.get("choices", ()))
        )


async def read(lines: AsyncIterator[str]) -> AsyncIterator[Frame]:
    id, data = "", None
    async for line in lines:
        name, _, value = line.partition(": ")
        if name == "id":
            id = value
        elif name == "data":
            assert data is None, "every event of ours has one line of data"
            data = value
        elif not line:
            assert data is not None, "an event without data makes clients fail"
            yield Frame(id, data)
            data = None


async def read_all(answer: httpx.Response) -> list[Frame]:
    assert answer.status_code == 200, answer.text if answer.is_closed else answer.status_code
    return [frame async for frame in read(answer.aiter_lines())]


def frames(answer: httpx.Response) -> list[Frame]:
    """Of an answer that was read whole."""
    found: list[Frame] = []
    id = ""
    for block in answer.text.split("\n\n"):
        fields = [
            line.partition(": ")[::2]
            for line in block.splitlines()
            if line and not line.startswith(":")
        ]
        id = dict(fields).get("id", id)
        found += [Frame(id, value) for name, value in fields if name == "data"]
    return found
