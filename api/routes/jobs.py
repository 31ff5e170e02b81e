"""`/v1/jobs/{id}`: what became of a request that was submitted on any endpoint; its stream, its
result, its end.

A caller sees the jobs of its own tenant; all others are not there.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Header, Request
from fastapi.responses import Response

from api.access.caller import CallerDep
from api.deps import Front, FrontDep, RequestStateDep
from api.endpoints.dialect import Dialect
from api.endpoints.endpoint import Endpoint
from api.http.error_format import PLAIN
from api.http.headers import answer_headers
from api.http.problem import problem_of
from api.redis_timeout import redis_answers
from api.schemas.jobs import FOLLOWED, JobStatus
from api.schemas.usage import usage_body
from api.stream.answers import attached, stream
from api.stream.cursor import Cursor
from api.stream.request_events import OutcomeBuilder, error_of, total_usage
from api.stream.timings import timings_of
from api.submit.request_record import SubmittedWork, work_of
from shared.messages import Cancelled, Event, Failed
from shared.queue.requests import JobSnapshot, state_of

router = APIRouter(tags=["jobs"])

_ENDED = frozenset({"done", "failed", "cancelled"})


@router.get("/v1/jobs/{id}", response_model=JobStatus)
@redis_answers()
async def job(id: str, front: FrontDep, caller: CallerDep) -> Response:
    """State, and once it is done the `result`: what the endpoint it was sent to would have
    answered."""
    return await _told(front, work_of(await front.requests.find(id, caller.tenant)))


@router.get("/v1/jobs/{id}/events", response_class=Response, responses=FOLLOWED)
@redis_answers()
async def events(
    id: str,
    request: Request,
    front: FrontDep,
    caller: CallerDep,
    request_state: RequestStateDep,
    *,
    last_event_id: Annotated[
        str | None, Header(description="The stream goes on behind this frame.")
    ] = None,
) -> Response:
    """The request's stream from its beginning, or from behind a frame; during the run and after
    it."""
    seen = None
    if last_event_id:
        seen = Cursor.parse(last_event_id)
    asked = await front.requests.find(id, caller.tenant)
    follower = await attached(front, asked, caller, seen, stays=not request_state.is_head)
    if seen is not None and not request_state.is_head:
        front.metrics.replays.labels("resume").inc()
    endpoint = front.endpoints.of(follower.work)
    return stream(front, endpoint, follower, request.receive, request_state, seen=seen)


@router.delete("/v1/jobs/{id}", response_model=JobStatus)
@router.post("/api/inference/cancel/{id}", response_model=JobStatus)
@redis_answers()
async def cancel(id: str, front: FrontDep, caller: CallerDep) -> Response:
    """Call it off, whatever its phase; what has ended stays as it is. What it had said can be
    read."""
    request = await front.requests.find(id, caller.tenant)
    await front.submissions.end(request.job_ids, Cancelled("client"))
    return await _told(front, work_of(request))


async def _told(front: Front, work: SubmittedWork) -> Response:
    snapshots = await front.requests.look(work.request)
    endpoint = front.endpoints.of(work)
    record = work.record
    state = state_of(snapshots)
    position = None
    if state == "queued":
        position = await front.requests.position(work.request)
    body: dict[str, Any] = {
        "id": work.id,
        "object": "job",
        "state": state,
        "task": endpoint.task,
        "model": record.model,
        "created": record.created,
        "queue_position": position and position.num_before + 1,
        "starts_in_s": position and position.starts_in_s,
        "usage": None,
        "progress": None,
    }
    headers: Mapping[str, str] = {}
    if state in _ENDED:
        logs = []
        for entries in await asyncio.gather(*map(front.reader.read, work.request.job_ids)):
            logs.append([event for _, event in entries])
        more, headers = _ended(endpoint, work, snapshots, logs)
        body |= more
    else:
        body["timings"] = timings_of([snapshot.times for snapshot in snapshots], 0).model_dump()
        body["progress"] = await _progress(front, work, snapshots)
    return Response(msgspec.json.encode(body), media_type="application/json", headers=dict(headers))


async def _progress(
    front: Front, work: SubmittedWork, snapshots: Sequence[JobSnapshot]
) -> dict[str, Any] | None:
    """Return how far the only job of a request has come, or how many of several jobs have ended."""
    job_ids = work.request.job_ids
    if len(job_ids) > 1:
        num_ended = sum(snapshot.state in _ENDED for snapshot in snapshots)
        return {"done": num_ended, "total": len(job_ids), "note": ""}
    progress = await front.reader.newest_progress(job_ids[0])
    if progress is None:
        return None
    return {"done": progress.done, "total": progress.total, "note": progress.note}


def _ended(
    endpoint: Endpoint,
    work: SubmittedWork,
    snapshots: Sequence[JobSnapshot],
    logs: list[list[Event]],
) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the further fields and the headers of a request that has ended.

    Text that was cut short is a `partial` answer.
    """
    state = state_of(snapshots)
    outcomes = []
    for log in logs:
        builder = OutcomeBuilder(work.record.n)
        for event in log:
            builder.add(event)
        outcomes.append(builder.outcome(state))
    usage = total_usage(outcomes)
    timings = timings_of([snapshot.times for snapshot in snapshots], usage.completion_tokens)
    more: dict[str, Any] = {
        "usage": usage_body(usage).model_dump(),
        "timings": timings.model_dump(),
    }
    if state != "done":
        more |= _failure(logs)
    if state == "done" or endpoint.task == "generate":
        answer = endpoint.render(replace(work, timings=timings), outcomes)
        name = "result" if state == "done" else "partial"
        more[name] = msgspec.Raw(answer.model_dump_json().encode())
    return more, answer_headers(work, outcomes)


def _failure(logs: list[list[Event]]) -> dict[str, Any]:
    """Return the error of the first job that failed, else that of one that was cancelled."""
    end: Failed | Cancelled | None = None
    for log in logs:
        for event in log:
            if isinstance(event, Failed):
                return PLAIN.body(problem_of(error_of(event)))
            if isinstance(event, Cancelled):
                end = end or event
    assert end is not None, "a request that is not done has a job that ended otherwise"
    return PLAIN.body(problem_of(error_of(end)))


DIALECT = Dialect(router=router, prefix="/v1/jobs")
