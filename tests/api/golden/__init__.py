"""Pairs of a request and its answer, in the files beside this one, as each dialect's specification
has them.

    ### what it shows
    METHOD /path
    Header: value

    the body, in one paragraph

    STATUS media type

    the answer: JSON in any layout, or a stream to the letter

A stream of events ends with the blank line of its last event, which files leave out. What differs
each time stands as `normal` writes it.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

_VOLATILE = (
    (re.compile(r"\b[0-9a-f]{34}\b"), "<job>"),
    (re.compile(r"\bfile-[0-9a-f]{32}\b"), "file-" + "5" * 32),
    (re.compile(r'"created":\d+'), '"created":0'),
    (re.compile(r'"(\w+_s|\w+_ms|generation_time|tokens_per_second)":[\d.]+'), r'"\1":0'),
)
REQUEST_ID = "golden"


@dataclass(frozen=True)
class Pair:
    name: str
    method: str
    path: str
    headers: dict[str, str]
    body: Any
    status: int
    media_type: str
    answer: str

    @property
    def expected(self) -> Any:
        """Return what `comparable` should return for the answer."""
        if self.media_type == "application/json":
            return json.loads(self.answer)
        return self.answer + "\n\n" if self.media_type == "text/event-stream" else self.answer


def comparable(answer: httpx.Response) -> Any:
    """Return an answer's JSON, or its text, with what differs each time made the same.

    Times that are null stay so. Plain text is without the line ends behind it, which pairs in a
    file cannot tell.
    """
    text = normal(answer.text)
    if media_type(answer) == "application/json":
        return json.loads(text)
    return text if media_type(answer) == "text/event-stream" else text.rstrip("\n")


def media_type(answer: httpx.Response) -> str:
    return answer.headers["content-type"].partition(";")[0]


def normal(text: str) -> str:
    for pattern, instead in _VOLATILE:
        text = pattern.sub(instead, text)
    return text


def pairs() -> list[Pair]:
    found = [pair for file in sorted(Path(__file__).parent.glob("*.http")) for pair in _read(file)]
    assert len({pair.name for pair in found}) == len(found), "names tell them apart"
    return found


def _read(file: Path) -> list[Pair]:
    blocks = file.read_text(encoding="utf-8").split("### ")[1:]
    return [
        _pair(f"{file.stem}: {name}", rest)
        for name, _, rest in (block.partition("\n") for block in blocks)
    ]


def _pair(name: str, text: str) -> Pair:
    head, body, outcome, answer = text.split("\n\n", 3)
    request, *lines = head.splitlines()
    method, path = request.split()
    status, media_type = outcome.split(" ", 1)
    headers = dict(line.split(": ", 1) for line in lines)
    return Pair(
        name, method, path, headers, json.loads(body), int(status), media_type, answer.rstrip("\n")
    )
