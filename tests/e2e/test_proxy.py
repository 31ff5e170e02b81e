"""A fleet whose model is another fleet's: its answers are those of asking the other one itself.

The other fleet serves the default model, and so speaks OpenAI's dialect, and TGI's, as a proxy
finds them.
"""

import asyncio
import json
import signal
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from redis.asyncio import Redis

from scripts.tools.check_proxy import Side, check
from shared.errors import FleetError
from shared.fleet.presence import Presence
from shared.queue.broker import connect
from shared.shipped import REPO_ROOT
from tests.fixtures.api.fronts import live, states
from tests.fixtures.e2e.fleet import WorkerProcess, start_worker
from tests.fixtures.e2e.inside import fleet_inside
from tests.fixtures.polling import DEADLINE_S, until
from tests.fixtures.redis_server import RedisServer, patient
from tests.fixtures.worker.upstreams import WORDS, Exchange, proxy, stand_in
from worker.engine import remote_engine
from worker.engine.engines import AnyRunner
from worker.engine.remote_engine import RemoteEngine
from worker.engine.remote_runner import RemoteRunnerSpec
from worker.engine.runner import RunnerOptions
from worker.engine.sequence import Slice, StepResult
from worker.proxy.tgi_dialect import TgiFacts
from worker.proxy.upstream import Address
from worker.runners.proxy import Proxy
from worker.runners.registry import load_runner

SAMPLE = str(REPO_ROOT / "models" / "hrm-text-math")
PROMPT = "Solve for x: 2x + 3 = 9"
DIALOGUE = [{"role": "user", "content": PROMPT}]
SAMPLED = {"temperature": 1.5, "top_p": 0.9, "top_k": 20, "seed": 7, "max_tokens": 16}
WILD = {"temperature": 2, "repetition_penalty": 4, "seed": 7, "max_tokens": 24, "min_tokens": 24}
"""So wild that hardly any two tokens are drafted at once, and each seed has an answer of its own."""
GREEDY = {"temperature": 0, "max_tokens": 40}
PENALTIES = {"repetition_penalty": 1.5, "min_tokens": 4, "presence_penalty": 0.5}

SAME = [
    ("/generate", {"prompts": [PROMPT, "Compute: 3 + 4"], **GREEDY}),
    ("/generate", {"prompts": [PROMPT], "n": 3, **SAMPLED, **PENALTIES}),
    ("/generate", {"prompts": ["long " * 600], **GREEDY, "max_tokens": 4}),
    ("/v1/completions", {"prompt": PROMPT, **GREEDY}),
    ("/v1/completions", {"prompt": PROMPT, "logprobs": 3, **GREEDY, "max_tokens": 8}),
    ("/v1/completions", {"prompt": PROMPT, "logprobs": 2, "n": 2, **SAMPLED}),
    ("/v1/completions", {"prompt": PROMPT, "stop": ["6 /", "= 6"], **GREEDY}),
    ("/v1/completions", {"prompt": [5, 6, 7], "ignore_eos": True, **SAMPLED}),
    ("/v1/completions", {"prompt": PROMPT, "logit_bias": {"9": -5}, **GREEDY}),
    ("/v1/completions", {"prompt": PROMPT, "echo": True, "logprobs": 1, "max_tokens": 0}),
    ("/v1/completions", {"prompt": PROMPT, "stream": True, "logprobs": 1, **GREEDY}),
    ("/v1/completions", {"prompt": PROMPT, "stream": True, "logprobs": 1, **WILD}),
    ("/v1/chat/completions", {"messages": DIALOGUE, **GREEDY}),
    ("/v1/chat/completions", {"messages": DIALOGUE, "n": 2, **SAMPLED}),
    (
        "/v1/chat/completions",
        {"messages": DIALOGUE, "logprobs": True, "top_logprobs": 2, **GREEDY, "max_tokens": 6},
    ),
    ("/v1/chat/completions", {"messages": DIALOGUE, "stream": True, **SAMPLED}),
    ("/loglikelihood", {"prompts": [PROMPT, PROMPT], "continuations": ["2x = 9 - 3", "x"]}),
    ("/loglikelihood_rolling", {"prompts": [PROMPT]}),
    ("/solve/math", {"problem": PROMPT, **GREEDY}),
]
TGI = {"inputs": PROMPT, "parameters": {"max_new_tokens": 20, "seed": 3, "temperature": 1.2}}


@dataclass
class Fleets:
    """A fleet, and another one that asks it."""

    direct: httpx.AsyncClient
    proxied: httpx.AsyncClient


@pytest.fixture
async def second_redis(own_redis: RedisServer) -> AsyncIterator[Redis]:
    client = patient(connect(own_redis.url))
    yield client
    await client.aclose()


def sample() -> AnyRunner:
    return load_runner("auto", RunnerOptions(SAMPLE, name="m", context_window=512))


@pytest.fixture
async def direct(redis: Redis) -> AsyncIterator[httpx.AsyncClient]:
    """A fleet that serves the default model, by a client of its front."""
    async with fleet_inside(redis, {"m": sample()}), live(redis) as (client, _):
        yield client


@pytest.fixture
async def fleets(direct: httpx.AsyncClient, second_redis: Redis) -> AsyncIterator[Fleets]:
    runner = await proxy(str(direct.base_url))
    async with fleet_inside(second_redis, {"m": runner}) as proxied:
        yield Fleets(direct, proxied)


async def body_of(client: httpx.AsyncClient, path: str, body: dict[str, Any]) -> Any:
    """Return an answer without what differs between any two, and the parts of a stream as one."""
    more = {"stream_options": {"include_usage": True}} if body.get("stream") else {}
    answer = await client.post(path, json=body | more, timeout=60)
    assert answer.status_code == 200, answer.text
    if not body.get("stream"):
        return _without_ids(answer.json())

    text = ""
    tokens: list[str] = []
    ends: list[Any] = []
    for line in answer.text.splitlines():
        if not line.startswith("data: {"):
            continue
        chunk = json.loads(line.removeprefix("data: "))
        if chunk["usage"] is not None:
            ends.append(_without_cache(chunk["usage"]))
        for choice in chunk["choices"]:
            text += choice["text"] if "text" in choice else choice["delta"].get("content", "")
            if choice["finish_reason"]:
                ends.append(choice["finish_reason"])
            if choice["logprobs"]:
                tokens += choice["logprobs"]["tokens"]
    return text, tokens, ends


def _without_ids(body: dict[str, Any]) -> dict[str, Any]:
    for name in ("id", "created", "timings", "metadata", "generation_time"):
        body.pop(name, None)
    for choice in body.get("choices", ()):
        choice.pop("q_values", None)
    if isinstance(body.get("usage"), dict):
        body["usage"] = _without_cache(body["usage"])
    return body


def _without_cache(usage: dict[str, Any]) -> dict[str, Any]:
    """Return a usage without the cached tokens, which are more the second time."""
    return {name: value for name, value in usage.items() if name.endswith("_tokens")}


async def test_answers_are_those_of_asking_the_engine_itself(fleets: Fleets) -> None:
    different = []
    for path, body in SAME:
        direct = await body_of(fleets.direct, path, body)
        proxied = await body_of(fleets.proxied, path, body)
        if direct != proxied:
            different.append((path, body, direct, proxied))
    assert not different


async def test_the_tool_that_compares_an_engine_finds_both_equal(fleets: Fleets) -> None:
    findings = await check(Side(fleets.direct, "m"), Side(fleets.proxied, "m"))
    assert [str(finding) for finding in findings if finding.is_right is False] == []
    assert [finding.name for finding in findings if finding.is_right is None] == [
        "scores",
        "a closed stream",
    ]


async def test_the_tool_that_compares_an_engine_finds_a_difference(fleets: Fleets) -> None:
    class Other(Side):
        async def ask(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
            answer = await super().ask(path, body)
            answer["usage"]["prompt_tokens"] += 1
            return answer

    findings = await check(Side(fleets.direct, "m"), Other(fleets.proxied, "m"))
    wrong = [finding.name for finding in findings if finding.is_right is False]
    assert wrong == ["greedy texts", "stop strings", "seeded texts"]


async def test_tgi_tells_ids_too(direct: httpx.AsyncClient, second_redis: Redis) -> None:
    """The dialect of TGI, as our own front speaks it."""
    spec = RemoteRunnerSpec("proxy", "m", "", 512, max_batch=4, tasks=("generate",), retries=0)
    runner = Proxy(spec, Address(str(direct.base_url)), TgiFacts(window=512))
    async with fleet_inside(second_redis, {"m": runner}) as proxied:
        for details in (False, True):
            body = {**TGI, "parameters": {**TGI["parameters"], "details": details}}
            expected = (await direct.post("/generate", json=body)).json()
            assert (await proxied.post("/generate", json=body)).json() == expected


async def test_errors_are_those_of_the_engine(fleets: Fleets) -> None:
    body = {"prompt": "long " * 600, "max_tokens": 8}
    refused = await fleets.proxied.post("/v1/completions", json=body)
    assert refused.status_code == 400
    assert refused.json()["error"]["code"] == "context_length_exceeded"
    assert "512" in refused.json()["error"]["message"]


class Gate:
    """Holds a runner's steps from the `after`-th on, until it is opened."""

    def __init__(self, runner: Any, after: int) -> None:
        self.is_reached = False
        self._open = threading.Event()
        self._left = after
        self._step = runner.step
        runner.step = self.step

    def step(self, slices: Sequence[Slice]) -> list[StepResult | FleetError]:
        self._left -= 1
        if self._left < 0:
            self.is_reached = True
            self._open.wait(60)
        return self._step(slices)  # type: ignore[no-any-return]

    def open(self) -> None:
        self._open.set()


@dataclass
class Workers:
    redis: Redis
    client: httpx.AsyncClient
    processes: list[WorkerProcess]

    async def kill_the_one_with_a_job(self) -> None:
        """Kill the worker that has a job in hand, without a word."""
        busy: list[int] = []

        async def is_known() -> bool:
            for worker in (await Presence(self.redis).fleet()).workers:
                if worker.in_flight:
                    busy.append(int(worker.id.split("-")[-2]))
            return bool(busy)

        await until(is_known, "a worker has the job")
        for worker in self.processes:
            if worker.pid == busy[0]:
                worker.signal(signal.SIGKILL)
                await worker.wait()


@asynccontextmanager
async def two_workers(own_redis: RedisServer, redis: Redis, url: str) -> AsyncIterator[Workers]:
    """Run two workers whose model is that at a URL, as processes, and a front for them."""
    started: list[WorkerProcess] = []
    try:
        for _ in range(2):
            started.append(
                await start_worker(own_redis.url, redis, "--lease-s", "6", model=f"m={url}")
            )
        async with live(redis) as (client, _):
            yield Workers(redis, client, started)
    finally:
        for worker in started:
            await worker.end()


async def streamed(client: httpx.AsyncClient, body: dict[str, Any], texts: list[str]) -> Any:
    """Read a stream of `/v1/completions` into `texts`. Return its error, None without one."""
    async with client.stream("POST", "/v1/completions", json=body | {"stream": True}) as answer:
        async for line in answer.aiter_lines():
            if not line.startswith("data: {"):
                continue
            chunk = json.loads(line.removeprefix("data: "))
            if "error" in chunk:
                return chunk["error"]
            texts.append(chunk["choices"][0]["text"])
    return None


@pytest.mark.parametrize(
    ("sampling", "num_steps"), [(GREEDY, 2), (WILD, 8)], ids=["greedy", "sampled"]
)
async def test_the_answer_of_a_killed_worker_goes_on(
    redis: Redis,
    second_redis: Redis,
    own_redis: RedisServer,
    sampling: dict[str, Any],
    num_steps: int,
) -> None:
    """Neither a word is lost nor one said twice: the engine repeats what the log holds."""
    upstream = sample()
    body = {"prompt": PROMPT, **sampling}
    texts: list[str] = []
    async with fleet_inside(redis, {"m": upstream}), live(redis) as (direct, _):
        expected = (await direct.post("/v1/completions", json=body)).json()["choices"][0]["text"]
        async with two_workers(own_redis, second_redis, str(direct.base_url)) as workers:
            gate = Gate(upstream, num_steps)
            try:
                reading = asyncio.create_task(streamed(workers.client, body, texts))
                await until(lambda: gate.is_reached and bool(texts), "the stream has begun")
                assert "".join(texts) != expected
                await workers.kill_the_one_with_a_job()
            finally:
                gate.open()
            assert await asyncio.wait_for(reading, DEADLINE_S) is None
    assert "".join(texts) == expected


async def test_another_answer_of_the_engine_never_goes_on(
    second_redis: Redis, own_redis: RedisServer
) -> None:
    async def hang(exchange: Exchange) -> None:
        await exchange.begin_stream()
        await exchange.word("eleven")
        await exchange.left()

    texts: list[str] = []
    async with (
        stand_in() as upstream,
        two_workers(own_redis, second_redis, upstream.url) as workers,
    ):
        upstream.script.append(hang)
        reading = asyncio.create_task(streamed(workers.client, {"prompt": PROMPT, **GREEDY}, texts))
        await until(lambda: bool(texts), "the stream has begun")
        await workers.kill_the_one_with_a_job()
        error = await asyncio.wait_for(reading, DEADLINE_S)
    assert error["code"] == "upstream_failed"
    assert "cannot be continued" in error["message"]
    assert "".join(texts) == "eleven"


async def test_the_engine_sees_a_caller_leave(second_redis: Redis) -> None:
    has_left = asyncio.Event()

    async def hang(exchange: Exchange) -> None:
        await exchange.begin_stream()
        await exchange.word(WORDS[0])
        await exchange.left()
        has_left.set()

    async with stand_in() as upstream:
        runner = await proxy(upstream.url)
        async with fleet_inside(second_redis, {"m": runner}), live(second_redis) as (client, _):
            upstream.script.append(hang)
            body = {"prompt": PROMPT, "stream": True}
            async with client.stream("POST", "/v1/completions", json=body) as answer:
                async for line in answer.aiter_lines():
                    if WORDS[0] in line:
                        break
            await asyncio.wait_for(has_left.wait(), DEADLINE_S)


async def test_work_waits_in_the_queue_while_the_engine_is_away(
    second_redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_engine, "PROBE_IDLE_S", 0.05)
    monkeypatch.setattr(remote_engine, "PROBE_AWAY_S", 0.05)
    async with stand_in() as upstream:
        port = upstream.port
        runner = await proxy(upstream.url, retries=0)
    engines: list[RemoteEngine] = []
    made = remote_engine.RemoteEngine.__init__

    def noted(self: RemoteEngine, *args: Any, **more: Any) -> None:
        made(self, *args, **more)
        engines.append(self)

    monkeypatch.setattr(RemoteEngine, "__init__", noted)
    async with fleet_inside(second_redis, {"m": runner}) as client:
        await until(lambda: bool(engines) and not engines[0].accepts, "it is away")
        asking = asyncio.create_task(client.post("/v1/completions", json={"prompt": PROMPT}))
        # It is queued, and nobody takes it.
        await until(lambda: _has_one("queued", second_redis), "the request is queued")
        async with stand_in(port):
            answer = await asyncio.wait_for(asking, DEADLINE_S)
    assert answer.json()["choices"][0]["text"] == "".join(WORDS)


async def _has_one(state: str, redis: Redis) -> bool:
    return await states(redis) == [state]
