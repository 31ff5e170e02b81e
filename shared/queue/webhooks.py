"""Webhooks in Redis: endpoints of tenants, events that have happened, and their deliveries.

An event is put into an outbox by the script that ends a job or a batch, beside the keys of that
job or batch. From there it is planned: for each endpoint that takes it a delivery is made, which
lasts until the event is delivered or given up. Every step is safe to repeat. Times are those of
Redis.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from secrets import token_hex
from typing import Literal, cast, get_args

import msgspec

from shared.errors import InvalidRequest, WebhookNotFound
from shared.queue import keys
from shared.queue.broker import Broker
from shared.queue.script import Script
from shared.webhooks.signing import new_secret

EventType = Literal[
    "batch.completed",
    "batch.failed",
    "batch.expired",
    "batch.cancelled",
    "job.completed",
    "job.failed",
    "job.cancelled",
]
EVENT_TYPES: tuple[EventType, ...] = get_args(EventType)
EndpointStatus = Literal["enabled", "disabled"]
Outcome = Literal["delivered", "failed", "gone"]
"""The outcome of an attempt. A receiver that is `gone` wants nothing any more (410)."""

_OLD_SECRET_S = 86_400
_DISABLED_AFTER_S = 5 * 86_400
"""An endpoint at which every attempt has failed for so long is disabled."""
_OVERDUE_MS = 60_000
_MOST_TAKEN = 500
"""The most events that are taken from an outbox at once. The others are taken a second later."""
_MOST_OVERDUE = 100


@dataclass(frozen=True)
class WebhookEndpoint:
    """A URL to which events of a tenant are sent. Times are in seconds since 1970.

    `reason` tells why it is disabled: `gone`, or `failing` for days.
    """

    id: str
    tenant: str
    name: str
    url: str
    event_types: tuple[str, ...]
    status: EndpointStatus
    reason: str
    secret: str
    created_at: int
    updated_at: int


@dataclass(frozen=True)
class WebhookEvent:
    """Something that has happened to an `object`, a request or a batch, at `at_ms`.

    One with an `endpoint` is a test of that one alone.
    """

    id: str
    tenant: str
    type: str
    object: str
    at_ms: int
    endpoint: str = ""

    @property
    def payload(self) -> bytes:
        """The body that is sent, which is the same in every attempt."""
        body = {
            "id": self.id,
            "object": "event",
            "created_at": self.at_ms // 1000,
            "type": self.type,
            "data": {"id": self.object},
        }
        return msgspec.json.encode(body)


@dataclass(frozen=True)
class Delivery:
    """An event on its way to an endpoint, as it is before an attempt at `now_s`.

    `tries` have been made before. Each of `secrets` signs.
    """

    name: str
    event: WebhookEvent
    endpoint: str
    url: str
    secrets: tuple[str, ...]
    tries: int
    is_test: bool
    now_s: int


@dataclass(frozen=True)
class Attempt:
    """An attempt to deliver an event, as endpoints' owners see it.

    `status` is of HTTP, None where there was no answer: then `error` tells why. `next_at` is when
    the next attempt is due, None if none follows.
    """

    event: str
    type: str
    attempt: int
    outcome: Outcome
    status: int | None
    error: str | None
    took_ms: int
    at: float
    next_at: float | None


class WebhookEndpoints:
    """The endpoints of all tenants, of which each may have `most`."""

    def __init__(self, broker: Broker, *, most: int = 10) -> None:
        self._redis = broker.client(keys.WEBHOOKS)
        self._most = most
        self._create = Script(broker, "webhook_create", needs=("webhooks",))
        self._update = Script(broker, "webhook_update", needs=("webhooks",))
        self._delete = Script(broker, "webhook_delete", needs=("webhooks",))

    async def create(
        self, tenant: str, *, name: str, url: str, event_types: Sequence[str]
    ) -> WebhookEndpoint:
        """Make an endpoint, with a new secret. Raise InvalidRequest if the tenant has too many."""
        endpoint_id = keys.new_webhook_id()
        fields = {
            "name": name,
            "url": url,
            "types": " ".join(event_types),
            "secret": new_secret(),
        }
        made = await self._create.call(
            keys.WEBHOOKS, id=endpoint_id, tenant=tenant, fields=fields, most=self._most
        )
        if made == b"full":
            raise InvalidRequest(
                f"A tenant may have {self._most} webhook endpoints: delete one first."
            )
        return await self.find(tenant, endpoint_id)

    async def find(self, tenant: str, endpoint_id: str) -> WebhookEndpoint:
        """Return an endpoint. Raise WebhookNotFound if the tenant has none with this id."""
        endpoint = None
        if keys.is_webhook_id(endpoint_id):
            [endpoint] = await self._read([endpoint_id])
        if endpoint is None or endpoint.tenant != tenant:
            raise _not_found(endpoint_id)
        return endpoint

    async def all_of(self, tenant: str) -> list[WebhookEndpoint]:
        """Return the endpoints of a tenant, the newest first."""
        ids = await self._redis.zrange(keys.webhooks_of(tenant), 0, -1, desc=True)
        found = await self._read([endpoint_id.decode() for endpoint_id in ids])
        return [endpoint for endpoint in found if endpoint is not None]

    async def are_there(self, tenant: str) -> bool:
        """Return whether a tenant has an endpoint."""
        return bool(await self._redis.exists(keys.webhooks_of(tenant)))

    async def update(
        self, tenant: str, endpoint_id: str, fields: Mapping[str, str]
    ) -> WebhookEndpoint:
        """Set some of `name`, `url` and `types` (with spaces between), and enable the endpoint.

        Raise WebhookNotFound.
        """
        return await self._change(tenant, endpoint_id, fields, old_s=0)

    async def rotate(self, tenant: str, endpoint_id: str, *, keeps_old: bool) -> WebhookEndpoint:
        """Give an endpoint a new secret. With `keeps_old` the present one also signs for a day.

        Raise WebhookNotFound.
        """
        old_s = _OLD_SECRET_S if keeps_old else 0
        return await self._change(tenant, endpoint_id, {"secret": new_secret()}, old_s=old_s)

    async def delete(self, tenant: str, endpoint_id: str) -> None:
        """Forget an endpoint, and what was to be delivered to it. Raise WebhookNotFound."""
        is_gone = False
        if keys.is_webhook_id(endpoint_id):
            is_gone = bool(await self._delete.call(keys.WEBHOOKS, id=endpoint_id, tenant=tenant))
        if not is_gone:
            raise _not_found(endpoint_id)

    async def test(self, endpoint: WebhookEndpoint, event_type: str) -> str:
        """Put an event out for this endpoint alone, to be tried once. Return the event's id."""
        event_id = f"evt_{token_hex(16)}"
        object_id = keys.NO_BATCH_ID if event_type.startswith("batch.") else keys.NO_ID
        seconds, _ = await self._redis.time()
        await self._redis.xadd(
            keys.outbox(keys.WEBHOOKS),
            {
                "event": event_id,
                "tenant": endpoint.tenant,
                "type": event_type,
                "object": object_id,
                "at_ms": int(seconds) * 1000,
                "endpoint": endpoint.id,
            },
        )
        return event_id

    async def attempts(self, tenant: str, endpoint_id: str, limit: int) -> list[Attempt]:
        """Return the last attempts to deliver to an endpoint, the newest first.

        Raise WebhookNotFound.
        """
        endpoint = await self.find(tenant, endpoint_id)
        name = keys.delivery_attempts(endpoint.id)
        entries = await self._redis.xrevrange(name, count=limit)
        return [_attempt(entry, fields) for entry, fields in entries]

    async def _change(
        self, tenant: str, endpoint_id: str, fields: Mapping[str, str], *, old_s: int
    ) -> WebhookEndpoint:
        is_there = False
        if keys.is_webhook_id(endpoint_id):
            changed = await self._update.call(
                keys.WEBHOOKS, id=endpoint_id, tenant=tenant, fields=fields, old_ms=old_s * 1000
            )
            is_there = bool(changed)
        if not is_there:
            raise _not_found(endpoint_id)
        return await self.find(tenant, endpoint_id)

    async def _read(self, ids: Sequence[str]) -> list[WebhookEndpoint | None]:
        pipe = self._redis.pipeline(transaction=False)
        for endpoint_id in ids:
            pipe.hgetall(keys.webhook(endpoint_id))
        endpoints = []
        for endpoint_id, fields in zip(ids, await pipe.execute(), strict=True):
            endpoints.append(_endpoint(endpoint_id, fields) if fields else None)
        return endpoints


class WebhookDeliveries:
    """The outboxes and the deliveries, for the process that sends them."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._redis = broker.client(keys.WEBHOOKS)
        self._plan = Script(broker, "webhook_plan", needs=("webhooks",))
        self._begin = Script(broker, "webhook_begin", needs=("webhooks",))
        self._note = Script(broker, "webhook_note", needs=("webhooks",))

    async def take_events(self) -> list[str]:
        """Make deliveries of the oldest events in each outbox.

        Return the names of those to be sent.
        """
        names: list[str] = []
        for tag in (*self._broker.shards, keys.BATCHES, keys.WEBHOOKS):
            client = self._broker.client(tag)
            entries = await client.xrange(keys.outbox(tag), count=_MOST_TAKEN)
            if not entries:
                continue
            names += await self._planned([_event(fields) for _, fields in entries])
            # Only when they are planned: an event that is read twice is planned once.
            await client.xdel(keys.outbox(tag), *[entry for entry, _ in entries])
        return names

    async def overdue(self) -> list[str]:
        """Return deliveries that were due some time ago, and may have been forgotten by arq."""
        seconds, _ = await self._redis.time()
        before_ms = int(seconds) * 1000 - _OVERDUE_MS
        names = await self._redis.zrangebyscore(
            keys.DUE_DELIVERIES, "-inf", before_ms, start=0, num=_MOST_OVERDUE
        )
        return [name.decode() for name in names]

    async def begin(self, name: str) -> Delivery | None:
        """Return a delivery for an attempt, None if it is over."""
        values = await self._begin.call(keys.WEBHOOKS, name=name)
        if not values:
            return None
        event_id, endpoint, kind, object_id, at_ms, tries, is_test = values[:7]
        tenant, url, secret, old_secret, now_ms = values[7:]
        event = WebhookEvent(
            event_id.decode(), tenant.decode(), kind.decode(), object_id.decode(), at_ms
        )
        secrets = [secret.decode()]
        if old_secret:
            secrets.append(old_secret.decode())
        return Delivery(
            name=name,
            event=event,
            endpoint=endpoint.decode(),
            url=url.decode(),
            secrets=tuple(secrets),
            tries=tries,
            is_test=bool(is_test),
            now_s=now_ms // 1000,
        )

    async def note(
        self,
        delivery: Delivery,
        outcome: Outcome,
        *,
        status: int,
        error: str,
        took_ms: int,
        next_s: float | None,
    ) -> tuple[bool, str]:
        """Note an attempt. After a failed one the next is to come in `next_s`, None for never.

        Return whether one is to come, and why the endpoint was disabled just now, "" if it was not.
        """
        goes_on, reason = await self._note.call(
            keys.WEBHOOKS,
            name=delivery.name,
            tries=delivery.tries,
            outcome=outcome,
            status=status,
            error=error,
            took_ms=took_ms,
            next_ms=-1 if next_s is None else int(next_s * 1000),
            failing_ms=_DISABLED_AFTER_S * 1000,
        )
        return bool(goes_on), reason.decode()

    async def oldest_s(self) -> float:
        """Return the age of the oldest event that is not delivered, 0 if there is none."""
        oldest = await self._redis.zrange(keys.PENDING_DELIVERIES, 0, 0, withscores=True)
        if not oldest:
            return 0.0
        seconds, _ = await self._redis.time()
        age_s: float = int(seconds) - oldest[0][1] / 1000
        return max(0.0, age_s)

    async def _planned(self, events: Sequence[WebhookEvent]) -> list[str]:
        """Make the deliveries of events. Return the names of those that are not over."""
        given = [asdict(event) for event in events]
        names = await self._plan.call(keys.WEBHOOKS, events=given)
        return [name.decode() for name in names]


def _endpoint(endpoint_id: str, fields: Mapping[bytes, bytes]) -> WebhookEndpoint:
    def text(name: str) -> str:
        return fields.get(name.encode(), b"").decode()

    return WebhookEndpoint(
        id=endpoint_id,
        tenant=text("tenant"),
        name=text("name"),
        url=text("url"),
        event_types=tuple(text("types").split()),
        status=cast(EndpointStatus, text("status")),
        reason=text("reason"),
        secret=text("secret"),
        created_at=int(text("created_ms")) // 1000,
        updated_at=int(text("updated_ms")) // 1000,
    )


def _event(fields: Mapping[bytes, bytes]) -> WebhookEvent:
    return WebhookEvent(
        id=fields[b"event"].decode(),
        tenant=fields[b"tenant"].decode(),
        type=fields[b"type"].decode(),
        object=fields[b"object"].decode(),
        at_ms=int(fields[b"at_ms"]),
        endpoint=fields.get(b"endpoint", b"").decode(),
    )


def _attempt(entry: bytes, fields: Mapping[bytes, bytes]) -> Attempt:
    next_ms = int(fields[b"next_ms"])
    return Attempt(
        event=fields[b"event"].decode(),
        type=fields[b"type"].decode(),
        attempt=int(fields[b"attempt"]),
        outcome=cast(Outcome, fields[b"outcome"].decode()),
        status=int(fields[b"status"]) or None,
        error=fields[b"error"].decode() or None,
        took_ms=int(fields[b"took_ms"]),
        # The id of an entry begins with the time at which it was written.
        at=int(entry.partition(b"-")[0]) / 1000,
        next_at=next_ms / 1000 if next_ms else None,
    )


def _not_found(endpoint_id: str) -> WebhookNotFound:
    return WebhookNotFound(f"id: webhook endpoint {endpoint_id[:64]!r} does not exist.", field="id")
