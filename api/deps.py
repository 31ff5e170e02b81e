"""What every route is given: the parts of this front, made once per app, and the trail of the request at hand."""

import asyncio
from dataclasses import dataclass
from typing import Annotated, Literal

from fastapi import Depends, Request

from api.admission import Admission, Limits
from api.dispatch import Dispatcher
from api.fleet import FleetView
from api.trail import Trail, trail_of
from shared import keys
from shared.broker import Broker
from shared.log import LogReader
from shared.metrics import Metrics
from shared.presence import Presence
from shared.settings import Settings
from shared.submission import Room, Submissions
from shared.subscriptions import Subscriptions


@dataclass(frozen=True)
class Front:
    """`draining` is set once, when this process has been told to stop."""

    fleet: FleetView
    admission: Admission
    dispatcher: Dispatcher
    submissions: Submissions
    metrics: Metrics
    draining: asyncio.Event
    subscriptions: Subscriptions
    keepalive_s: float
    healthz_mode: Literal["live", "ready"]

    async def close(self) -> None:
        await self.dispatcher.close()
        await self.subscriptions.close()


def build_front(settings: Settings, broker: Broker) -> Front:
    """Wire the parts together; nothing connects yet."""
    metrics, draining = Metrics(), asyncio.Event()
    submissions = Submissions(broker, result_ttl_s=settings.result_ttl_s)
    fleet = FleetView(Presence(broker.client(keys.PRESENCE)))
    subscriptions = Subscriptions(broker.client(keys.PRESENCE))
    limits = Limits(
        max_new_tokens=settings.max_new_tokens,
        cap_policy=settings.cap_policy,
        max_prompts=settings.max_prompts_per_request,
        room=Room(settings.max_queue_depth),
        queue_timeout_s=settings.queue_timeout_s,
        request_timeout_s=settings.request_timeout_s,
    )
    dispatcher = Dispatcher(
        submissions,
        LogReader(broker, subscriptions),
        metrics,
        queue_timeout_s=settings.queue_timeout_s,
        request_timeout_s=settings.request_timeout_s,
    )
    return Front(
        fleet=fleet,
        admission=Admission(fleet, submissions, dispatcher, draining, limits, settings.default_model),
        dispatcher=dispatcher,
        submissions=submissions,
        metrics=metrics,
        draining=draining,
        subscriptions=subscriptions,
        keepalive_s=settings.keepalive_s,
        healthz_mode=settings.healthz_mode,
    )


async def _front(request: Request) -> Front:
    front: Front = request.app.state.front
    return front


async def _trail(request: Request) -> Trail:
    return trail_of(request.scope)


FrontDep = Annotated[Front, Depends(_front)]
TrailDep = Annotated[Trail, Depends(_trail)]
