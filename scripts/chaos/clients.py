"""Clients as they are out there, which wait for an answer, stream it, poll for it, or ask for
scores.

A client of one front repeats nothing. A persistent client knows several fronts: when one goes away
it asks the next one for the same work, by its idempotency key or from the last event id that it has
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
    """The front broke off, or refuses because it is leaving: another one should be asked."""


class Refused(Exception):
    """The server answered with an error, which the message holds in the server's words."""


class Client:
    """A client of the fronts at `urls()`, which is called anew for each try: fronts come and go."""

    def __init__(self, urls: Callable[[], Sequence[str]], *, is_persistent: bool = False) -> None:
        self._urls = urls
        self._is_persistent = is_persistent
        self._turn = count()
        self._http = httpx.AsyncClient(timeout=httpx.Timeout(300, connect=5))

    async def close(self) -> None:
        await self._http.aclose()

    async def request(self, request: ClientRequest) -> Answer:
        """Return the answer, whatever it takes. If none can be had, its `error` says why."""
        answer = Answer(request)
        await self.fill(answer)
        return answer

    async def fill(self, answer: Answer) -> None:
        """Ask for `answer.request`, and fill in the answer as it comes."""
        max_tries = 1
        if self._is_persistent:
            max_tries = _TRIES

        for number in range(1, max_tries + 1):
            answer.tries = number
            try:
                await self._try(self._next_url(), answer)
                return
            except (FrontGone, httpx.TransportError) as error:
                answer.error = repr(error)
            except Refused as error:
                answer.error = str(error)
                return
            await asyncio.sleep(_PAUSE_S)

    def _next_url(self) -> str:
        urls = self._urls()
        return urls[next(self._turn) % len(urls)]

    async def _try(self, url: str, answer: Answer) -> None:
        request = answer.request
        match request.mode:
            case "sse":
                await self._stream(url, answer)
            case "poll":
                await self._poll(url, answer)
            case _:
                reply = await self._http.post(url + request.path, **self._order(request))
                _take_whole(answer, _checked(reply))
        if request.steps:
            answer.said = {0: await self._file(url, answer.file_id)}
        answer.error = ""
        answer.frames.append(time.monotonic())

    async def _stream(self, url: str, answer: Answer) -> None:
        """Read the stream from its start, or from behind the last event that this client has
        seen."""
        if answer.last_id:
            # An event id begins with the id of the request.
            path = f"/v1/jobs/{answer.last_id.partition('.')[0]}/events"
            stream = self._http.stream("GET", url + path, headers={"Last-Event-ID": answer.last_id})
        else:
            answer.said = {}
            order = self._order(answer.request)
            stream = self._http.stream("POST", url + answer.request.path, **order)

        async with stream as reply:
            if reply.status_code != 200:
                await reply.aread()
                _checked(reply)
            async for line in reply.aiter_lines():
                if line.startswith("id:"):
                    answer.last_id = line.removeprefix("id:").strip()
                elif line.startswith("data:"):
                    data = line.removeprefix("data:").strip()
                    if self._take(answer, data):
                        return
        raise FrontGone("the stream broke off")

    async def _file(self, url: str, file_id: str) -> str:
        """Return the contents of a file.

        It is asked for by a request of its own, which a persistent client repeats on its own too.
        """
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
            url = self._next_url()
        raise AssertionError("the last try returns or raises")

    def _take(self, answer: Answer, data: str) -> bool:
        """Take a frame of a stream, and return whether it was the last one."""
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
        """Submit the request once, by its key, and then poll until it has ended."""
        if not answer.last_id:
            order = self._order(answer.request)
            order["headers"]["Prefer"] = "respond-async"
            reply = await self._http.post(url + answer.request.path, **order)
            answer.last_id = str(_checked(reply, expected=202)["id"])

        while True:
            job = _checked(await self._http.get(f"{url}/v1/jobs/{answer.last_id}"))
            if job["state"] == "done":
                _take_whole(answer, job["result"])
                return
            if job["state"] in _FAILED:
                raise Refused(json.dumps(job))
            await asyncio.sleep(_PAUSE_S)

    def _order(self, request: ClientRequest) -> dict[str, Any]:
        """Return the body and headers of a POST, as arguments of httpx."""
        headers = {"X-Request-Id": request.name}
        if self._is_persistent or request.mode == "poll":
            headers["Idempotency-Key"] = request.name
        return {"json": request.body, "headers": headers}


async def load(client: Client, asks: Iterable[ClientRequest], num_clients: int) -> list[Answer]:
    """Send all requests, `num_clients` at a time, and return their answers as they ended."""
    requests = iter(asks)
    answers: list[Answer] = []

    async def one_after_the_other() -> None:
        for request in requests:
            answers.append(await client.request(request))

    async with asyncio.TaskGroup() as group:
        for _ in range(num_clients):
            group.create_task(one_after_the_other())
    return answers


def _checked(reply: httpx.Response, expected: int = 200) -> Any:
    """Return the JSON of a reply with the expected status. Raises FrontGone for 503, and Refused
    for any other status."""
    if reply.status_code == expected:
        return reply.json()
    message = f"{reply.status_code}: {reply.text[:300]}"
    if reply.status_code == 503:
        raise FrontGone(message)
    raise Refused(message)


def _is_passing(error: Any) -> bool:
    """Return whether an error says that the same request may succeed elsewhere or later."""
    return isinstance(error, dict) and error.get("code") in (
        "draining",
        "broker_unavailable",
        "no_worker",
    )


def _take_whole(answer: Answer, body: Any) -> None:
    """Take the whole answer of a request."""
    if answer.request.steps:
        answer.file_id = body["file"]["id"]
    elif answer.request.mode == "scoring":
        answer.said = {0: json.dumps(body["ll"])}
    else:
        answer.said = _texts(body)


def _take_step(answer: Answer, frame: Any) -> None:
    """Take a frame of an echo task, which is its opening, its progress, or the whole answer."""
    if frame.get("object") == "job.progress":
        answer.steps_done.append(frame["done"])
    elif "file" in frame:
        _take_whole(answer, frame)


def _texts(body: Any) -> dict[int, str]:
    return {choice["index"]: choice["text"] for choice in body["choices"]}
