"""Running roles export every metric that is queried, with the labels that the list in the code
promises."""

from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families
from redis.asyncio import Redis

from scripts.cli.arq_queue import TAG
from shared.messages import Generate, Sampling
from shared.queue import keys
from shared.queue.broker import Broker
from shared.queue.janitor import Janitor
from shared.telemetry.metrics import JanitorMetrics, WorkerMetrics
from tests.fixtures.api.fronts import in_memory
from tests.fixtures.burst_worker import make_burst_worker
from tests.fixtures.deploy.asked import ALERTS, BOARD, checker, documented, plain
from tests.fixtures.deploy.exported import OTHERS, TARGET, exported
from tests.fixtures.desk import Desk
from tests.fixtures.polling import until
from tests.fixtures.worker.services import service, serving
from worker.engine.runner import RunnerOptions
from worker.runners.echo import Echo

_NOT_HERE = {"aios_worker_device_memory_bytes"}
"""Exported only where there is a GPU."""


async def test_running_roles_tell_what_is_asked_for(redis: Redis) -> None:
    texts = [*await front_and_worker(redis), await janitor(redis)]

    labels: dict[str, set[str]] = {}
    for text in texts:
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                labels.setdefault(sample.name, set()).update(sample.labels)

    expected = queried_names() - OTHERS.keys() - _NOT_HERE
    assert expected <= labels.keys()
    for name in expected:
        assert labels[name] | TARGET == exported()[name].labels, name


async def front_and_worker(redis: Redis) -> list[str]:
    """Return their metrics after some answers, a repetition and a refusal."""
    worker = service(redis)
    metrics = WorkerMetrics()
    worker.tell(metrics)
    async with (
        serving(worker, Echo(RunnerOptions("echo", max_batch=4))),
        in_memory(redis) as client,
    ):

        async def is_ready() -> bool:
            return (await client.get("/readyz")).is_success

        await until(is_ready, "the front has heard of the worker")
        body = {"prompts": ["a b c d"], "max_tokens": 3}
        headers = {"Idempotency-Key": "k"}
        for _ in range(2):
            answer = await client.post("/generate", json=body, headers=headers)
            assert answer.status_code == 200
        refused = await client.post("/generate", json={**body, "model": "none"})
        assert refused.status_code == 404

        page = await client.get("/metrics")
        return [page.text, metrics.render().decode()]


async def janitor(redis: Redis) -> str:
    """Return the janitor's metrics after a sweep that found something."""
    task = Generate("a", Sampling(max_tokens=1, seed=0))
    [job] = await Desk(redis).submit(task)
    lapsed = {"expires_ms": "1", "deadline_ms": "1"}
    await redis.hset(keys.job(job.id), mapping=lapsed)  # type: ignore[misc]
    metrics = JanitorMetrics()
    broker = Broker(redis)
    worker = make_burst_worker(broker, Janitor(broker, grace_s=0), metrics)
    await worker.pool.enqueue_job(f"{{{TAG}}}:jobs", _job_id=f"{{{TAG}}}:jobs:1")
    await worker.async_run()
    return generate_latest(metrics.registry).decode()


def queried_names() -> set[str]:
    """Return the names in all expressions, without those that rules record."""
    expressions = documented()
    for rule in ALERTS.values():
        expressions.append(rule["expr"])
    for panel in BOARD["panels"]:
        for target in panel.get("targets", []):
            expressions.append(target["expr"])

    check = checker()
    for expression in expressions:
        check.check(plain(expression))
    # Recorded series have a colon in their names.
    return {name for name in check.used if ":" not in name}
