"""Broken and hostile files of callers are refused with a sentence, by a worker that lives on."""

import base64
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from redis.asyncio import Redis

from tests.fixtures.api.fronts import in_memory
from tests.fixtures.broken_pictures import (
    broken_pictures,
    damaged,
    odd_pictures,
    whole_pictures,
)
from tests.fixtures.broken_sounds import broken_sounds, damaged_sounds, odd_sounds, whole_sounds
from tests.fixtures.e2e.fleet import WorkerProcess, start_worker
from tests.fixtures.one_shots import write_one_shot
from tests.fixtures.polling import until
from tests.fixtures.slowness import slowness_meanwhile

PICTURES = "image-classification"
SOUNDS = "automatic-speech-recognition"
INLINE_BYTES = 100_000
MOST_S = 2.0
"""A picture of 50 million pixels, or an hour of sound, takes a decoder about a second."""
MOST_KEPT = 24 << 20
"""The bytes that a process may grow by from one pass over all files to the next: the noise of its
allocator. One of the large files has 100 to 230 MB in memory."""


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = {}
    for task in (PICTURES, SOUNDS):
        made[task] = tmp_path_factory.mktemp("model")
        write_one_shot(task, made[task])
    return made


@pytest.fixture
async def worker(
    paths: dict[str, Path], redis_url: str, redis: Redis, tmp_path: Path
) -> AsyncIterator[WorkerProcess]:
    process = await start_worker(
        redis_url,
        redis,
        *("--model", f"{SOUNDS}={paths[SOUNDS]}"),
        *("--artifact-url", str(tmp_path)),
        *("--threads", "1", "--device", "cpu"),
        model=f"{PICTURES}={paths[PICTURES]}",
    )
    try:
        yield process
    finally:
        await process.end()


@pytest.fixture
async def client(
    worker: WorkerProcess, redis: Redis, tmp_path: Path
) -> AsyncIterator[httpx.AsyncClient]:
    async with in_memory(redis, artifact_url=str(tmp_path)) as front:

        async def is_ready() -> bool:
            return (await front.get("/readyz")).status_code == 200

        await until(is_ready, "the front is ready")
        yield front


async def ask(client: httpx.AsyncClient, task: str, data: bytes) -> httpx.Response:
    """Ask for a task of a file: in the body, or uploaded where it is large."""
    inputs = base64.b64encode(data).decode()
    if len(data) > INLINE_BYTES:
        uploaded = await client.post("/v1/artifacts", content=data)
        inputs = uploaded.json()["id"]
    body = {"task": task, "inputs": inputs, "model_id": task}
    return await client.post("/api/inference", json=body)


async def ask_timed(
    client: httpx.AsyncClient, task: str, name: str, data: bytes, times_s: list[tuple[float, str]]
) -> httpx.Response:
    """Ask for a task of a file, and note the time that it took and its name."""
    begun_s = time.monotonic()
    answer = await ask(client, task, data)
    times_s.append((time.monotonic() - begun_s, name))
    return answer


def check_refused(answer: httpx.Response) -> None:
    """Check that an answer is a sentence about the file, and nothing about our process."""
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["code"] == "invalid_request"
    message = error["message"]
    assert ": expected " in message
    assert message.endswith(".")
    for inner in ("Traceback", " at 0x", "BytesIO", ".py", "<none>"):
        assert inner not in message


async def check_whole(client: httpx.AsyncClient, expected: dict[tuple[str, str], Any]) -> None:
    """Check that whole files have their answers, or note those in `expected`."""
    for task, files in ((PICTURES, whole_pictures()), (SOUNDS, whole_sounds())):
        for name, data in files.items():
            answer = await ask(client, task, data)
            assert answer.status_code == 200, (name, answer.text)
            result = answer.json()["result"]
            assert result == expected.setdefault((task, name), result)


async def test_broken_files_are_refused_and_the_worker_keeps_nothing(
    client: httpx.AsyncClient, worker: WorkerProcess
) -> None:
    broken = {PICTURES: broken_pictures(), SOUNDS: broken_sounds()}
    odd = {PICTURES: odd_pictures(), SOUNDS: odd_sounds()}
    # A bit may have flipped where nothing depends on it.
    harmed = {PICTURES: damaged(whole_pictures()), SOUNDS: damaged_sounds()}
    assert sum(len(files) for files in broken.values()) >= 100

    process = psutil.Process(worker.pid)
    answers: dict[tuple[str, str], Any] = {}
    await check_whole(client, answers)
    kept: list[int] = []
    times_s: list[tuple[float, str]] = []
    with slowness_meanwhile() as greatest:
        for _ in range(3):
            for task in (PICTURES, SOUNDS):
                for name, data in broken[task].items():
                    check_refused(await ask_timed(client, task, name, data, times_s))
                for name, data in odd[task].items():
                    answer = await ask_timed(client, task, name, data, times_s)
                    assert answer.status_code == 200, (name, answer.text)
                for name, data in harmed[task].items():
                    answer = await ask_timed(client, task, name, data, times_s)
                    if answer.status_code != 200:
                        check_refused(answer)
            await check_whole(client, answers)
            kept.append(process.memory_info().rss)
        slowest_s, name = max(times_s)
        assert slowest_s < MOST_S * greatest(), name

    assert worker.process.returncode is None
    # After two passes all threads have had large files, and the allocator holds what it will hold.
    assert kept[2] - kept[1] < MOST_KEPT, kept
