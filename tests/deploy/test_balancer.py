"""The balancer of deploy/compose: a real HAProxy with the repository's configuration, in front of
real fronts."""

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from redis.asyncio import Redis

from tests.fixtures.api.echo_worker import EchoWorker
from tests.fixtures.api.frames import Frame, frames, read
from tests.fixtures.api.fronts import process, states
from tests.fixtures.deploy.balancer import HAPROXY, Names, balancing, num_up, rude, with_fronts
from tests.fixtures.polling import DEADLINE_S, until

pytestmark = pytest.mark.skipif(
    not Path(HAPROXY).is_file(), reason="needs haproxy (apt-get install haproxy)"
)

BODY = {"prompt": "a b c d", "stream": True}


@dataclass
class Stage:
    """Two fronts that are ready, and the balancer before them."""

    fronts: list[asyncio.subprocess.Process]
    client: httpx.AsyncClient
    pages: httpx.AsyncClient

    async def begin(self) -> tuple[httpx.Response, AsyncIterator[Frame], str]:
        """Start a stream whose worker stops after the first word.

        Return the answer, its frames to come, and the id of the first word's frame."""
        request = self.client.build_request("POST", "/v1/completions", json=BODY)
        answer = await asyncio.wait_for(self.client.send(request, stream=True), DEADLINE_S)
        coming = read(answer.aiter_lines())
        async with asyncio.timeout(DEADLINE_S):
            opening = await anext(coming)
            first_word = await anext(coming)
        assert opening.text == ""
        assert first_word.text == "a "
        return answer, coming, first_word.id

    async def kill(self, number: int) -> None:
        self.fronts[number].kill()
        await self.fronts[number].wait()


@pytest.fixture
async def worker(redis_url: str, redis: Redis) -> AsyncIterator[EchoWorker]:
    async with EchoWorker(redis_url) as worker:
        yield worker


@pytest.fixture
async def stage(worker: EchoWorker, redis_url: str, tmp_path: Path) -> AsyncIterator[Stage]:
    async with AsyncExitStack() as stack:
        first, first_client = await stack.enter_async_context(process(redis_url))
        second, second_client = await stack.enter_async_context(process(redis_url))
        ports = [first_client.base_url.port or 0, second_client.base_url.port or 0]
        client, pages = await stack.enter_async_context(
            balancing(tmp_path, lambda text: with_fronts(text, ports))
        )
        await until(lambda: are_up(pages, 2), "both fronts are ready")
        yield Stage([first, second], client, pages)


async def are_up(pages: httpx.AsyncClient, count: int, backend: str = "ready") -> bool:
    return await num_up(pages, backend) == count


async def is_answering(client: httpx.AsyncClient) -> bool:
    answer = await client.post("/v1/completions", json={"prompt": "e f"})
    return answer.status_code == 200 and answer.json()["choices"][0]["text"] == "e f"


def assert_is_the_rest(rest: list[Frame]) -> None:
    """Check that these frames end the stream that `Stage.begin` started."""
    text = "".join(frame.text for frame in rest)
    assert text == "b c d"
    assert rest[-1].data == "[DONE]"


async def test_pieces_of_a_stream_pass_as_they_come(stage: Stage, worker: EchoWorker) -> None:
    """The first word arrives while the worker is still held before the second."""
    worker.gate.clear()
    answer, coming, _ = await stage.begin()
    assert answer.headers["content-type"].startswith("text/event-stream")

    worker.gate.set()
    assert_is_the_rest([frame async for frame in coming])


async def test_requests_go_to_the_other_front_from_the_moment_one_is_killed(stage: Stage) -> None:
    """A connection that is refused is made elsewhere, even before a check has noticed."""
    await stage.kill(0)

    for _ in range(6):
        assert await is_answering(stage.client)
    await until(lambda: are_up(stage.pages, 1), "the check has noticed")
    assert await is_answering(stage.client)


async def next_frame(coming: AsyncIterator[Frame]) -> Frame:
    return await anext(coming)


async def test_a_stream_whose_front_is_killed_goes_on_by_its_last_event_id(
    stage: Stage, worker: EchoWorker
) -> None:
    worker.gate.clear()
    reading = {}
    # One stream on each front: the least busy front is next.
    for _ in range(2):
        answer, coming, last_id = await stage.begin()
        reading[asyncio.create_task(next_frame(coming))] = (answer, last_id)

    await stage.kill(0)
    [broken], [whole] = await asyncio.wait(reading, return_when=asyncio.FIRST_COMPLETED)
    assert isinstance(broken.exception(), httpx.RemoteProtocolError)
    whole.cancel()
    worker.gate.set()

    answer, last_id = reading[broken]
    headers = {"Last-Event-ID": last_id}
    repeated = await stage.client.post("/v1/completions", json=BODY, headers=headers)
    assert_is_the_rest(frames(repeated))
    url = f"/v1/jobs/{answer.headers['X-Job-Id']}/events"
    followed = await stage.client.get(url, headers=headers)
    assert_is_the_rest(frames(followed))
    assert len(worker.jobs) == 2, "nothing was computed twice"


async def test_leaving_ends_the_work(stage: Stage, worker: EchoWorker, redis: Redis) -> None:
    """A client that leaves cancels its job, in a stream or before the first byte of an answer."""
    worker.gate.clear()
    answer, _, _ = await stage.begin()
    whole = asyncio.create_task(stage.client.post("/v1/completions", json={"prompt": "e f g"}))
    await until(lambda: len(worker.jobs) == 2, "both are being worked at")
    await answer.aclose()
    whole.cancel()

    async def are_cancelled() -> bool:
        return await states(redis) == ["cancelled", "cancelled"]

    await until(are_cancelled, "the fronts have been told")


@pytest.mark.parametrize("method", ["POST", "DELETE", "GET"])
async def test_what_was_sent_is_not_sent_again(tmp_path: Path, method: str) -> None:
    async with (
        rude() as (front, port),
        rude() as (other, second),
        balancing(tmp_path, lambda text: with_fronts(text, [port, second])) as (client, pages),
    ):
        await until(lambda: are_up(pages, 2), "both fronts pass their checks")
        answer = await client.request(method, "/generate")
    assert answer.status_code == 502
    assert len(front.heads) + len(other.heads) == 1


async def test_the_front_is_told_who_asked(tmp_path: Path) -> None:
    """The balancer adds the caller's address, protocol and host, and keeps those that a proxy
    before it has sent."""
    forwarded = {
        "X-Forwarded-For": "192.0.2.7",
        "X-Forwarded-Proto": "https",
        "X-Forwarded-Host": "out.example",
    }
    async with (
        rude() as (front, port),
        balancing(tmp_path, lambda text: with_fronts(text, [port])) as (client, pages),
    ):
        await until(lambda: are_up(pages, 1), "the front passes its check")
        await client.get("/name", headers={"Host": "hrm.example"})
        await client.get("/name", headers=forwarded)

    direct, by_proxy = front.heads
    assert headers_of(direct) == {
        ("for", "127.0.0.1"),
        ("proto", "http"),
        ("host", "hrm.example"),
    }
    assert headers_of(by_proxy) == {
        ("for", "192.0.2.7"),
        ("for", "127.0.0.1"),
        ("proto", "https"),
        ("host", "out.example"),
    }


def headers_of(head: str) -> set[tuple[str, str]]:
    return set(re.findall(r"^x-forwarded-(\w+): (.*?)\r$", head, re.MULTILINE | re.IGNORECASE))


async def test_without_a_worker_the_front_itself_says_so(redis_url: str, tmp_path: Path) -> None:
    """The refusal comes from the front, which knows the reason, and not from the balancer."""
    async with process(redis_url) as (_, direct):
        port = direct.base_url.port or 0
        async with balancing(tmp_path, lambda text: with_fronts(text, [port])) as (client, pages):
            await until(lambda: are_up(pages, 1, "alive"), "the front lives")
            refused = await client.post("/generate", json={"prompts": ["a"]})
            assert refused.status_code == 503
            assert refused.headers["X-Reject-Reason"] == "no_worker"
            assert "Retry-After" in refused.headers

            async with EchoWorker(redis_url):
                await until(lambda: are_up(pages, 1), "the front is ready")
                answer = await client.post("/generate", json={"prompts": ["a b"]})
                assert answer.json()["completions"] == ["a b"]


async def test_fronts_are_found_by_name_as_they_come_and_go(tmp_path: Path) -> None:
    """The balancer follows `--scale api=N`: the name `api` gets more addresses, or fewer."""
    loop = asyncio.get_running_loop()
    names = Names(["127.0.0.1"])
    transport, _ = await loop.create_datagram_endpoint(lambda: names, local_addr=("127.0.0.1", 0))
    dns = transport.get_extra_info("sockname")[1]
    async with (
        rude("127.0.0.1", "127.0.0.2") as (_, port),
        balancing(tmp_path, by_name(dns, port)) as (client, pages),
    ):
        for addresses in (["127.0.0.1"], ["127.0.0.1", "127.0.0.2"], ["127.0.0.2"]):
            names.addresses = addresses
            await until(lambda: are_up(pages, len(names.addresses)), f"{addresses} are known")

            answers = set()
            for _ in range(6):
                answer = await client.get("/name")
                answers.add(answer.text)
            assert answers == set(addresses)
    transport.close()


def by_name(dns: int, port: int) -> Callable[[str], str]:
    """Return a change of the configuration: another name server and another port of the fronts."""

    def change(config: str) -> str:
        changed = config.replace("parse-resolv-conf", f"nameserver here 127.0.0.1:{dns}")
        return changed.replace("api:8000", f"api.test:{port}")

    return change
