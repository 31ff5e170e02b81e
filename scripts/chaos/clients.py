"""HTTP clients that wait for an answer, stream it, poll for it, or score continuations.

An ordinary client repeats no request. A persistent client knows several fronts. When one goes away
it sends the request to the next one, with the same idempotency key, or resumes the stream there
from its last event id.
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
_MAX_TRIES = 100
_PAUSE_S = 0.1
_FAILED = ("failed", "cancelled")


class FrontGone(Exception):
    """The connection broke, or the front is shutting down: another front may answer."""


class Refused(Exception):
    """The server answered with an error, whose body is the message."""


class Client:
    """A client of the fronts at `urls()`.

    It calls `urls` before each try, as fronts come and go.
    """

    def __init__(self, urls: Callable[[], Sequence[str]], *, is_persistent: bool = False) -> None:
        self._urls = urls
        self._is_persistent = is_persistent
        self._turn = count()
        self._http = httpx.AsyncClient(timeout=httpx.Timeout(300, connect=5))

    async def close(self) -> None:
        await self._http.aclose()

    async def request(self, request: ClientRequest) -> Answer:
        """Send a request and return the answer. If it fails, `error` of the answer says why."""
        answer = Answer(request)
        await self.fill(answer)
        return answer

    async def fill(self, answer: Answer) -> None:
        """Send `answer.request`, and fill in the answer as it comes."""
        max_tries = 1
        if self._is_persistent:
            max_tries = _MAX_TRIES

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
                arguments = self._post_arguments(request)
                response = await self._http.post(url + request.path, **arguments)
                _take_whole(answer, _checked(response))
        if request.steps:
            answer.texts = {0: await self._file(url, answer.file_id)}
        answer.error = ""
        answer.frames.append(time.monotonic())

    async def _stream(self, url: str, answer: Answer) -> None:
        """Read the stream from its start, or from behind the last event that this client has."""
        if answer.last_id:
            # An event id begins with the id of the request.
            path = f"/v1/jobs/{answer.last_id.partition('.')[0]}/events"
            stream = self._http.stream("GET", url + path, headers={"Last-Event-ID": answer.last_id})
        else:
            answer.texts = {}
            arguments = self._post_arguments(answer.request)
            stream = self._http.stream("POST", url + answer.request.path, **arguments)

        async with stream as response:
            if response.status_code != 200:
                await response.aread()
                _checked(response)
            async for line in response.aiter_lines():
                if line.startswith("id:"):
                    answer.last_id = line.removeprefix("id:").strip()
                elif line.startswith("data:"):
                    data = line.removeprefix("data:").strip()
                    if self._take(answer, data):
                        return
        raise FrontGone("the stream broke off")

    async def _file(self, url: str, file_id: str) -> str:
        """Return the contents of a file.

        A persistent client repeats this request apart from that for the task.
        """
        for number in range(_MAX_TRIES):
            try:
                response = await self._http.get(f"{url}/v1/artifacts/{file_id}")
                if response.status_code != 200:
                    _checked(response)
                return response.text
            except (FrontGone, httpx.TransportError):
                if not self._is_persistent or number + 1 == _MAX_TRIES:
                    raise
            await asyncio.sleep(_PAUSE_S)
            url = self._next_url()
        raise AssertionError("the last try returns or raises")

    def _take(self, answer: Answer, data: str) -> bool:
        """Add a frame of a stream to the answer, and return whether it is the last one."""
        answer.frames.append(time.monotonic())
        if data == _DONE:
            return True

        chunk = json.loads(data)
        if "error" in chunk:
            if self._is_persistent and _is_temporary(chunk["error"]):
                raise FrontGone(data)
            raise Refused(data)

        if answer.request.steps:
            _take_step(answer, chunk)
            return False
        for choice, text in _texts(chunk).items():
            answer.texts[choice] = answer.texts.get(choice, "") + text
        return False

    async def _poll(self, url: str, answer: Answer) -> None:
        """Submit the request once, by its key, and then poll until it has ended."""
        if not answer.last_id:
            arguments = self._post_arguments(answer.request)
            arguments["headers"]["Prefer"] = "respond-async"
            response = await self._http.post(url + answer.request.path, **arguments)
            answer.last_id = str(_checked(response, expected=202)["id"])

        while True:
            job = _checked(await self._http.get(f"{url}/v1/jobs/{answer.last_id}"))
            if job["state"] == "done":
                _take_whole(answer, job["result"])
                return
            if job["state"] in _FAILED:
                raise Refused(json.dumps(job))
            await asyncio.sleep(_PAUSE_S)

    def _post_arguments(self, request: ClientRequest) -> dict[str, Any]:
        """Return the body and headers of a POST, as arguments of httpx."""
        headers = {"X-Request-Id": request.name}
        if self._is_persistent or request.mode == "poll":
            headers["Idempotency-Key"] = request.name
        return {"json": request.body, "headers": headers}


async def load(client: Client, requests: Iterable[ClientRequest], num_clients: int) -> list[Answer]:
    """Send all requests, `num_clients` at a time.

    Return their answers in the order in which they end.
    """
    # All senders share this iterator, so that each request is sent once.
    pending = iter(requests)
    answers: list[Answer] = []

    async def send_some() -> None:
        for request in pending:
            answers.append(await client.request(request))

    async with asyncio.TaskGroup() as group:
        for _ in range(num_clients):
            group.create_task(send_some())
    return answers


def _checked(response: httpx.Response, expected: int = 200) -> Any:
    """Return the JSON of a response with the expected status.

    Raises FrontGone for 503, and Refused for any other status.
    """
    if response.status_code == expected:
        return response.json()
    message = f"{response.status_code}: {response.text[:300]}"
    if response.status_code == 503:
        raise FrontGone(message)
    raise Refused(message)


def _is_temporary(error: Any) -> bool:
    """Return whether the same request may succeed on another front or later."""
    return isinstance(error, dict) and error.get("code") in (
        "draining",
        "broker_unavailable",
        "no_worker",
    )


def _take_whole(answer: Answer, body: Any) -> None:
    """Fill in the answer from the body of a whole result."""
    if answer.request.steps:
        answer.file_id = body["file"]["id"]
    elif answer.request.mode == "scoring":
        answer.texts = {0: json.dumps(body["ll"])}
    else:
        answer.texts = _texts(body)


def _take_step(answer: Answer, frame: Any) -> None:
    """Add a frame of an echo task, which is its opening, its progress, or the whole result."""
    if frame.get("object") == "job.progress":
        answer.steps_done.append(frame["done"])
    elif "file" in frame:
        _take_whole(answer, frame)


def _texts(body: Any) -> dict[int, str]:
    return {choice["index"]: choice["text"] for choice in body["choices"]}
