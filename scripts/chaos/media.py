"""The scenario of pictures and sounds: workers are killed while they look, listen, paint and tell.

The plan's `media` is a folder with a model for each of `TASKS`, in a folder of the task's name.
"""

import asyncio
import base64
import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from PIL import Image

from scripts.chaos import faults
from scripts.chaos.criteria import ExperimentPlan, ScenarioResult
from scripts.chaos.faults import every
from scripts.chaos.invariants import all_ended, traces, violations
from scripts.chaos.processes import fleet
from scripts.chaos.requests import Mode
from worker.media.images import png_of
from worker.media.sound import encode_sound

TELLING = "image-text-to-text"
TASKS = ("image-classification", "automatic-speech-recognition", "text-to-image", TELLING)
MODES: tuple[Mode, ...] = ("sse", "sync", "poll")
STEPS = 60
"""The denoising steps of a picture."""
NUM_TOKENS = 60
"""The tokens of what is told about a picture."""

_FLAG = "--media"
_DISTINCT = 12
_RATE = 16_000
_PNG_HEAD = b"\x89PNG\r\n\x1a\n"
_POLL_S = 0.05
_TIMEOUT_S = 300.0
_DRAIN_S = 60.0
_TOLERANCE = 1e-5
"""Scores depend on the batch in which they are computed in their last bits."""


@dataclass(frozen=True)
class MediaRequest:
    """A request of a task with a file. With `is_uploaded` the file is sent before the request."""

    name: str
    mode: Mode
    task: str
    inputs: bytes | str
    is_uploaded: bool = False
    options: dict[str, Any] = field(default_factory=dict)


@dataclass
class MediaAnswer:
    """The answer to a request: its result without ids, its files, and the steps in its stream.

    `text` is what the stream's tokens are together.
    """

    request: MediaRequest
    result: Any = None
    files: list[bytes] = field(default_factory=list)
    steps_done: list[int] = field(default_factory=list)
    text: str = ""
    error: str = ""


class MediaClient:
    """A client of one front, which repeats no request."""

    def __init__(self, url: str) -> None:
        self._http = httpx.AsyncClient(base_url=url, timeout=_TIMEOUT_S)

    async def close(self) -> None:
        await self._http.aclose()

    async def ask(self, request: MediaRequest) -> MediaAnswer:
        answer = MediaAnswer(request)
        await self.fill(answer)
        return answer

    async def fill(self, answer: MediaAnswer) -> None:
        """Send `answer.request`, and fill in the answer as it comes."""
        try:
            body = await self._whole(answer)
            # The same bytes are one file, whoever made them: its id is not part of the answer.
            answer.result = _without_ids(body["result"])
            for file_id in _file_ids(body["result"]):
                file = await self._http.get(f"/v1/artifacts/{file_id}")
                answer.files.append(file.raise_for_status().content)
        except (httpx.HTTPError, RuntimeError) as error:
            answer.error = repr(error)

    async def _whole(self, answer: MediaAnswer) -> Any:
        """Return the body of the whole answer. Raise RuntimeError for one that is an error."""
        request = answer.request
        body = await self._body(request)
        headers = {"X-Request-Id": request.name}
        match request.mode:
            case "sse":
                return await self._streamed(answer, body, headers)
            case "poll":
                headers["Prefer"] = "respond-async"
                asked = await self._http.post("/api/inference", json=body, headers=headers)
                return await self._polled(_checked(asked)["id"])
            case _:
                return _checked(await self._http.post("/api/inference", json=body, headers=headers))

    async def _body(self, request: MediaRequest) -> dict[str, Any]:
        inputs = request.inputs
        if isinstance(inputs, bytes) and request.is_uploaded:
            inputs = _checked(await self._http.post("/v1/artifacts", content=inputs))["id"]
        elif isinstance(inputs, bytes):
            inputs = base64.b64encode(inputs).decode()
        told = {"image": inputs, "text": "a very good film"}
        return {
            "task": request.task,
            "model_id": request.task,
            "inputs": told if request.task == TELLING else inputs,
            "options": request.options,
        }

    async def _streamed(self, answer: MediaAnswer, body: Any, headers: dict[str, str]) -> Any:
        stream = self._http.stream("POST", "/api/inference/stream", json=body, headers=headers)
        name = ""
        async with stream as response:
            async for line in response.aiter_lines():
                if line.startswith("event: "):
                    name = line.removeprefix("event: ")
                if not line.startswith("data: "):
                    continue
                event = json.loads(line.removeprefix("data: "))
                if name == "progress":
                    answer.steps_done.append(event["done"])
                elif name == "token":
                    answer.text += event["token"]
                elif name == "done":
                    return event
                else:
                    raise RuntimeError(f"{name}: {event}")
        raise RuntimeError("the stream broke off")

    async def _polled(self, request_id: str) -> Any:
        while True:
            job = _checked(await self._http.get(f"/v1/jobs/{request_id}"))
            if job["state"] == "done":
                return job["result"]
            if job["state"] in ("failed", "cancelled"):
                raise RuntimeError(json.dumps(job))
            await asyncio.sleep(_POLL_S)


def _checked(response: httpx.Response) -> Any:
    if not response.is_success:
        raise RuntimeError(f"{response.status_code}: {response.text[:300]}")
    return response.json()


def _without_ids(result: Any) -> Any:
    if isinstance(result, dict):
        return {name: _without_ids(value) for name, value in result.items() if name != "id"}
    if isinstance(result, list):
        return [_without_ids(value) for value in result]
    return result


def _file_ids(result: Any) -> list[str]:
    """Return the ids of the files of pictures in a result."""
    return [picture["image"]["id"] for picture in result.get("images", ())]


def faults_of(answer: MediaAnswer, undisturbed: MediaAnswer) -> list[str]:
    """Return a sentence for each way in which an answer is not that of an undisturbed run."""
    name = answer.request.name
    if answer.error:
        return [f"{name} failed: {answer.error[:200]}"]
    wrong = []
    if not is_same(answer.result, undisturbed.result):
        wrong.append(f"{name} has the result {answer.result}, not {undisturbed.result}")
    if answer.files != undisturbed.files:
        wrong.append(f"{name} has other pictures")
    if answer.request.task == "text-to-image" and not answer.files:
        wrong.append(f"{name} has no picture")
    for file in answer.files:
        if not file.startswith(_PNG_HEAD):
            wrong.append(f"{name} has a file that is no PNG")
    if answer.text and answer.text != answer.result["text"]:
        wrong.append(f"{name} streams {answer.text!r}, and ends with {answer.result['text']!r}")
    if answer.steps_done != sorted(set(answer.steps_done)):
        wrong.append(f"{name} counts backwards: {answer.steps_done}")
    if answer.steps_done and answer.steps_done[-1] != STEPS:
        wrong.append(f"{name} does not count to the end: {answer.steps_done}")
    return wrong


def is_same(result: Any, other: Any) -> bool:
    """Return whether two results are the same, but for the last bits of numbers."""
    if isinstance(result, float) and isinstance(other, float):
        return math.isclose(result, other, rel_tol=_TOLERANCE, abs_tol=_TOLERANCE)
    if isinstance(result, dict) and isinstance(other, dict):
        return result.keys() == other.keys() and all(
            is_same(result[name], other[name]) for name in result
        )
    if isinstance(result, list) and isinstance(other, list):
        return len(result) == len(other) and all(map(is_same, result, other))
    return bool(result == other)


def media_request(number: int, task: str, mode: Mode) -> MediaRequest:
    """Return one of the different requests of a task."""
    name = f"kind-{number}"
    random = np.random.default_rng(number)
    if task in ("image-classification", TELLING):
        patches = random.integers(0, 256, (6, 8, 3), dtype=np.uint8)
        data = png_of(Image.fromarray(patches).resize((80, 60)))
        options: dict[str, Any] = {}
        if task == TELLING:
            options = {"max_tokens": NUM_TOKENS, "ignore_eos": True, "seed": number}
        return MediaRequest(name, mode, task, data, is_uploaded=number % 2 == 0, options=options)
    if task == "automatic-speech-recognition":
        times = np.arange(_RATE) / _RATE
        tone = np.sin(2 * np.pi * (200 + 50 * number) * times) * 0.5
        data = encode_sound(tone.astype(np.float32), _RATE, "flac")
        return MediaRequest(name, mode, task, data, is_uploaded=number % 2 == 0)
    options = {"seed": number, "num_inference_steps": STEPS}
    return MediaRequest(name, mode, task, f"a cup, the {number}th", options=options)


def worker_flags(folder: Path, lease_s: float) -> list[str]:
    """Return the flags of a worker with the models of a folder."""
    flags = ["--lease-s", str(lease_s), "--threads", "1", "--device", "cpu"]
    # Beside other programs that keep the machine busy, nice tasks would hardly go on.
    flags += ["--task-niceness", "0"]
    for task in TASKS:
        flags += ["--model", f"{task}={folder / task}"]
    return flags


async def media(plan: ExperimentPlan) -> ScenarioResult:
    """Kill a worker at regular intervals, while clients stream, wait and poll."""
    if not plan.media:
        return ScenarioResult("media", {}, [f"{_FLAG} names no folder with models"])
    flags = worker_flags(Path(plan.media), plan.lease_s)
    async with fleet(plan.workers, 1, worker_flags=flags) as running:
        client = MediaClient(running.fronts[0].url)
        kinds = []
        for number in range(min(_DISTINCT, plan.requests)):
            # As many of each mode for each task.
            mode = MODES[number // len(TASKS) % len(MODES)]
            kinds.append(media_request(number, TASKS[number % len(TASKS)], mode))
        alone = []
        for kind in kinds:
            alone.append(await client.ask(replace(kind, name=f"alone-{kind.name}", mode="sync")))

        requests = []
        for number in range(plan.requests):
            requests.append(replace(kinds[number % len(kinds)], name=f"ask-{number}"))
        started = time.monotonic()
        async with every(plan.every_s, faults.kill_worker, running) as toll:
            answers = await _load(client, requests, plan.clients)
            seconds = time.monotonic() - started
        await client.close()

        await all_ended(running.redis, _DRAIN_S)
        wrong = await violations(running.redis)
        for number, answer in enumerate(answers):
            wrong += faults_of(answer, alone[number % len(alone)])
        hit = set()
        for trace in await traces(running.redis):
            if trace.was_hit:
                hit.add(trace.job.request_id)
        if not hit:
            wrong.append("no request was hit, so this proved nothing")
        figures = {
            "requests": len(answers),
            "failed": sum(bool(answer.error) for answer in answers),
            "faults": toll.faults,
            "spared": toll.spared,
            "requests hit": len(hit),
            "pictures": sum(len(answer.files) for answer in answers),
            "seconds": round(seconds, 1),
        }
        return ScenarioResult("media", figures, wrong)


async def _load(
    client: MediaClient, requests: Sequence[MediaRequest], num_clients: int
) -> list[MediaAnswer]:
    """Send all requests, `num_clients` at a time. Return their answers in order."""
    answers = [MediaAnswer(request) for request in requests]
    pending = iter(answers)

    async def send_some() -> None:
        for answer in pending:
            await client.fill(answer)

    async with asyncio.TaskGroup() as group:
        for _ in range(num_clients):
            group.create_task(send_some())
    return answers
