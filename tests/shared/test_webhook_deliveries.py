"""Events reach the endpoints that take them: tried again, signed anew, given up, and logged.

Waits are returned, not waited for: a test makes the next attempt when it likes.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import openai
import pytest
from redis.asyncio import Redis

from shared.errors import InvalidRequest, WebhookNotFound
from shared.queue import keys
from shared.queue.broker import Broker
from shared.queue.webhooks import (
    EVENT_TYPES,
    WebhookDeliveries,
    WebhookEndpoint,
    WebhookEndpoints,
)
from shared.telemetry.metrics import JanitorMetrics
from shared.webhooks.deliverer import BACKOFF_S, Deliverer
from shared.webhooks.sender import Reply, Sender
from shared.webhooks.targets import networks
from tests.fixtures.polling import until
from tests.fixtures.receiver import Got, Receiver, receiving

CLIENT = openai.OpenAI(api_key="none", base_url="http://nowhere")
DAY_MS = 86_400_000
BATCH = "batch_" + "1" * 32


class Hooks:
    """The endpoints of tenants, and a process that delivers to them."""

    def __init__(self, redis: Redis, receiver: Receiver) -> None:
        self.redis = redis
        self.receiver = receiver
        self.broker = Broker(redis, 2)
        self.endpoints = WebhookEndpoints(self.broker, most=3)
        self.metrics = JanitorMetrics()
        self.sender = Sender(networks(("127.0.0.0/8",)))
        self.deliverer = self.another_deliverer()

    def another_deliverer(self) -> Deliverer:
        """Return what another process would deliver with."""
        deliveries = WebhookDeliveries(self.broker)
        return Deliverer(deliveries, self.sender, self.metrics.webhooks, random=lambda: 0.5)

    async def endpoint(self, tenant: str = "ann", *types: str) -> WebhookEndpoint:
        return await self.endpoints.create(
            tenant, name="n", url=self.receiver.url, event_types=types or EVENT_TYPES
        )

    async def happen(
        self, event_id: str = "evt_1", kind: str = "batch.completed", tenant: str = "ann"
    ) -> None:
        """Put an event out as the scripts do."""
        entry = {"event": event_id, "tenant": tenant, "type": kind, "object": BATCH}
        at_ms = int(time.time() * 1000)
        await self.redis.xadd(keys.outbox("01"), entry | {"at_ms": at_ms})  # type: ignore[arg-type]

    async def one(self) -> str:
        """Return the name of the only delivery that is to be queued."""
        [name] = await self.deliverer.take_events()
        return name

    async def attempts(self, endpoint: WebhookEndpoint) -> list[tuple[str, int, str, int | None]]:
        """Return event, number, outcome and status of each attempt, the first one first."""
        found = await self.endpoints.attempts(endpoint.tenant, endpoint.id, 100)
        return [(one.event, one.attempt, one.outcome, one.status) for one in reversed(found)]

    async def set(self, endpoint: WebhookEndpoint, **values: int) -> None:
        """Set fields of an endpoint's record, for times that have passed."""
        await self.redis.hset(keys.webhook(endpoint.id), mapping=values)  # type: ignore[misc]

    def counted(self, outcome: str) -> float | None:
        return self.metrics.registry.get_sample_value(
            "aios_webhook_attempts_total", {"outcome": outcome}
        )


@pytest.fixture
async def hooks(redis: Redis) -> AsyncIterator[Hooks]:
    async with receiving() as receiver:
        hooks = Hooks(redis, receiver)
        yield hooks


def unwrapped(got: Got, secret: str) -> Any:
    """Return the event as OpenAI's client reads it. Raise InvalidWebhookSignatureError."""
    return CLIENT.webhooks.unwrap(got.body, got.headers, secret=secret)


async def test_an_event_is_delivered_signed(hooks: Hooks, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    endpoint = await hooks.endpoint()
    await hooks.happen()
    name = await hooks.one()
    assert await hooks.deliverer.deliver(name) is None

    [got] = hooks.receiver.got
    event = unwrapped(got, endpoint.secret)
    assert (event.id, event.type, event.data.id) == ("evt_1", "batch.completed", BATCH)
    assert event.object == "event"
    assert abs(event.created_at - time.time()) < 60
    assert list(json.loads(got.body)) == ["id", "object", "created_at", "type", "data"]
    assert got.headers["webhook-id"] == "evt_1"
    assert await hooks.attempts(endpoint) == [("evt_1", 1, "delivered", 200)]
    assert hooks.counted("delivered") == 1
    [record] = [record for record in caplog.records if record.name == "aios.webhooks"]
    assert record.message == "webhook attempt"
    for line in caplog.records:
        for secret in (endpoint.secret, endpoint.url, got.headers["webhook-signature"]):
            assert secret not in str(line.__dict__)

    # Nothing is left, and nothing is sent again.
    assert await hooks.deliverer.take_events() == []
    assert await hooks.deliverer.deliver(name) is None
    assert len(hooks.receiver.got) == 1
    assert await hooks.redis.exists(keys.PENDING_DELIVERIES, keys.DUE_DELIVERIES) == 0


async def test_only_endpoints_of_the_tenant_that_take_the_type_are_told(hooks: Hooks) -> None:
    everything = await hooks.endpoint("ann")
    await hooks.endpoint("ann", "job.failed", "batch.expired")
    failures = await hooks.endpoint("ann", "batch.failed")
    await hooks.endpoint("bob")
    await hooks.happen("evt_1", "batch.completed")
    await hooks.happen("evt_2", "batch.failed")
    await hooks.happen("evt_3", "batch.failed", tenant="nobody")
    names = await hooks.deliverer.take_events()
    expected = [("evt_1", everything), ("evt_2", everything), ("evt_2", failures)]
    assert sorted(names) == sorted(f"{event_id}:{one.id}" for event_id, one in expected)


async def test_a_failed_attempt_is_made_again_with_the_same_id_and_payload(hooks: Hooks) -> None:
    endpoint = await hooks.endpoint()
    hooks.receiver.answers = [500, 302, 404]
    await hooks.happen()
    name = await hooks.one()
    waits = [await hooks.deliverer.deliver(name) for _ in range(4)]
    assert waits == [5.0, 300.0, 1800.0, None]

    assert {got.headers["webhook-id"] for got in hooks.receiver.got} == {"evt_1"}
    assert len({got.body for got in hooks.receiver.got}) == 1
    for got in hooks.receiver.got:
        unwrapped(got, endpoint.secret)
    assert await hooks.attempts(endpoint) == [
        ("evt_1", 1, "failed", 500),
        ("evt_1", 2, "failed", 302),
        ("evt_1", 3, "failed", 404),
        ("evt_1", 4, "delivered", 200),
    ]
    last, third, *_ = await hooks.endpoints.attempts("ann", endpoint.id, 2)
    assert last.next_at is None
    assert third.next_at is not None and abs(third.next_at - third.at - 1800) < 1
    assert hooks.counted("retried") == 3
    # One delivery heals an endpoint.
    record = await hooks.redis.hgetall(keys.webhook(endpoint.id))  # type: ignore[misc]
    assert b"failing_ms" not in record


async def test_it_is_given_up_after_the_last_attempt(hooks: Hooks) -> None:
    endpoint = await hooks.endpoint()
    hooks.receiver.answers = [503] * 20
    await hooks.happen()
    name = await hooks.one()
    waits = []
    while (wait := await hooks.deliverer.deliver(name)) is not None:
        waits.append(wait)
    assert tuple(waits) == BACKOFF_S
    assert len(hooks.receiver.got) == len(BACKOFF_S) + 1
    assert hooks.counted("failed") == 1
    last, *_ = await hooks.endpoints.attempts("ann", endpoint.id, 1)
    assert (last.outcome, last.next_at) == ("failed", None)
    assert await hooks.deliverer.take_events() == []
    assert (await hooks.endpoints.find("ann", endpoint.id)).status == "enabled"


def test_waits_are_spread() -> None:
    """By at most a tenth, so that receivers that were away together are not called together."""
    deliveries: Any = None
    for random, factor in ((0.0, 0.9), (0.5, 1.0), (1.0, 1.1)):
        metrics = JanitorMetrics().webhooks
        deliverer = Deliverer(deliveries, deliveries, metrics, random=partial(float, random))
        delivery: Any = type("Delivery", (), {"is_test": False, "tries": 1})
        assert deliverer._next_s(delivery) == pytest.approx(300 * factor)


async def test_a_receiver_that_is_gone_is_told_nothing_more(hooks: Hooks) -> None:
    endpoint = await hooks.endpoint()
    hooks.receiver.answers = [410]
    await hooks.happen("evt_1")
    await hooks.happen("evt_2")
    first, second = await hooks.deliverer.take_events()
    assert await hooks.deliverer.deliver(first) is None
    found = await hooks.endpoints.find("ann", endpoint.id)
    assert (found.status, found.reason) == ("disabled", "gone")

    # Neither what waits nor what happens later is sent.
    assert await hooks.deliverer.deliver(second) is None
    await hooks.happen("evt_3")
    assert await hooks.deliverer.take_events() == []
    assert len(hooks.receiver.got) == 1

    # Any change enables it.
    changed = await hooks.endpoints.update("ann", endpoint.id, {})
    assert (changed.status, changed.reason) == ("enabled", "")
    await hooks.happen("evt_4")
    assert await hooks.deliverer.deliver(await hooks.one()) is None
    assert len(hooks.receiver.got) == 2


async def test_an_endpoint_that_fails_for_days_is_disabled(hooks: Hooks) -> None:
    endpoint = await hooks.endpoint()
    hooks.receiver.answers = [500, 500, 500]
    await hooks.happen()
    name = await hooks.one()
    assert await hooks.deliverer.deliver(name) == 5.0
    now_ms = int(time.time() * 1000)
    await hooks.set(endpoint, failing_ms=now_ms - 5 * DAY_MS + 60_000)
    assert await hooks.deliverer.deliver(name) == 300.0
    await hooks.set(endpoint, failing_ms=now_ms - 5 * DAY_MS)
    assert await hooks.deliverer.deliver(name) is None
    found = await hooks.endpoints.find("ann", endpoint.id)
    assert (found.status, found.reason) == ("disabled", "failing")


async def test_for_a_day_the_old_secret_signs_as_well(hooks: Hooks) -> None:
    old = await hooks.endpoint()
    new = await hooks.endpoints.rotate("ann", old.id, keeps_old=True)
    assert new.secret != old.secret
    await hooks.happen("evt_1")
    await hooks.deliverer.deliver(await hooks.one())
    [got] = hooks.receiver.got
    assert unwrapped(got, old.secret) == unwrapped(got, new.secret)
    assert len(got.headers["webhook-signature"].split()) == 2

    await hooks.set(old, old_until_ms=int(time.time() * 1000) - 1)
    await hooks.happen("evt_2")
    await hooks.deliverer.deliver(await hooks.one())
    unwrapped(hooks.receiver.got[1], new.secret)
    with pytest.raises(openai.InvalidWebhookSignatureError):
        unwrapped(hooks.receiver.got[1], old.secret)


@pytest.mark.parametrize("keeps_old", [False, True])
async def test_a_secret_that_got_out_is_of_no_use_at_once(hooks: Hooks, keeps_old: bool) -> None:
    """A new one without the old, or two new ones, leave nothing of it."""
    first = await hooks.endpoint()
    if keeps_old:
        await hooks.endpoints.rotate("ann", first.id, keeps_old=True)
    last = await hooks.endpoints.rotate("ann", first.id, keeps_old=keeps_old)
    await hooks.happen()
    await hooks.deliverer.deliver(await hooks.one())
    [got] = hooks.receiver.got
    unwrapped(got, last.secret)
    with pytest.raises(openai.InvalidWebhookSignatureError):
        unwrapped(got, first.secret)


async def test_a_process_that_dies_between_any_two_steps_loses_nothing(
    hooks: Hooks, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next one finds the event where it was, and sends it with the same id."""
    endpoint = await hooks.endpoint()
    await hooks.happen()

    class Killed(Exception):
        pass

    def die(*_: object, **__: object) -> None:
        raise Killed

    # Planned, and not removed from the outbox.
    with monkeypatch.context() as patch:
        patch.setattr(Redis, "xdel", die)
        with pytest.raises(Killed):
            await hooks.deliverer.take_events()
    # Planned once all the same, and queued by nobody.
    assert await hooks.another_deliverer().take_events() == [f"evt_1:{endpoint.id}"]
    assert await hooks.redis.xlen(keys.outbox("01")) == 0
    assert await hooks.another_deliverer().take_events() == []
    await hooks.redis.zadd(keys.DUE_DELIVERIES, {f"evt_1:{endpoint.id}": 1})
    [name] = await hooks.another_deliverer().take_events()

    # Sent, and not noted.
    with monkeypatch.context() as patch:
        patch.setattr(WebhookDeliveries, "note", die)
        with pytest.raises(Killed):
            await hooks.deliverer.deliver(name)
    assert await hooks.another_deliverer().deliver(name) is None
    assert await hooks.another_deliverer().deliver(name) is None
    assert [got.headers["webhook-id"] for got in hooks.receiver.got] == ["evt_1", "evt_1"]
    assert await hooks.attempts(endpoint) == [("evt_1", 1, "delivered", 200)]


async def test_an_attempt_is_noted_once(hooks: Hooks) -> None:
    """The answer of the script may be lost, or two processes may have made the same attempt."""
    endpoint = await hooks.endpoint()
    await hooks.happen()
    name = await hooks.one()
    deliveries = WebhookDeliveries(hooks.broker)
    delivery = await deliveries.begin(name)
    assert delivery is not None
    for _ in range(2):
        noted = await deliveries.note(
            delivery, "failed", status=500, error="", took_ms=1, next_s=5.0
        )
        assert noted == (True, "")
    assert len(await hooks.attempts(endpoint)) == 1
    again = await deliveries.begin(name)
    assert again is not None and again.tries == 1


async def test_what_is_deleted_meanwhile_is_not_sent(hooks: Hooks) -> None:
    endpoint = await hooks.endpoint()
    await hooks.happen("evt_1")
    name = await hooks.one()
    await hooks.endpoints.delete("ann", endpoint.id)
    assert await hooks.deliverer.deliver(name) is None
    await hooks.happen("evt_2")
    assert await hooks.deliverer.take_events() == []
    assert hooks.receiver.got == []
    left = [key async for key in hooks.redis.scan_iter("aios:{webhooks}:*")]
    for key in left:
        assert await hooks.redis.pttl(key) > 0, key


async def test_a_delete_amid_an_attempt_leaves_no_log(
    hooks: Hooks, monkeypatch: pytest.MonkeyPatch
) -> None:
    endpoint = await hooks.endpoint()
    await hooks.happen()
    name = await hooks.one()

    async def post(*_: object) -> Reply:
        await hooks.endpoints.delete("ann", endpoint.id)
        return Reply(500, "", 1)

    monkeypatch.setattr(hooks.sender, "post", post)
    assert await hooks.deliverer.deliver(name) is None
    assert await hooks.redis.exists(keys.delivery_attempts(endpoint.id)) == 0


async def test_a_test_is_sent_once_to_its_endpoint_even_if_that_is_disabled(hooks: Hooks) -> None:
    endpoint = await hooks.endpoint()
    await hooks.endpoint()
    hooks.receiver.answers = [410, 500]
    await hooks.happen()
    for name in await hooks.deliverer.take_events():
        if name.endswith(endpoint.id):
            await hooks.deliverer.deliver(name)
    for kind in ("batch.failed", "job.completed"):
        event_id = await hooks.endpoints.test(endpoint, kind)  # type: ignore[arg-type]
        name = f"{event_id}:{endpoint.id}"
        assert name in await hooks.deliverer.take_events()
        assert await hooks.deliverer.deliver(name) is None
        assert unwrapped(hooks.receiver.got[-1], endpoint.secret).type == kind
    assert (await hooks.endpoints.find("ann", endpoint.id)).status == "disabled"
    outcomes = [outcome for _, _, outcome, _ in await hooks.attempts(endpoint)]
    assert outcomes == ["gone", "failed", "delivered"]


async def test_what_may_not_be_called_is_refused_at_each_attempt(hooks: Hooks) -> None:
    """Also if it was right when it was registered: names change hands."""
    hooks.sender = Sender(())
    hooks.deliverer = hooks.another_deliverer()
    endpoint = await hooks.endpoint()
    await hooks.happen()
    assert await hooks.deliverer.deliver(await hooks.one()) == 5.0
    [attempt] = await hooks.endpoints.attempts("ann", endpoint.id, 10)
    assert (attempt.status, attempt.error) == (None, "address_refused")
    assert hooks.receiver.got == []


async def test_a_tenants_slow_receivers_leave_room_for_others(
    hooks: Hooks, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = asyncio.Event()

    async def post(*_: object) -> Reply:
        await release.wait()
        return Reply(200, "", 1)

    monkeypatch.setattr(hooks.sender, "post", post)
    ann = await hooks.endpoint("ann")
    await hooks.endpoint("bob")
    for number in range(10):
        await hooks.happen(f"evt_{number}")
    await hooks.happen("evt_b", tenant="bob")
    names = await hooks.deliverer.take_events()
    running = [asyncio.create_task(hooks.deliverer.deliver(name)) for name in names]
    # Two of the tenant come again in some seconds, which counts as no attempt.
    await until(lambda: sum(task.done() for task in running) == 2, "two have no room")
    assert [task.result() for task in running if task.done()] == [6.0, 6.0]
    release.set()
    await asyncio.gather(*running)
    assert len(await hooks.attempts(ann)) == 8


async def test_the_age_of_the_oldest_event_is_told(hooks: Hooks) -> None:
    def age_s() -> float | None:
        return hooks.metrics.registry.get_sample_value("aios_webhook_oldest_seconds")

    await hooks.endpoint()
    await hooks.happen()
    name = await hooks.one()
    await hooks.redis.zadd(keys.PENDING_DELIVERIES, {name: (time.time() - 90) * 1000})
    await hooks.deliverer.take_events()
    assert 88 < (age_s() or 0) < 120
    await hooks.deliverer.deliver(name)
    await hooks.deliverer.take_events()
    assert age_s() == 0


async def test_a_tenant_has_so_many_endpoints_and_no_others(hooks: Hooks) -> None:
    mine = [await hooks.endpoint("ann") for _ in range(3)]
    with pytest.raises(InvalidRequest, match="3 webhook endpoints"):
        await hooks.endpoint("ann")
    await hooks.endpoint("bob")
    assert {one.id for one in await hooks.endpoints.all_of("ann")} == {one.id for one in mine}
    for foreign in (mine[0].id, "we_" + "0" * 32, "we_x", "", mine[0].id + "\n"):
        for act in (
            hooks.endpoints.find("bob", foreign),
            hooks.endpoints.update("bob", foreign, {"url": "https://evil.test/"}),
            hooks.endpoints.rotate("bob", foreign, keeps_old=True),
            hooks.endpoints.delete("bob", foreign),
            hooks.endpoints.attempts("bob", foreign, 10),
        ):
            with pytest.raises(WebhookNotFound):
                await act
    assert await hooks.endpoints.find("ann", mine[0].id) == mine[0]
    assert await hooks.endpoints.are_there("ann")
    for one in mine:
        await hooks.endpoints.delete("ann", one.id)
    assert not await hooks.endpoints.are_there("ann")


async def test_the_log_of_attempts_is_bounded(hooks: Hooks) -> None:
    endpoint = await hooks.endpoint()
    deliveries = WebhookDeliveries(hooks.broker)
    for number in range(400):
        await hooks.happen(f"evt_{number}")
    for name in await hooks.deliverer.take_events():
        delivery = await deliveries.begin(name)
        assert delivery is not None
        await deliveries.note(delivery, "delivered", status=200, error="", took_ms=1, next_s=None)
    name = keys.delivery_attempts(endpoint.id)
    # Redis trims whole nodes of a stream, of 100 entries each.
    assert 200 <= await hooks.redis.xlen(name) <= 300
    assert await hooks.redis.pttl(name) > 0
