"""Workers die while they look at pictures, listen to sounds and paint, and nobody notices.

The models are tiny ones with random weights, in real workers.
"""

import asyncio
from dataclasses import replace
from pathlib import Path

from scripts.chaos.invariants import Trace, traces, violations
from scripts.chaos.media import (
    MODES,
    STEPS,
    TASKS,
    MediaAnswer,
    MediaClient,
    faults_of,
    media_request,
    worker_flags,
)
from scripts.chaos.processes import Fleet, fleet
from shared.artifacts.store import ArtifactStore
from shared.messages import Progress
from shared.queue.broker import Broker
from shared.tasks.pictures import MakePictures
from tests.fixtures.chaos.stage import DONE, until
from tests.fixtures.slowness import slowness
from tests.fixtures.tiny_media import write_models

PAINTING = "text-to-image"
EARLY = STEPS // 6
"""A step of which the client has heard, long before the last one."""
NETWORKS_LEASE_S = 10.0
"""A step of a real network may take longer than the half second of the other tests, where nothing is
computed: on a busy machine three workers in turn lost their leases, which convicted the request."""
BATCH_WAIT_MS = 1000
"""Longer than a worker takes to get all requests: the first end comes after all have begun.

A busy machine takes longer, and so does the wait there.
"""


class Askers:
    """A client of each task in each mode, with the right answers: those of an undisturbed run."""

    def __init__(self, running: Fleet) -> None:
        self.client = MediaClient(running.fronts[0].url)
        self.answers: list[MediaAnswer] = []
        self.undisturbed: list[MediaAnswer] = []
        self._redis = running.redis
        self._asking: list[asyncio.Task[None]] = []

    async def ask_undisturbed(self) -> None:
        for number, task in enumerate(TASKS):
            for mode in MODES:
                request = media_request(number, task, mode)
                answer = MediaAnswer(replace(request, name=f"alone-{task}-{mode}"))
                self.undisturbed.append(answer)
        await asyncio.gather(*map(self.client.fill, self.undisturbed))
        for answer in self.undisturbed:
            assert faults_of(answer, answer) == []

    def ask_again(self, *tasks: str) -> None:
        for alone in self.undisturbed:
            request = alone.request
            if request.task in tasks:
                name = request.name.replace("alone", "again")
                answer = MediaAnswer(replace(request, name=name))
                self.answers.append(answer)
                self._asking.append(asyncio.create_task(self.client.fill(answer)))

    async def wait(self) -> None:
        await asyncio.gather(*self._asking)

    async def jobs(self) -> list[Trace]:
        """Return the jobs of the requests that were sent again."""
        found = []
        for trace in await traces(self._redis):
            if trace.job.request_id.startswith("again"):
                found.append(trace)
        return found

    async def close(self) -> None:
        for asking in self._asking:
            asking.cancel()
        await asyncio.gather(*self._asking, return_exceptions=True)
        await self.client.close()


def steps_of(trace: Trace) -> list[int]:
    return [event.done for event in trace.events if isinstance(event, Progress)]


async def test_nobody_notices_that_two_workers_die_over_pictures_and_sounds(tmp_path: Path) -> None:
    """The first dies in the middle of three pictures, the second with all ends on their way.

    The second has begun the pictures again. The third does the work of both.
    """
    write_models(tmp_path)
    batch_wait_ms = round(BATCH_WAIT_MS * slowness())
    flags = [*worker_flags(tmp_path, NETWORKS_LEASE_S), "--batch-wait-ms", str(batch_wait_ms)]
    async with fleet(3, 1, worker_flags=flags, has_proxies=True) as running:
        askers = Askers(running)
        try:
            await askers.ask_undisturbed()
            await check_kills(running, askers)
        finally:
            await askers.close()


async def check_kills(running: Fleet, askers: Askers) -> None:
    first, second, third = running.workers
    await second.stop()
    await third.stop()
    askers.ask_again(PAINTING)

    async def is_painting() -> bool:
        jobs = await askers.jobs()
        return len(jobs) == len(MODES) and all(
            max(steps_of(job), default=0) >= EARLY for job in jobs
        )

    await until(is_painting, "the first worker paints all pictures")
    await first.kill()
    for job in await askers.jobs():
        assert max(steps_of(job)) < STEPS, "it was not killed in the middle"

    second.resume()

    async def is_painting_again() -> bool:
        return all(job.starts == 2 for job in await askers.jobs())

    await until(is_painting_again, "the second worker has begun all pictures")
    # It stands still until all else waits for it, so that no end is on its way before all has begun.
    await second.stop()
    askers.ask_again(*(task for task in TASKS if task != PAINTING))

    async def are_all_there() -> bool:
        return len(await askers.jobs()) == len(askers.answers)

    await until(are_all_there, "all other requests wait")
    second.proxy.trap(DONE, second.proxy.to_server)
    second.resume()

    async def are_ends_held() -> bool:
        are_begun = all(job.epoch > 0 for job in await askers.jobs())
        return second.proxy.is_sprung and are_begun

    await until(are_ends_held, "the second worker has taken all, and says its last words")
    await second.kill()
    third.resume()
    await askers.wait()

    for answer, alone in zip(by_name(askers.answers), by_name(askers.undisturbed), strict=True):
        assert faults_of(answer, alone) == []
    for job in await askers.jobs():
        assert job.was_hit, "the fault hit nothing, so this proved nothing"
        if is_painting_of(job):
            assert job.starts == 3, "each worker has begun it"
        # A worker begins from the first step again, and is silent up to where the last one was.
        assert steps_of(job) == sorted(set(steps_of(job)))
    assert await violations(running.redis) == []

    files, has_more = await ArtifactStore(Broker(running.redis)).page("public", limit=100)
    assert not has_more
    digests = [file.digest for file in files]
    assert len(digests) == len(set(digests)), "a picture that is made again is the same file"


def is_painting_of(trace: Trace) -> bool:
    return isinstance(trace.job.task, MakePictures)


def by_name(answers: list[MediaAnswer]) -> list[MediaAnswer]:
    return sorted(answers, key=lambda answer: answer.request.name.partition("-")[2])
