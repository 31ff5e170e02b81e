"""A fleet closes as soon as a first key is created for it.

A caller who loses its key loses the requests that are under way."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

import httpx
import msgspec
import pytest
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError

from api.access.auth import FirstKey
from api.access.caller import FRESH_S
from shared.access import Grant, Keyring, digest_of
from shared.queue import keys
from shared.queue.broker import Broker, connect
from tests.fixtures.api.echo_worker import EchoWorker, announce
from tests.fixtures.api.frames import Frame, read
from tests.fixtures.api.fronts import in_memory, live, state, states
from tests.fixtures.api.staying import staying_worker
from tests.fixtures.polling import until
from tests.fixtures.redis_server import RedisServer, patient

ASK = {"prompt": "a b c", "stream": True}
BOUND_S = 20.0
"""Far more than the second or two that a wait should take, for a busy machine."""


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look more often for revoked keys than a front does otherwise."""
    assert FRESH_S == 1.0, "as docs/access.md says"
    monkeypatch.setattr("api.access.revocations.FRESH_S", 0.1)


@pytest.fixture
async def worker(redis_url: str) -> AsyncIterator[EchoWorker]:
    async with staying_worker(redis_url) as worker:
        yield worker


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


async def make(redis: Redis, name: str = "cy", lives_s: int | None = None, **grant: object) -> str:
    """Create a key of the tenant `cy` and return it."""
    new_grant = Grant(**{"name": name, "tenant": "cy", **grant})  # type: ignore[arg-type]
    key, *_ = await Keyring(Broker(redis)).create(new_grant, lives_s=lives_s)
    return key


async def revoke(redis: Redis, key: str) -> None:
    await Keyring(Broker(redis)).revoke(digest_of(key))


async def expire(redis: Redis, key: str) -> None:
    await redis.pexpire(keys.grant(digest_of(key)), 0)


async def narrow(redis: Redis, key: str) -> None:
    """Give the same key another grant, which leaves out the model."""
    grant = msgspec.msgpack.encode(Grant("cy", "cy", models=("other",)))
    await redis.set(keys.grant(digest_of(key)), grant)


def is_closed(client: httpx.AsyncClient) -> Callable[[], Awaitable[bool]]:
    async def look() -> bool:
        return (await client.get("/v1/models")).status_code == 401

    return look


# A fleet that closes


async def test_the_first_key_closes_every_front(redis: Redis, redis_url: str) -> None:
    await announce(redis, "echo")
    other = patient(connect(redis_url))
    async with in_memory(redis) as first, in_memory(other) as second:
        for client in (first, second):
            assert (await client.get("/v1/models")).status_code == 200

        key = await make(redis)

        for client in (first, second):
            await until(is_closed(client), "the front is closed", BOUND_S)
            assert (await client.post("/v1/completions", json=ASK)).status_code == 401
            assert (await client.get("/v1/models", headers=bearer("sk-unknown"))).status_code == 401
            assert (await client.get("/v1/models", headers=bearer(key))).status_code == 200
            assert (await client.get("/healthz")).status_code == 200

    async with in_memory(redis) as started_later:
        answer = await started_later.get("/v1/models")
        assert answer.status_code == 401, "it is closed from the start"
    await other.aclose()


@pytest.mark.parametrize("end", [revoke, expire])
async def test_it_does_not_open_again_with_the_end_of_the_last_key(
    redis: Redis, end: Callable[[Redis, str], Awaitable[None]]
) -> None:
    key = await make(redis)
    await end(redis, key)
    # Looking at the keys, as an operator does, must not open the fleet either.
    assert await Keyring(Broker(redis)).all_grants() == {}

    async with in_memory(redis) as client:
        assert (await client.get("/v1/models")).status_code == 401
    async with in_memory(redis, require_key="no") as client:
        assert (await client.get("/v1/models")).status_code == 200


async def test_keys_of_an_older_version_close_it_too(redis: Redis) -> None:
    """An older version left nothing but the list of its keys; that list closes the fleet too."""
    key = await make(redis)
    await redis.delete(keys.KEYS_MADE)
    async with in_memory(redis) as client:
        assert (await client.get("/v1/models")).status_code == 401
    await revoke(redis, key)
    async with in_memory(redis) as client:
        assert (await client.get("/v1/models")).status_code == 401


class CountingKeyring(Keyring):
    def __init__(self, broker: Broker) -> None:
        super().__init__(broker)
        self.num_reads = 0

    async def has_made_keys(self) -> bool:
        self.num_reads += 1
        return await super().has_made_keys()


async def test_redis_is_not_asked_for_each_request(redis: Redis) -> None:
    keyring = CountingKeyring(Broker(redis))
    first_key = FirstKey(keyring, max_age_s=1000)
    lookups = [first_key.is_made() for _ in range(50)]
    assert await asyncio.gather(*lookups) == [False] * 50
    assert keyring.num_reads == 1

    await make(redis)
    never_cached = FirstKey(keyring, max_age_s=0)
    for _ in range(3):
        assert await never_cached.is_made() is True
    assert keyring.num_reads == 2, "once it is known it is known for good"


async def test_without_redis_nobody_gets_in_without_a_key(own_redis: RedisServer) -> None:
    """A front without Redis refuses even the local echo task, which needs no worker."""
    redis = connect(own_redis.url)
    async with in_memory(redis) as client:
        own_redis.stop()
        answer = await client.post("/api/inference", json={"task": "echo", "inputs": "a"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "broker_unavailable")
    await redis.aclose()


async def test_a_redis_that_hangs_lets_nobody_in_and_keeps_nobody_waiting(
    own_redis: RedisServer,
) -> None:
    redis = connect(own_redis.url)
    async with in_memory(redis) as client:
        os.kill(own_redis.pid, signal.SIGSTOP)
        try:
            echo = {"task": "echo", "inputs": "a"}
            async with asyncio.timeout(BOUND_S):
                answers = await asyncio.gather(
                    client.post("/api/inference", json=echo),
                    client.post("/api/inference", json=echo),
                    client.post("/api/inference", json=echo),
                )
        finally:
            os.kill(own_redis.pid, signal.SIGCONT)

    for answer in answers:
        assert answer.status_code == 503
    await redis.aclose()


# Requests that are under way


async def read_first_word(events: AsyncIterator[Frame]) -> None:
    """Read a stream up to its first word."""
    async with asyncio.timeout(BOUND_S):
        async for frame in events:
            if frame.text:
                return


async def read_rest(events: AsyncIterator[Frame]) -> list[Frame]:
    """Read a stream to its end."""
    async with asyncio.timeout(BOUND_S):
        return [frame async for frame in events]


def text_of(frames: list[Frame]) -> str:
    return "".join(frame.text for frame in frames)


def error_code_of(frames: list[Frame]) -> str:
    """Return the code of the error that the stream ended with."""
    *_, error, end = frames
    assert end.data == "[DONE]"
    code: str = error.json["error"]["code"]
    return code


@pytest.mark.parametrize(
    ("lose", "code"),
    [(revoke, "invalid_api_key"), (expire, "invalid_api_key"), (narrow, "permission_denied")],
)
async def test_a_running_stream_ends_with_its_key(
    redis: Redis, worker: EchoWorker, lose: Callable[[Redis, str], Awaitable[None]], code: str
) -> None:
    """The work ends with the stream, as if its caller had left.

    The stream of another key goes on."""
    worker.gate.clear()
    lost = await make(redis)
    kept = await make(redis, "di")
    async with (
        live(redis) as (client, _),
        client.stream("POST", "/v1/completions", json=ASK, headers=bearer(lost)) as lost_stream,
        client.stream("POST", "/v1/completions", json=ASK, headers=bearer(kept)) as kept_stream,
    ):
        lost_events = read(lost_stream.aiter_lines())
        kept_events = read(kept_stream.aiter_lines())
        await read_first_word(lost_events)
        await read_first_word(kept_events)

        await lose(redis, lost)
        assert error_code_of(await read_rest(lost_events)) == code

        async def is_cancelled() -> bool:
            return await states(redis) == ["cancelled", "running"]

        await until(is_cancelled, "the work has ended")
        worker.gate.set()
        assert text_of(await read_rest(kept_events)) == "b c"


async def test_an_answer_that_is_waited_for_is_refused(redis: Redis, worker: EchoWorker) -> None:
    worker.gate.clear()
    key = await make(redis)
    async with live(redis) as (client, _):
        waiting = asyncio.create_task(
            client.post("/generate", json={"prompts": ["a b c"]}, headers=bearer(key))
        )
        await until(lambda: len(worker.jobs) == 1, "the job is being worked at")

        await revoke(redis, key)
        async with asyncio.timeout(BOUND_S):
            answer = await waiting

    assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")
    await until(lambda: is_state(redis, worker.jobs[0].id, "cancelled"), "the work has ended")


async def is_state(redis: Redis, job_id: str, expected: str) -> bool:
    return await state(redis, job_id) == expected


async def test_a_job_for_later_goes_on_and_is_the_tenants(redis: Redis, worker: EchoWorker) -> None:
    """A tenant can change its keys without losing work.

    The follower with the old key is cut off; the new key reads the result."""
    worker.gate.clear()
    old = await make(redis)
    new = await make(redis)
    async with live(redis) as (client, front):
        later = bearer(old) | {"Prefer": "respond-async"}
        accepted = await client.post("/v1/completions", json=ASK, headers=later)
        location = accepted.headers["Location"]

        async with client.stream("GET", f"{location}/events", headers=bearer(old)) as followed:
            events = read(followed.aiter_lines())
            await read_first_word(events)
            await revoke(redis, old)
            assert error_code_of(await read_rest(events)) == "invalid_api_key"
        worker.gate.set()

        async def is_done() -> bool:
            answer = await client.get(location, headers=bearer(new))
            return bool(answer.json()["state"] == "done")

        await until(is_done, "the job is done")
        assert 'outcome="done"' in front.metrics.render().decode()


async def test_streams_without_a_key_end_when_the_fleet_closes(
    redis: Redis, worker: EchoWorker
) -> None:
    worker.gate.clear()
    async with (
        live(redis) as (closing, _),
        live(redis, require_key="no") as (open_to_all, _),
        closing.stream("POST", "/v1/completions", json=ASK) as cut_stream,
        open_to_all.stream("POST", "/v1/completions", json=ASK) as kept_stream,
    ):
        cut_events = read(cut_stream.aiter_lines())
        kept_events = read(kept_stream.aiter_lines())
        await read_first_word(cut_events)
        await read_first_word(kept_events)

        await make(redis)
        assert error_code_of(await read_rest(cut_events)) == "invalid_api_key"

        worker.gate.set()
        assert text_of(await read_rest(kept_events)) == "b c"


async def test_while_redis_cannot_be_asked_nobody_is_cut_off(
    redis: Redis, worker: EchoWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stream with a revoked key ends as soon as Redis can be reached again, and not before."""
    worker.gate.clear()
    key = await make(redis)
    find_all = Keyring.find_all
    num_tries = 0
    is_away = True

    async def find_if_there(keyring: Keyring, digests: Sequence[str]) -> dict[str, Grant]:
        nonlocal num_tries
        num_tries += 1
        if is_away:
            raise RedisConnectionError("away")
        return await find_all(keyring, digests)

    monkeypatch.setattr(Keyring, "find_all", find_if_there)
    async with (
        live(redis) as (client, _),
        client.stream("POST", "/v1/completions", json=ASK, headers=bearer(key)) as answer,
    ):
        events = read(answer.aiter_lines())
        await read_first_word(events)
        await revoke(redis, key)
        ending = asyncio.create_task(read_rest(events))
        await until(lambda: num_tries >= 3, "it has been tried")
        assert not ending.done()

        is_away = False
        assert error_code_of(await ending) == "invalid_api_key"


async def test_a_key_that_is_revoked_while_a_body_comes_opens_nothing(
    redis: Redis, worker: EchoWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The front looks the key up again once the body has come, however quickly it comes.
    monkeypatch.setattr("api.access.caller.FRESH_S", 0.0)
    key = await make(redis)

    async def body() -> AsyncIterator[bytes]:
        yield b'{"prompts": '
        await revoke(redis, key)
        yield b'["a"]}'

    async with in_memory(redis) as client:
        headers = bearer(key) | {"Content-Type": "application/json", "Prefer": "respond-async"}
        answer = await client.post("/generate", content=body(), headers=headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")
    assert await states(redis) == []
