"""A front and a worker, as real processes, send the two halves of a trace to one collector."""

import httpx
from redis.asyncio import Redis

from shared.fleet.presence import Presence
from tests.fixtures.collector import collecting
from tests.fixtures.e2e.roles import running
from tests.fixtures.polling import until
from tests.fixtures.redis_server import free_port
from tests.fixtures.spans import PARENT


async def test_front_and_worker_send_the_halves_of_a_trace(redis: Redis, redis_url: str) -> None:
    """Each process sends its last spans before it ends."""

    async def is_ready() -> bool:
        fleet = await Presence(redis).fleet()
        return any(worker.state == "ready" for worker in fleet.workers)

    port = free_port()
    with collecting() as collector:
        env = {
            "AIOS_REDIS_URL": redis_url,
            "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url,
            # No batch is due within the test, so all spans are sent at the end.
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
                body = {"prompt": "a b", "max_tokens": 8}
                headers = {"traceparent": PARENT}
                answer = await http.post("/v1/completions", json=body, headers=headers)
                assert answer.status_code == 200

    trace_id = "ab" * 16
    names: dict[str, list[str]] = {"aios-api": [], "aios-worker": []}
    for service, span in collector.spans:
        assert span.trace_id.hex() == trace_id
        if service in names:
            names[service].append(span.name)
    assert sorted(names["aios-api"]) == ["POST /v1/completions", "submit"]
    assert sorted(names["aios-worker"]) == [
        "decode",
        "encode",
        "prefill",
        "publish",
        "queue",
        "text_completion echo",
    ]

    assert trace_id in "".join(front_lines), "the line of the request names its trace"
    for line in (*front_lines, *worker_lines):
        assert '"level": "error"' not in line
