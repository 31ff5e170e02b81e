"""Deliver events to webhook endpoints: one attempt at a time, until it is done or given up.

Nothing here waits between attempts: whoever calls is told when the next one is due, and keeps that
in a queue which outlives this process.
"""

import logging
import random
from collections import Counter
from collections.abc import Callable, Sequence

from shared.queue.webhooks import Delivery, Outcome, WebhookDeliveries
from shared.telemetry.logging_setup import fields
from shared.telemetry.metrics import WebhookMetrics
from shared.webhooks.sender import Reply, Sender
from shared.webhooks.signing import signed_headers

BACKOFF_S = (5.0, 300.0, 1800.0, 7200.0, 18_000.0, 36_000.0, 36_000.0)
"""The waits between attempts: those that Standard Webhooks proposes, 28 hours together."""
_JITTER = 0.1
_MOST_OF_TENANT = 8
"""The most deliveries of a tenant at once, so that its slow receivers hold up no other's."""
_BUSY_S = 10.0
_GONE = 410

log = logging.getLogger("aios.webhooks")


class Deliverer:
    """Delivers events, in any number of processes. `random` returns numbers from 0 to 1."""

    def __init__(
        self,
        deliveries: WebhookDeliveries,
        sender: Sender,
        metrics: WebhookMetrics,
        *,
        backoff_s: Sequence[float] = BACKOFF_S,
        random: Callable[[], float] = random.random,
    ) -> None:
        self._deliveries = deliveries
        self._sender = sender
        self._metrics = metrics
        self._backoff_s = tuple(backoff_s)
        self._random = random
        self._in_flight: Counter[str] = Counter()

    async def take_events(self) -> list[str]:
        """Return the names of deliveries that are to be queued: new ones, and forgotten ones."""
        names = await self._deliveries.take_events()
        names += await self._deliveries.overdue()
        self._metrics.oldest.set(await self._deliveries.oldest_s())
        return names

    async def deliver(self, name: str) -> float | None:
        """Make one attempt. Return the seconds until the next, None if none is to come."""
        delivery = await self._deliveries.begin(name)
        if delivery is None:
            return None
        tenant = delivery.event.tenant
        if self._in_flight[tenant] >= _MOST_OF_TENANT:
            return 1 + self._random() * _BUSY_S
        self._in_flight[tenant] += 1
        try:
            return await self._attempt(delivery)
        finally:
            self._in_flight[tenant] -= 1
            if not self._in_flight[tenant]:
                del self._in_flight[tenant]

    async def _attempt(self, delivery: Delivery) -> float | None:
        event = delivery.event
        payload = event.payload
        headers = signed_headers(event.id, delivery.now_s, payload, delivery.secrets)
        reply = await self._sender.post(delivery.url, payload, headers)
        outcome = _outcome(reply)
        next_s = self._next_s(delivery) if outcome == "failed" else None
        goes_on, reason = await self._deliveries.note(
            delivery,
            outcome,
            status=reply.status,
            error=reply.error,
            took_ms=reply.took_ms,
            next_s=next_s,
        )
        told = "retried" if goes_on else outcome
        self._metrics.attempts.labels(told).inc()
        # URLs may hold secrets of their receivers, and so are not logged.
        extra = fields(
            endpoint=delivery.endpoint,
            event=event.id,
            attempt=delivery.tries + 1,
            outcome=told,
            status=reply.status,
            error=reply.error,
        )
        log.debug("webhook attempt", extra=extra)
        if reason:
            extra = fields(endpoint=delivery.endpoint, tenant=event.tenant, reason=reason)
            log.warning("webhook endpoint disabled", extra=extra)
        return next_s if goes_on else None

    def _next_s(self, delivery: Delivery) -> float | None:
        """Return the wait after a failed attempt, None if it was the last one."""
        if delivery.is_test or delivery.tries >= len(self._backoff_s):
            return None
        # Receivers that were away together are not called together again.
        spread = 1 + _JITTER * (2 * self._random() - 1)
        return self._backoff_s[delivery.tries] * spread


def _outcome(reply: Reply) -> Outcome:
    if 200 <= reply.status < 300:
        return "delivered"
    if reply.status == _GONE:
        return "gone"
    return "failed"
