"""Submit the work that a body asks for, or find it by its key or among earlier answers."""

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from api.endpoints.context import RequestContext
from api.endpoints.endpoint import Endpoint, TaskPlan
from api.redis_timeout import redis_answers
from api.stream.answers import attached
from api.stream.dispatch import RequestFollower
from api.stream.stopwatch import Stopwatch
from api.submit.cache import AnswerCache, digest_of
from api.submit.request_record import RequestRecord, SubmittedWork, encode_record
from api.submit.stored_inputs import with_stored_inputs
from shared.errors import (
    DeviceUnavailable,
    Draining,
    InvalidRequest,
    ModelFailed,
    ModelNotFound,
    NoWorker,
)
from shared.messages import ModelInfo, Task, name_of
from shared.queue.requests import new_follower_id
from shared.queue.submission import SubmitRequest
from shared.telemetry.tracing import Attributes


async def submit(
    context: RequestContext, endpoint: Endpoint, body: Any, *, is_streamed: bool
) -> RequestFollower:
    """Queue the tasks of the body, or find the request that came before with the same key.

    The script that queues jobs looks for the key. Where no model is found, the key is looked up
    here: a caller that comes back to its work needs no model any more. Raise the FleetErrors of
    admission.
    """
    front = context.front
    try:
        name = _model_name(context, endpoint, body)
        model = await front.admission.resolve(name, endpoint.task, endpoint.problems)
        body = await with_stored_inputs(context, body)
        plan = endpoint.plan(body, model, front.admission.limits)
    except (DeviceUnavailable, Draining, InvalidRequest, ModelFailed, ModelNotFound, NoWorker):
        async with redis_answers():
            known = await front.submissions.known(context.caller.tenant, context.key)
        if known is None:
            raise
        return await attached(front, known, context.caller, stays=context.stays)
    return await _submit(context, endpoint, model, plan, is_streamed=is_streamed)


def _model_name(context: RequestContext, endpoint: Endpoint, body: Any) -> str | None:
    """Return the model that a body asks for: of an experiment, the arm for this caller's key.

    A request without a key of its own is spread by its idempotency key, so that it gets the same
    arm when it comes again, else at random.
    """
    name = endpoint.model_of(body)
    options = context.options
    request_state = context.request_state
    key = options.ab_key or getattr(body, "user", None) or options.key or request_state.request_id
    assignment = context.front.admission.assign(name, context.caller.tenant, key)
    if assignment is None:
        return name
    request_state.assignment = assignment
    return assignment.arm


async def _submit(
    context: RequestContext,
    endpoint: Endpoint,
    model: ModelInfo,
    plan: TaskPlan,
    *,
    is_streamed: bool,
) -> RequestFollower:
    front = context.front
    caller = context.caller
    caller.check_model(model.id)
    experiment = ""
    if context.request_state.assignment is not None:
        experiment = context.request_state.assignment.experiment
    record = RequestRecord(
        endpoint=endpoint.name,
        model=model.id,
        created=int(time.time()),
        n=plan.n,
        capped_at=plan.capped_at,
        on_disconnect=context.on_disconnect,
        notes=dict(plan.notes),
        experiment=experiment,
    )
    submit_request = _submit_request(context, model, record, plan, is_streamed=is_streamed)
    # Those who wait for their answers pay nothing for webhooks.
    if context.may_have_webhook:
        async with redis_answers():
            has_webhook = await front.webhooks.are_there(caller.tenant)
        submit_request = replace(submit_request, has_webhook=has_webhook)

    cache = front.cache
    digest = None
    # An earlier request has ended already, and its end would not be an event any more.
    if not submit_request.has_webhook:
        digest = _digest(context, model, record, plan.tasks)
    if cache and digest:
        earlier = await _answered(context, cache, digest, model)
        if earlier is not None:
            return earlier

    attributes: Attributes = {
        "aios.model": model.id,
        "aios.num_jobs": len(submit_request.tasks),
        "aios.class": submit_request.priority,
        "aios.experiment": experiment or None,
    }
    with context.request_state.span.child("submit", "producer", attributes) as span:
        submit_request = replace(submit_request, trace=span.trace)
        request, jobs = await front.admission.submit(submit_request, caller.quota)
    if not jobs:
        return await attached(front, request, caller, stays=context.stays)
    if cache and digest:
        # The request has not been answered yet: `AnswerCache.find` looks whether it has.
        await cache.note(caller.tenant, digest, request)
    front.metrics.admissions.labels(model.id, submit_request.priority).inc()
    if experiment:
        front.metrics.ab_requests.labels(experiment, model.id).inc()
    return RequestFollower(
        SubmittedWork(request, record),
        queue_s=submit_request.queue_timeout_s,
        deadline_s=submit_request.deadline_s,
        follower_id=submit_request.follower_id,
        cache="miss" if digest else "",
        watch=Stopwatch(front.metrics, model.id, [name_of(job.task) for job in jobs]),
        caller=caller,
    )


def _submit_request(
    context: RequestContext,
    model: ModelInfo,
    record: RequestRecord,
    plan: TaskPlan,
    *,
    is_streamed: bool,
) -> SubmitRequest:
    """Return the request for the queue: the tasks, with all that the context says of them."""
    caller = context.caller
    options = context.options
    times = context.front.admission.limits.times(options.deadline_s)
    follower_id = ""
    if context.stays and record.on_disconnect != "continue":
        follower_id = new_follower_id()
    return SubmitRequest(
        model=model.id,
        tasks=tuple(plan.tasks),
        leaders=tuple(plan.leaders),
        tenant=caller.tenant,
        priority=caller.clamped(options.priority),
        queue_timeout_s=times.queue_s,
        deadline_s=times.deadline_s,
        is_urgent=options.deadline_s is not None,
        request_id=context.request_state.request_id,
        is_streamed=is_streamed,
        key=context.key,
        record=encode_record(record),
        follower_id=follower_id,
        experiment=record.experiment,
        api_key=caller.id,
        budget=caller.budget,
        context_window=model.context_window,
    )


def _digest(
    context: RequestContext, model: ModelInfo, record: RequestRecord, tasks: Sequence[Task]
) -> str | None:
    """Return the digest by which an earlier answer is found; None where none may be used.

    A request with an idempotency key says by the key which answer it wants.
    """
    if context.front.cache is None or context.options.cache == "no-store" or context.options.key:
        return None
    if not model.fingerprint:
        return None
    return digest_of(record, tasks)


async def _answered(
    context: RequestContext, cache: AnswerCache, digest: str, model: ModelInfo
) -> RequestFollower | None:
    """Return a follower of an earlier request with the same answer, None if there is none."""
    if context.options.cache == "no-cache":
        return None
    request = await cache.find(context.caller.tenant, digest, model.fingerprint)
    if request is None:
        return None
    follower = await attached(context.front, request, context.caller, stays=False)
    return replace(follower, cache="hit")
