"""Webhooks as jobs of arq: each delivery is one, which arq runs again when its next attempt is due.

They have a queue and a worker of their own, so that slow receivers hold up no sweep and no batch.
The id of a job is made of the delivery, so a delivery is queued once. A process that is killed amid
an attempt leaves its job in the queue, and arq runs it again when `TIMEOUT_S` is over.
"""

import asyncio
import json
from typing import Any

from arq import Retry, cron, func
from arq.cron import CronJob
from arq.worker import Worker

from scripts.cli.arq_queue import TAG, open_queue, queue_name, to_json
from shared.queue.broker import Broker
from shared.queue.webhooks import WebhookDeliveries
from shared.settings.settings import Settings
from shared.telemetry.metrics import WebhookMetrics
from shared.webhooks.deliverer import Deliverer
from shared.webhooks.sender import Sender
from shared.webhooks.targets import networks

QUEUE = queue_name("webhooks")
DELIVER = "deliver"
TIMEOUT_S = 30
"""More than an attempt may take (`Sender`)."""
_MOST_AT_ONCE = 64
# Each takes a connection of its own for a moment.
_QUEUED_AT_ONCE = 20
# Longer than all attempts together take: arq forgets jobs that are older.
_LIVES_S = 3 * 86_400
# The deliverer counts attempts. For arq a job may be run again as often as it asks for it.
_ANY_NUMBER = 1 << 31


def make_deliverer(settings: Settings, broker: Broker, metrics: WebhookMetrics) -> Deliverer:
    """Return what delivers webhooks under these settings."""
    sender = Sender(networks(settings.webhook_allow))
    return Deliverer(WebhookDeliveries(broker), sender, metrics)


def make_webhook_worker(broker: Broker, deliverer: Deliverer, **options: Any) -> Worker:
    """Return arq's worker that delivers webhooks. It never closes the broker's connections."""
    redis = open_queue(broker, QUEUE)

    async def deliver(ctx: dict[Any, Any], name: str) -> None:
        next_s = await deliverer.deliver(name)
        if next_s is not None:
            raise Retry(defer=next_s)

    async def take_events(ctx: dict[Any, Any], *args: Any, **kwargs: Any) -> None:
        names = await deliverer.take_events()
        for start in range(0, len(names), _QUEUED_AT_ONCE):
            queueing = []
            for name in names[start : start + _QUEUED_AT_ONCE]:
                job_id = f"{{{TAG}}}:webhook:{name}"
                queueing.append(redis.enqueue_job(DELIVER, name, _job_id=job_id, _expires=_LIVES_S))
            await asyncio.gather(*queueing)

    given: dict[str, Any] = {
        "job_timeout": TIMEOUT_S,
        "max_jobs": _MOST_AT_ONCE,
        **options,
    }
    return Worker(
        functions=[func(deliver, name=DELIVER, max_tries=_ANY_NUMBER)],
        redis_pool=redis,
        queue_name=QUEUE,
        job_serializer=to_json,
        job_deserializer=json.loads,
        cron_jobs=[_every_second(take_events)],
        handle_signals=False,
        keep_result=0,
        log_results=False,
        **given,
    )


def _every_second(take_events: Any) -> CronJob:
    return cron(take_events, name=f"{{{TAG}}}:webhook-events", second=set(range(60)), max_tries=1)
