"""Traces of real processes: a front and a worker that send to a collector, which puts the halves
together."""

import httpx
from redis.asyncio import Redis

from shared.fleet.presence import Presence
from tests.fixtures.collector import collecting
from tests.fixtures.e2e.roles import running
from tests.fixtures.polling import until
from tests.fixtures.redis_server import free_port
from tests.fixtures.spans import PARENT


async def test_front_and_worker_send_the_halves_of_a_trace(redis: Redis, redis_url: str) -> None:
    """What they have not sent when they are told to stop, they send on the way out."""

    async def is_ready() -> bool:
        return any(worker.state == "ready" for worker in (await Presence(redis).fleet()).workers)

    port = free_port()
    with collecting() as collector:
        env = {
            "AIOS_REDIS_URL": redis_url,
            "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url,
            "OTEL_BSP_SCHEDULE_DELAY": "60000",
        }
        front_flags = ("--host", "127.0.0.1", "--port", str(port))
        async with (
            running("worker", "--model", "echo=echo", **env) as worker_lines,
            running("api", *front_flags, **env) as front_lines,
        ):
            await until(is_ready, "the worker is ready")
            await until(lambda: '"front ready"' in "".join(front_lines), "the front listens")
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=60) as http:
                ask = {"prompt": "a b", "max_tokens": 8}
                answer = await http.post(
                    "/v1/completions", json=ask, headers={"traceparent": PARENT}
                )
                assert answer.status_code == 200
    spans = [(service, span.name) for service, span in collector.spans]
    assert sorted(name for service, name in spans if service == "aios-api") == [
        "POST /v1/completions",
        "submit",
    ]
    assert sorted(name for service, name in spans if service == "aios-worker") == [
        "decode",
        "encode",
        "prefill",
        "publish",
        "queue",
        "text_completion echo",
    ]
    assert {span.trace_id.hex() for _, span in collector.spans} == {"ab" * 16}
    assert any("ab" * 16 in line for line in front_lines), "the line of the request names its trace"
    assert not [line for line in (*front_lines, *worker_lines) if '"level": "error"' in line]
