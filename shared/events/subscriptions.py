"""The pub/sub connection of a process, shared by all that follow a job.

Delivery here is best effort: a listener that must not miss anything reads the job's log as well
(`shared.events.log`).
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from redis.asyncio import Redis

from shared.queue.broker import UNAVAILABLE

Message = bytes
Sink = Callable[[Message], None]
"""A listener. It is called with every message, in their order, and must not raise."""


@dataclass
class _Channel:
    """The listeners of one channel, and whether Redis has confirmed the subscription."""

    confirmed: asyncio.Event = field(default_factory=asyncio.Event)
    sinks: list[Sink] = field(default_factory=list)


class Subscriptions:
    """Subscribes to a channel with its first listener and unsubscribes with its last."""

    def __init__(self, redis: Redis, *, confirm_timeout_s: float = 2.0) -> None:
        self._pubsub = redis.pubsub()
        self.channels: dict[str, _Channel] = {}
        self._confirm_timeout_s = confirm_timeout_s
        self._reader: asyncio.Task[None] | None = None
        # Two commands at once would open two connections, and lose the subscriptions of one.
        self._connecting = asyncio.Lock()

    @asynccontextmanager
    async def listen(self, name: str) -> AsyncIterator["asyncio.Queue[Message]"]:
        """Yield a queue of the channel's messages, as `attached` says."""
        inbox: asyncio.Queue[Message] = asyncio.Queue()
        async with self.attached(name, inbox.put_nowait):
            yield inbox

    @asynccontextmanager
    async def attached(self, name: str, sink: Sink) -> AsyncIterator[None]:
        """Call `sink` with the channel's messages during the block.

        The block begins once Redis has confirmed the subscription. When no confirmation comes in
        time (Redis is away), it begins all the same: the log closes the gap.
        """
        channel = self.channels.get(name)
        is_first = channel is None
        if channel is None:
            channel = _Channel()
            self.channels[name] = channel
        channel.sinks.append(sink)
        try:
            if is_first:
                await self._subscribe(name)
            await self._confirmation(channel)
            yield
        finally:
            channel.sinks.remove(sink)
            if not channel.sinks and self.channels.get(name) is channel:
                del self.channels[name]
                await self._unsubscribe(name)

    async def keep(self, name: str, sink: Sink) -> None:
        """Call `sink` with the channel's messages until these subscriptions are closed.

        Return once Redis has confirmed the subscription, or when no confirmation comes in time. A
        channel has one sink; a second call only waits for the confirmation.
        """
        channel = self.channels.setdefault(name, _Channel(sinks=[sink]))
        if not channel.confirmed.is_set():
            # An earlier call may have been cancelled before it had sent this.
            await self._subscribe(name)
            await self._confirmation(channel)

    async def close(self) -> None:
        """Stop listening. No queue gets a message any more."""
        if self._reader is not None:
            self._reader.cancel()
            await asyncio.gather(self._reader, return_exceptions=True)
        # A connection that does not close in time is given up all the same.
        with suppress(*UNAVAILABLE):
            await self._pubsub.aclose()  # type: ignore[no-untyped-call]

    async def _confirmation(self, channel: _Channel) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(self._confirm_timeout_s):
                await channel.confirmed.wait()

    async def _subscribe(self, name: str) -> None:
        try:
            async with self._connecting:
                await self._pubsub.subscribe(name)
        except UNAVAILABLE:
            # Redis is away: nothing comes by this channel, and its listeners read the log instead.
            return
        if self._reader is None or self._reader.done():
            self._reader = asyncio.create_task(self._read(), name="subscriptions")

    async def _unsubscribe(self, name: str) -> None:
        with suppress(*UNAVAILABLE):
            async with self._connecting:
                await self._pubsub.unsubscribe(name)

    async def _read(self) -> None:
        while True:
            try:
                message = await self._pubsub.get_message(timeout=None)
            except UNAVAILABLE:
                await asyncio.sleep(0.2)
                await self._reconnect()
                continue
            if message is not None:
                self.dispatch(message)

    async def _reconnect(self) -> None:
        """Connect again. redis-py then subscribes to all channels again."""
        with suppress(*UNAVAILABLE):
            async with self._connecting:
                await self._pubsub.connect()  # type: ignore[no-untyped-call]

    def dispatch(self, message: dict[str, Any]) -> None:
        """Hand a message of redis-py's to the listeners of its channel."""
        channel = self.channels.get(message["channel"].decode())
        if channel is None:
            return
        if message["type"] == "subscribe":
            channel.confirmed.set()
        elif message["type"] == "message":
            for sink in channel.sinks:
                sink(message["data"])
