"""Ask one item of an evaluation as a front would, in the background role.

The idempotency key of an item is made of the run and the item's number. So an item that is asked
again, by this process or by another one, finds the request that was queued before, and its times
are those that Redis noted then.
"""

import json
from dataclasses import replace
from typing import Any

from api.access.caller import Caller
from api.batches.batch_posts import BATCH_POSTS
from api.batches.line_request import InvalidBody, read_body
from api.batches.line_work import LATER
from api.deps import Front
from api.endpoints.context import RequestContext, receive_nothing
from api.endpoints.endpoint import Endpoint
from api.evaluation.report import Answer
from api.evaluation.sets import EvalSet, Item
from api.http.problem import problem_of
from api.http.request_state import RequestState
from api.stream.answers import timings_at_end
from api.stream.dispatch import RequestFollower
from api.stream.request_events import total_usage
from api.submit.request_options import RequestOptions
from api.submit.submission import submit
from shared.errors import (
    BrokerUnavailable,
    FleetError,
    IdempotencyConflict,
    InvalidRequest,
    JobNotFound,
    StorageUnavailable,
)
from shared.queue.broker import UNAVAILABLE

_MOST_RUNS = 3
"""The most runs of an item whose results expire before anybody has noted them."""


class ItemWork:
    """The shared parts of the work on the items of a run, which `caller` asked for."""

    def __init__(self, front: Front, caller: Caller, run_id: str) -> None:
        self._front = front
        self._caller = caller
        self._run_id = run_id

    async def ask(self, number: int, one: EvalSet, item: Item, model: str) -> Answer:
        """Return the answer to the request with this number in the run.

        Raise the errors of `api.batches.line_work.LATER` where it has to be tried again.
        """
        sent = json.dumps(one.body_of(item, model)).encode()
        try:
            endpoint, body = _parsed(one.path, sent)
            follower = await self._begun(number, endpoint, body, one, sent)
        except LATER:
            raise
        except FleetError as error:
            return _failure(error, is_refused=problem_of(error).status < 500)
        try:
            return await self._ended(endpoint, follower, one)
        except (BrokerUnavailable, StorageUnavailable, *UNAVAILABLE):
            raise
        except FleetError as error:
            return _failure(error, is_refused=isinstance(error, InvalidRequest))

    async def _begun(
        self, number: int, endpoint: Endpoint, body: Any, one: EvalSet, sent: bytes
    ) -> RequestFollower:
        """Return a follower of the item's request, which is submitted unless it was before."""
        for run in range(_MOST_RUNS):
            request_id = f"{self._run_id}-{number}-{run}"
            options = RequestOptions(
                key=request_id, wait_s=0.0, on_disconnect="continue", is_part=True
            )
            state = RequestState(
                request_id,
                path=one.path,
                body=sent,
                tenant=self._caller.tenant,
                key=self._caller.id,
            )
            context = RequestContext(self._front, self._caller, options, state, receive_nothing)
            try:
                # Tokens come one by one where the first one is timed.
                return await submit(context, endpoint, body, is_streamed=one.is_streamed)
            except (JobNotFound, IdempotencyConflict):
                continue
        raise JobNotFound("The result of this item has expired again and again.")

    async def _ended(self, endpoint: Endpoint, follower: RequestFollower, one: EvalSet) -> Answer:
        """Return the answer once the jobs have ended. Raise the FleetErrors of these."""
        work = follower.work
        unattended = replace(follower, caller=None)
        async with self._front.dispatcher.follow(unattended, None) as events:
            outcomes = await events.outcomes()
        usage = total_usage(outcomes)
        timings = await timings_at_end(self._front, work, usage)
        if timings is None or timings.total_s is None:
            raise BrokerUnavailable("Redis does not tell how long it took.", retry_after_s=1)
        first_ms = None
        if one.is_streamed and timings.first_token_s is not None:
            first_ms = 1000 * timings.first_token_s
        whole = endpoint.render(replace(work, timings=timings), outcomes)
        return Answer(
            body=whole.model_dump(mode="json"),
            latency_ms=1000 * timings.total_s,
            first_token_ms=first_ms,
            tokens=usage.completion_tokens,
        )


def _failure(error: FleetError, *, is_refused: bool) -> Answer:
    problem = problem_of(error)
    return Answer(error=f"{problem.status}: {problem.message}", is_refused=is_refused)


def _parsed(path: str, sent: bytes) -> tuple[Endpoint, Any]:
    """Return the endpoint of a request, and its body. Raise InvalidRequest."""
    if path not in BATCH_POSTS:
        raise InvalidRequest(f"path: this version of the server has no endpoint {path!r}.")
    post = BATCH_POSTS[path]
    try:
        body = read_body(post, sent)
    except InvalidBody as error:
        raise error.refusal from None
    endpoint = post.endpoint_of(body)
    if not isinstance(endpoint, Endpoint):
        raise InvalidRequest(f"path: {path!r} asks no model for this.")
    return endpoint, body
