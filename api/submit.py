"""From a body that was understood to work: queued, or found by its key or among answers given before."""

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from api.answers import attached
from api.cache import AnswerCache, digest_of
from api.context import Context
from api.dispatch import Following
from api.endpoint import Endpoint, Plan
from api.patience import redis_answers
from api.record import Record, Work, encode_record
from api.stopwatch import Stopwatch
from shared.errors import DeviceUnavailable, Draining, InvalidRequest, ModelFailed, ModelNotFound, NoWorker
from shared.messages import ModelInfo, Task
from shared.requests import new_follower
from shared.submission import Order
from shared.tracing import Attributes


async def submit(context: Context, endpoint: Endpoint, body: Any, *, is_streamed: bool) -> Following:
    """Queued, or found by its key. The script that queues looks for the key; who finds no model looks before: what the
    caller comes back to needs no model."""
    front = context.front
    try:
        model = await front.admission.resolve(endpoint.model_of(body), endpoint.task)
        plan = endpoint.plan(body, model, front.admission.limits)
    except (DeviceUnavailable, Draining, InvalidRequest, ModelFailed, ModelNotFound, NoWorker):
        async with redis_answers():
            known = await front.submissions.known(context.caller.tenant, context.key)
        if known is None:
            raise
        return await attached(front, known, context.caller, stays=context.stays)
    return await _submit(context, endpoint, model, plan, is_streamed=is_streamed)


async def _submit(
    context: Context, endpoint: Endpoint, model: ModelInfo, plan: Plan, *, is_streamed: bool
) -> Following:
    front, caller, wishes, trail = context.front, context.caller, context.wishes, context.trail
    caller.check_model(model.id)
    on_disconnect = context.on_disconnect
    times = front.admission.limits.times(wishes.deadline_s)
    record = Record(endpoint.name, model.id, int(time.time()), plan.n, plan.capped_at, on_disconnect, dict(plan.notes))
    order = Order(
        model.id,
        tuple(plan.tasks),
        caller.tenant,
        caller.clamped(wishes.priority),
        times.queue_s,
        times.deadline_s,
        wishes.deadline_s is not None,
        request_id=trail.request_id,
        is_streamed=is_streamed,
        key=context.key,
        record=encode_record(record),
        follower=new_follower() if context.stays and on_disconnect != "continue" else "",
    )
    cache = front.cache
    digest = _digest(context, model, record, plan.tasks)
    if cache and digest and (before := await _answered(context, cache, digest, model)):
        return before
    told: Attributes = {"aios.model": model.id, "aios.num_jobs": len(order.tasks), "aios.class": order.priority}
    with trail.span.child("submit", "producer", told) as span:
        order = replace(order, trace=span.trace)
        request, jobs = await front.admission.submit(order, caller.quota)
    if not jobs:
        return await attached(front, request, caller, stays=context.stays)
    if cache and digest:
        await cache.note(caller.tenant, digest, request)
    front.metrics.admissions.labels(model.id, order.priority).inc()
    return Following(
        Work(request, record),
        times.queue_s,
        times.deadline_s,
        order.follower,
        cache="miss" if digest else "",
        watch=Stopwatch(front.metrics, model.id, len(jobs)),
        caller=caller,
    )


def _digest(context: Context, model: ModelInfo, record: Record, tasks: Sequence[Task]) -> str | None:
    """What to look for among answers given before; a key says by itself which answer it wants."""
    is_wanted = context.front.cache and context.wishes.cache != "no-store" and not context.wishes.key
    return digest_of(record, tasks) if is_wanted and model.fingerprint else None


async def _answered(context: Context, cache: AnswerCache, digest: str, model: ModelInfo) -> Following | None:
    if context.wishes.cache == "no-cache":
        return None
    request = await cache.find(context.caller.tenant, digest, model.fingerprint)
    if request is None:
        return None
    return replace(await attached(context.front, request, context.caller, stays=False), cache="hit")
