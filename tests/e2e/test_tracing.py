"""A request has one trace from HTTP to the last append.

It spans all workers that had the job, and it is closed however the job ends.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
from opentelemetry.trace import SpanKind, StatusCode
from redis.asyncio import Redis

from shared.errors import FleetError
from shared.fleet.presence import Presence
from shared.settings.settings import DEFAULT_MODEL
from tests.fixtures.api.fronts import in_memory, live
from tests.fixtures.logged import fields_of
from tests.fixtures.polling import DEADLINE_S, until
from tests.fixtures.spans import PARENT, Kept, id_of, parent_of, told, trace_ids
from tests.fixtures.worker.services import Gated, Slow, service, serving
from worker.engine.runner import Runner, RunnerOptions
from worker.engine.sequence import Slice, StepResult
from worker.runners.echo import Echo
from worker.runners.registry import load_runner

TRACE_ID = PARENT.split("-")[1]
PHASES = ["encode", "prefill", "decode", "publish"]
ASK = {"model": "m", "prompt": "abc", "max_tokens": 20}


@asynccontextmanager
async def fleet(redis: Redis, kept: Kept, runner: Runner) -> AsyncIterator[httpx.AsyncClient]:
    """Run a traced worker and a traced front, and yield a client."""
    async with serving(service(redis, lease_s=3, tracing=kept.tracing), runner):
        await until(lambda: is_ready(redis, 1), "the worker is ready")
        async with in_memory(redis, tracing=kept.tracing) as client:
            yield client


async def is_ready(redis: Redis, count: int) -> bool:
    workers = (await Presence(redis).fleet()).workers
    return len(workers) == count and all(worker.state == "ready" for worker in workers)


def echo() -> Echo:
    return Echo(RunnerOptions("echo", max_batch=4))


@pytest.mark.parametrize("is_streamed", [False, True])
async def test_one_trace_from_http_to_publish(redis: Redis, is_streamed: bool) -> None:
    """B56: the trace is the caller's and has no span for a token."""
    kept = Kept()
    headers = {"traceparent": PARENT, "X-Request-Id": "r1"}
    async with fleet(redis, kept, echo()) as client:
        answer = await client.post(
            "/v1/completions", json=ASK | {"stream": is_streamed}, headers=headers
        )
        assert answer.status_code == 200
        await until(lambda: len(kept.spans) == 8, "all spans have ended")
    assert trace_ids(kept.spans) == {TRACE_ID}
    server = kept.one("POST /v1/completions")
    submit = kept.one("submit")
    queue = kept.one("queue")
    attempt = kept.one("text_completion m")
    phases = [kept.one(name) for name in PHASES]
    assert parent_of(server) == int("cd" * 8, 16)
    assert parent_of(submit) == id_of(server)
    assert parent_of(queue) == id_of(submit)
    assert parent_of(attempt) == id_of(submit)
    for phase in phases:
        assert parent_of(phase) == id_of(attempt)
    assert server.kind is SpanKind.SERVER
    assert submit.kind is SpanKind.PRODUCER
    assert queue.kind is SpanKind.CONSUMER
    for span in kept.spans:
        assert span.status.status_code is StatusCode.UNSET

    before = queue
    for phase in phases:
        assert before.end_time is not None
        assert phase.start_time is not None
        assert before.end_time <= phase.start_time
        before = phase

    job_id = told(attempt)["aios.job_id"]
    assert told(queue)["aios.job_id"] == job_id
    assert told(server)["aios.job_id"] == job_id
    assert told(server)["aios.request_id"] == "r1"
    assert told(server)["http.request.method"] == "POST"
    assert told(server)["http.route"] == "/v1/completions"
    assert told(server)["http.response.status_code"] == 200
    expected = {
        "aios.model": "m",
        "aios.attempt": 1,
        "aios.request_id": "r1",
        "gen_ai.operation.name": "text_completion",
        "gen_ai.request.model": "m",
        "gen_ai.request.max_tokens": 20,
        "gen_ai.usage.input_tokens": 3,
        "gen_ai.usage.output_tokens": 20,
        "gen_ai.response.finish_reasons": ("length",),
    }
    assert told(attempt) | expected == told(attempt)
    assert told(phases[1])["gen_ai.usage.input_tokens"] == 3
    assert told(phases[2])["gen_ai.usage.output_tokens"] == 20


async def test_each_job_of_a_request_has_its_own_part(redis: Redis) -> None:
    kept = Kept()
    async with fleet(redis, kept, echo()) as client:
        await client.post("/v1/completions", json=ASK | {"prompt": ["a", "b"], "n": 2})
        await until(
            lambda: len(kept.all("publish")) == 2 and len(kept.all("text_completion m")) == 2,
            "both ended",
        )
    assert len(trace_ids(kept.spans)) == 1
    assert len(kept.all("decode")) == len(kept.all("queue")) == 2
    assert told(kept.one("submit"))["aios.num_jobs"] == 2


async def test_other_tasks_compute(redis: Redis) -> None:
    """A task that reads a prompt has steps and generates no token."""
    kept = Kept()
    async with fleet(redis, kept, echo()) as client:
        reading = {"model": "m", "prompt": "ab", "max_tokens": 0, "echo": True, "logprobs": 1}
        assert (await client.post("/v1/completions", json=reading)).status_code == 200
        await until(lambda: len(kept.all("read m")) == 1, "the reading is traced")
    assert kept.names.count("compute") == 1
    assert "decode" not in kept.names


@pytest.mark.parametrize(
    "given", ["nonsense", f"00-{'0' * 32}-{'cd' * 8}-01", f"ff-{'ab' * 16}-{'cd' * 8}-01", ""]
)
async def test_a_bad_traceparent_is_ignored(redis: Redis, given: str) -> None:
    kept = Kept()
    async with in_memory(redis, tracing=kept.tracing) as client:
        answer = await client.get("/v1/models", headers={"traceparent": given})
        await client.get("/healthz", headers={"traceparent": PARENT})
    assert answer.status_code == 200
    server = kept.one("GET /v1/models")
    assert server.parent is None
    assert TRACE_ID not in trace_ids(kept.spans), "probes are not traced"


async def test_a_caller_that_does_not_sample_is_not_traced(redis: Redis) -> None:
    kept = Kept()
    async with fleet(redis, kept, echo()) as client:
        headers = {"traceparent": PARENT.removesuffix("01") + "00"}
        assert (await client.post("/v1/completions", json=ASK, headers=headers)).status_code == 200
    assert kept.spans == []


async def test_a_takeover_is_in_the_same_trace(redis: Redis) -> None:
    """The second attempt links to the first one.

    The first is closed when its worker finds that the job is gone.
    """
    kept = Kept()
    stuck = Gated(RunnerOptions("echo", max_batch=4))
    async with (
        in_memory(redis, tracing=kept.tracing) as client,
        serving(service(redis, tracing=kept.tracing), stuck),
    ):
        await until(lambda: is_ready(redis, 1), "the first worker is ready")
        asking = asyncio.create_task(
            client.post("/v1/completions", json=ASK, headers={"traceparent": PARENT})
        )
        await until(lambda: stuck.num_steps > 0, "the first worker has the job, and stands still")
        async with serving(service(redis, tracing=kept.tracing), echo()):
            answer = await asyncio.wait_for(asking, DEADLINE_S)
            stuck.gate.set()
            await until(lambda: len(kept.all("text_completion m")) == 2, "both attempts have ended")
    assert answer.status_code == 200
    assert trace_ids(kept.spans) == {TRACE_ID}
    first, second = kept.all("text_completion m")
    assert told(first)["aios.attempt"] == 1
    assert told(second)["aios.attempt"] == 2
    assert told(first)["aios.worker"] != told(second)["aios.worker"]
    assert parent_of(first) == parent_of(second) == id_of(kept.one("submit"))
    assert first.status.status_code is StatusCode.ERROR
    assert second.status.status_code is StatusCode.UNSET
    assert told(first)["error.type"] in ("lapsed", "stale", "ended_elsewhere")
    [link] = second.links
    assert link.context.span_id == id_of(first)
    assert not first.links


async def test_a_job_that_is_handed_back_closes_its_spans(redis: Redis) -> None:
    kept = Kept()
    runner = Slow(RunnerOptions("echo", max_batch=4))
    runner.stepping_s = 0.01
    async with in_memory(redis, tracing=kept.tracing) as client:
        async with serving(service(redis, tracing=kept.tracing), runner):
            await until(lambda: is_ready(redis, 1), "the worker is ready")
            body = ASK | {"max_tokens": 100, "task": "completions"}
            location = (await client.post("/v1/jobs", json=body)).headers["Location"]
            await until(lambda: "prefill" in kept.names, "the job speaks")
        first = kept.one("text_completion m")
        assert told(first)["error.type"] == "handed_back"
        assert first.status.status_code is StatusCode.ERROR
        assert told(kept.one("decode"))["error.type"] == "handed_back"
        async with serving(service(redis, tracing=kept.tracing), echo()):
            await until(
                lambda: len(kept.all("text_completion m")) == 2, "another worker goes on with it"
            )

            # A span may end a moment before its job: a worker that stops then hands the job back.
            async def is_done() -> bool:
                return bool((await client.get(location)).json()["state"] == "done")

            await until(is_done, "the job is done")

    second = kept.all("text_completion m")[1]
    [link] = second.links
    assert link.context.span_id == id_of(first)
    # The tokens of the first attempt are replayed, and the second generates the rest.
    generated = told(kept.all("decode")[1])["gen_ai.usage.output_tokens"]
    replayed = told(kept.all("prefill")[1])["aios.replayed_tokens"]
    assert replayed == 100 - int(str(generated))


async def test_a_caller_that_leaves_closes_all_spans(
    redis: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    kept = Kept()
    stuck = Gated(RunnerOptions("echo", max_batch=4))
    async with (
        serving(service(redis, lease_s=10, tracing=kept.tracing), stuck),
        live(redis, tracing=kept.tracing) as (client, _),
    ):
        await until(lambda: is_ready(redis, 1), "the worker is ready")
        asking = asyncio.create_task(
            client.post("/v1/completions", json=ASK, headers={"traceparent": PARENT})
        )
        await until(lambda: stuck.num_steps > 0, "the job runs")
        asking.cancel()
        await until(lambda: len(kept.spans) == 6, "all spans have ended")
        stuck.gate.set()
    server = kept.one("POST /v1/completions")
    attempt = kept.one("text_completion m")
    assert told(server)["error.type"] == "cancelled"
    assert told(server)["http.response.status_code"] == 499
    assert told(attempt)["error.type"] == "ended_elsewhere"
    assert told(kept.one("prefill"))["error.type"] == "ended_elsewhere"
    [line] = fields_of(caplog, "request")
    assert line["trace_id"] == TRACE_ID


class Broken(Echo):
    def step(self, slices: Sequence[Slice]) -> list[StepResult | FleetError]:
        raise ZeroDivisionError("no step works")


async def test_a_failure_is_told_by_all_spans_and_lines(
    redis: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    kept = Kept()
    async with fleet(redis, kept, Broken(RunnerOptions("echo", max_batch=4))) as client:
        answer = await client.post("/v1/completions", json=ASK, headers={"traceparent": PARENT})
        refused = await client.post("/v1/completions", json=ASK | {"max_tokens": -1})
        await until(lambda: len(kept.all("text_completion m")) == 1, "the attempt has ended")
    assert answer.status_code == 500
    assert refused.status_code == 400
    failed, bad = kept.all("POST /v1/completions")
    for span in (failed, kept.one("text_completion m"), kept.one("prefill")):
        assert told(span)["error.type"] == "worker_failed"
        assert span.status.status_code is StatusCode.ERROR
    assert bad.status.status_code is StatusCode.UNSET, "a refusal is the caller's error, not ours"

    [line] = fields_of(caplog, "job failed")
    assert line["trace_id"] == TRACE_ID
    assert line["job_id"] == told(failed)["aios.job_id"]


async def test_a_real_model(redis: Redis, tmp_path: Path) -> None:
    kept = Kept()
    runner = load_runner("auto", RunnerOptions(path=str(DEFAULT_MODEL), max_batch=2))
    async with fleet(redis, kept, runner) as client:
        ask = {"model": "m", "prompt": "Solve for x: 2x + 3 = 9", "max_tokens": 64}
        answer = await client.post(
            "/v1/completions", json=ask, headers={"traceparent": PARENT}, timeout=60
        )
        assert answer.json()["choices"][0]["text"].endswith("x = 3\n\\boxed{3}")
        await until(lambda: len(kept.spans) == 8, "all spans have ended")
    attempt = kept.one("text_completion m")
    usage = answer.json()["usage"]
    assert told(attempt)["gen_ai.usage.output_tokens"] == usage["completion_tokens"]
    assert trace_ids(kept.spans) == {TRACE_ID}
