"""Clients as they are out there: they wait, stream, poll or score, and know what an undisturbed run
would have said.

A client of one front repeats nothing. One that knows several is persistent: when a front goes away
it asks the next one for the same work, by its idempotency key, or from the last event id it has
seen.
"""

import asyncio
import json
import time
from collections.abc import Callable, Iterable, Sequence
from itertools import count
from typing import Any

import httpx

from scripts.chaos.requests import Answer, ClientRequest

_DONE = "[DONE]"
_TRIES = 100
_PAUSE_S = 0.1
_FAILED = ("failed", "cancelled")


class FrontGone(Exception):
    """The front broke off, or refuses because it is leaving: ask another one."""


class Client:
    """Asks `urls()`, which is looked at for each try: fronts come and go."""

    def __init__(self, urls: Callable[[], Sequence[str]], *, is_persistent: bool = False) -> None:
        self._urls = urls
        self._is_persistent = is_persistent
        self._turn = count()
        self._http = httpx.AsyncClient(timeout=httpx.Timeout(300, connect=5))

    async def close(self) -> None:
        await self._http.aclose()

    async def request(self, request: ClientRequest) -> Answer:
        """The answer, whatever it takes; what cannot be had is its `error`."""
        answer = Answer(request)
        await self.fill(answer)
        return answer

    async def fill(self, answer: Answer) -> None:
        """The same, for who wants to see it come."""
        for answer.tries in range(1, (_TRIES if self._is_persistent else 1) + 1):
            urls = self._urls()
            try:
                await self._try(urls[next(self._turn) % len(urls)], answer)
                return
            except (FrontGone, httpx.TransportError) as error:
                answer.error = repr(error)
            except Refused as error:
                answer.error = str(error)
                return
            await asyncio.sleep(_PAUSE_S)

    async def _try(self, url: str, answer: Answer) -> None:
        match answer.request.mode:
            case "sse":
                await self._stream(url, answer)
            case "poll":
                await self._poll(url, answer)
            case _:
                said = _checked(
                    await self._http.post(url + answer.request.path, **self._order(answer.request))
                )
                _take_whole(answer, said)
        if answer.request.steps:
            answer.said = {0: await self._file(url, answer.file_id)}
        answer.error = ""
        answer.frames.append(time.monotonic())

    async def _stream(self, url: str, answer: Answer) -> None:
        """From the start, or behind the last event that this client has seen."""
        if answer.last_id:
            path = f"/v1/jobs/{answer.last_id.partition('.')[0]}/events"
            asking = self._http.stream("GET", url + path, headers={"Last-Event-ID": answer.last_id})
        else:
            answer.said = {}
            asking = self._http.stream(
                "POST", url + answer.request.path, **self._order(answer.request)
            )
        async with asking as reply:
            if reply.status_code != 200:
                await reply.aread()
                _checked(reply)
            async for line in reply.aiter_lines():
                if line.startswith("id:"):
                    answer.last_id = line[3:].strip()
                elif line.startswith("data:") and self._take(answer, line[5:].strip()):
                    return
        raise FrontGone("the stream broke off")

    async def _file(self, url: str, file_id: str) -> str:
        """Return what a file has. It is asked for by a request of its own, which the persistent
        repeat by itself."""
        for number in range(_TRIES):
            try:
                reply = await self._http.get(f"{url}/v1/artifacts/{file_id}")
                if reply.status_code != 200:
                    _checked(reply)
                return reply.text
            except (FrontGone, httpx.TransportError):
                if not self._is_persistent or number + 1 == _TRIES:
                    raise
            await asyncio.sleep(_PAUSE_S)
            urls = self._urls()
            url = urls[next(self._turn) % len(urls)]
        raise AssertionError("the last try returns or raises")

    def _take(self, answer: Answer, data: str) -> bool:
        """Whether that was the end."""
        answer.frames.append(time.monotonic())
        if data == _DONE:
            return True
        chunk = json.loads(data)
        if "error" in chunk:
            if self._is_persistent and _is_passing(chunk["error"]):
                raise FrontGone(data)
            raise Refused(data)
        if answer.request.steps:
            _take_step(answer, chunk)
            return False
        for choice, text in _texts(chunk).items():
            answer.said[choice] = answer.said.get(choice, "") + text
        return False

    async def _poll(self, url: str, answer: Answer) -> None:
        """Submitted once by its key; then looked at until it has ended."""
        order = self._order(answer.request)
        order["headers"]["Prefer"] = "respond-async"
        if not answer.last_id:
            answer.last_id = str(
                _checked(await self._http.post(url + answer.request.path, **order), 202)["id"]
            )
        while True:
            job = _checked(await self._http.get(f"{url}/v1/jobs/{answer.last_id}"))
            if job["state"] == "done":
                _take_whole(answer, job["result"])
                return
            if job["state"] in _FAILED:
                raise Refused(json.dumps(job))
            await asyncio.sleep(_PAUSE_S)

    def _order(self, request: ClientRequest) -> dict[str, Any]:
        headers = {"X-Request-Id": request.name}
        if self._is_persistent or request.mode == "poll":
            headers["Idempotency-Key"] = request.name
        return {"json": request.body, "headers": headers}


class Refused(Exception):
    """An answer that is no answer, in the server's words."""


async def load(client: Client, asks: Iterable[ClientRequest], num_clients: int) -> list[Answer]:
    """All asks, `num_clients` at a time."""
    left, answers = iter(asks), []

    async def one_after_the_other() -> None:
        for request in left:
            answers.append(await client.request(request))

    async with asyncio.TaskGroup() as group:
        for _ in range(num_clients):
            group.create_task(one_after_the_other())
    return answers


def _checked(reply: httpx.Response, expected: int = 200) -> Any:
    if reply.status_code == expected:
        return reply.json()
    words = f"{reply.status_code}: {reply.text[:300]}"
    if reply.status_code == 503:
        raise FrontGone(words)
    raise Refused(words)


def _is_passing(error: Any) -> bool:
    return isinstance(error, dict) and error.get("code") in (
        "draining",
        "broker_unavailable",
        "no_worker",
    )


def _take_whole(answer: Answer, body: Any) -> None:
    """Take an answer that came at once."""
    if answer.request.steps:
        answer.file_id = body["file"]["id"]
    elif answer.request.mode == "scoring":
        answer.said = {0: json.dumps(body["ll"])}
    else:
        answer.said = _texts(body)


def _take_step(answer: Answer, frame: Any) -> None:
    """Take a frame of a task that is done whole: its opening, a step, or the whole answer."""
    if frame.get("object") == "job.progress":
        answer.steps_done.append(frame["done"])
    elif "file" in frame:
        _take_whole(answer, frame)


def _texts(body: Any) -> dict[int, str]:
    return {choice["index"]: choice["text"] for choice in body["choices"]}
