"""Dependencies of the routes: the parts of this front, made once, and the state of the request."""

import asyncio
import logging
from dataclasses import dataclass
from typing import Annotated, Literal

from fastapi import Depends, FastAPI, Request

from api.access.auth import Auth, build_auth
from api.access.revocations import Revocations
from api.endpoints.endpoint import Endpoints
from api.exporter import MetricsExporter
from api.fleet import FleetView
from api.http.request_state import RequestState, request_state_of
from api.redis_timeout import REDIS_TIMEOUT_S
from api.stream.cancellation import CancellationQueue
from api.stream.dispatch import Dispatcher
from api.submit.admission import Admission
from api.submit.cache import AnswerCache
from api.submit.limits import Limits
from api.submit.prohibited import Prohibited, read_terms
from api.submit.request_record import OnDisconnect
from shared.artifacts.store import ArtifactStore, open_artifacts
from shared.events.log import LogReader
from shared.events.subscriptions import Subscriptions
from shared.fleet.presence import Presence
from shared.queue import keys
from shared.queue.batches import Batches
from shared.queue.broker import Broker
from shared.queue.experiment_log import ExperimentLog
from shared.queue.queue_stats import QueueStats
from shared.queue.rate_limiter import RateLimiter
from shared.queue.repeats import Repeats
from shared.queue.requests import Requests
from shared.queue.submission import QueueLimits, Submissions
from shared.queue.usage_ledger import UsageLedger
from shared.queue.webhooks import WebhookEndpoints
from shared.settings.settings import Settings
from shared.telemetry.metrics import Metrics
from shared.telemetry.process import LoopLag, measure_process
from shared.webhooks.targets import Network, networks

# With uvicorn's grace of a second for the last writes, a front exits within two seconds.
_CLOSE_S = 0.4

log = logging.getLogger("aios.api")


@dataclass(frozen=True)
class BatchLimits:
    """The most bytes of a batch's input, and its longest completion window."""

    max_bytes: int
    max_window_s: float


@dataclass(frozen=True)
class Front:
    """The parts of this front, which `build_front` wires together.

    `draining` is set once, when this process has been told to stop.
    """

    broker: Broker
    fleet: FleetView
    admission: Admission
    dispatcher: Dispatcher
    submissions: Submissions
    requests: Requests
    experiment_log: ExperimentLog
    usage_ledger: UsageLedger
    reader: LogReader
    cache: AnswerCache | None
    endpoints: Endpoints
    auth: Auth
    rate_limiter: RateLimiter
    prohibited: Prohibited
    artifacts: ArtifactStore
    batches: Batches
    batch_limits: BatchLimits
    webhooks: WebhookEndpoints
    webhook_allow: tuple[Network, ...]
    max_body_bytes: int
    metrics: Metrics
    exporter: MetricsExporter
    lag: LoopLag
    draining: asyncio.Event
    subscriptions: Subscriptions
    keepalive_s: float
    on_disconnect: OnDisconnect
    healthz_mode: Literal["live", "ready"]

    async def close(self) -> None:
        """Wait a moment for what is under way to end.

        While Redis hangs it does not end, and the process is to exit all the same.
        """
        try:
            async with asyncio.timeout(_CLOSE_S):
                await self.dispatcher.close()
                await self.subscriptions.close()
        except TimeoutError:
            log.warning("redis not waited for at close")


def build_front(settings: Settings, broker: Broker, endpoints: Endpoints) -> Front:
    """Wire the parts of a front together. Nothing connects yet.

    Raise SettingsError for settings whose faults only show here, such as a key with two meanings.
    """
    metrics = Metrics()
    draining = asyncio.Event()
    lag = LoopLag()
    measure_process(metrics.process, broker, lag)
    submissions = Submissions(
        broker, result_ttl_s=settings.result_ttl_s, key_ttl_s=settings.idempotency_ttl_s
    )
    requests = Requests(broker, result_ttl_s=settings.result_ttl_s)
    cancellations = CancellationQueue(submissions, requests)
    fleet = FleetView(Presence(broker.client(keys.PRESENCE)))
    subscriptions = Subscriptions(broker.client(keys.PRESENCE))
    reader = LogReader(broker, subscriptions)
    cache = None
    if settings.response_cache_ttl_s:
        repeats = Repeats(broker, ttl_s=settings.response_cache_ttl_s)
        cache = AnswerCache(repeats, requests, reader)
    auth = build_auth(settings, broker)
    dispatcher = Dispatcher(
        cancellations,
        reader,
        metrics,
        Revocations(auth),
        disconnect_grace_s=settings.disconnect_grace_s,
    )
    return Front(
        broker=broker,
        fleet=fleet,
        admission=Admission(
            fleet,
            submissions,
            cancellations,
            draining=draining,
            limits=limits_of(settings),
            default_model=settings.default_model,
            experiments={experiment.name: experiment for experiment in settings.ab},
        ),
        dispatcher=dispatcher,
        submissions=submissions,
        requests=requests,
        experiment_log=ExperimentLog(broker),
        usage_ledger=UsageLedger(broker),
        reader=reader,
        cache=cache,
        endpoints=endpoints,
        auth=auth,
        rate_limiter=RateLimiter(broker),
        prohibited=Prohibited(read_terms(settings)),
        artifacts=open_artifacts(settings, broker, timeout_s=REDIS_TIMEOUT_S),
        batches=Batches(broker, most_open=settings.batch_max_open),
        batch_limits=BatchLimits(settings.batch_max_bytes, settings.batch_max_window_s),
        webhooks=WebhookEndpoints(broker, most=settings.webhook_max_endpoints),
        webhook_allow=networks(settings.webhook_allow),
        max_body_bytes=settings.max_body_bytes,
        metrics=metrics,
        exporter=MetricsExporter(fleet, QueueStats(broker), metrics),
        lag=lag,
        draining=draining,
        subscriptions=subscriptions,
        keepalive_s=settings.keepalive_s,
        on_disconnect=settings.on_disconnect,
        healthz_mode=settings.healthz_mode,
    )


def limits_of(settings: Settings) -> Limits:
    """Return the limits of a request under these settings."""
    return Limits(
        max_new_tokens=settings.max_new_tokens,
        cap_policy=settings.cap_policy,
        max_prompts=settings.max_prompts_per_request,
        queue_limits=QueueLimits(settings.max_queue_depth, settings.max_queue_bytes),
        queue_timeout_s=settings.queue_timeout_s,
        request_timeout_s=settings.request_timeout_s,
        absent_grace_s=settings.absent_grace_s,
    )


def front_of(app: FastAPI) -> Front:
    """Return the parts of the front that an application was made of."""
    front: Front = app.state.front
    return front


async def _front(request: Request) -> Front:
    return front_of(request.app)


async def _request_state(request: Request) -> RequestState:
    return request_state_of(request.scope)


FrontDep = Annotated[Front, Depends(_front)]
RequestStateDep = Annotated[RequestState, Depends(_request_state)]
