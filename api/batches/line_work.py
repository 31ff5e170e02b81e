"""Answer one line of a batch by the way that a POST of its body would take.

The line's idempotency key is made of the batch and the line. So a line that is begun again, by this
process or by another one, finds the request that was queued before.
"""

import asyncio
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace

from pydantic import BaseModel

from api.access.caller import Caller
from api.batches.line_answers import completed_answer, refused_answer
from api.batches.line_request import InvalidBody, read_body
from api.batches.lines import BatchLine
from api.deps import Front
from api.endpoints.context import RequestContext, receive_nothing
from api.endpoints.endpoint import Endpoint, ImmediateEndpoint, Post
from api.http.error_format import ErrorFormat
from api.http.request_state import RequestState
from api.redis_timeout import redis_answers
from api.schemas.fields import fleets_seed
from api.stream.answers import attached, timings_at_end, with_file_bytes
from api.stream.dispatch import RequestFollower
from api.stream.request_events import total_usage
from api.submit.request_options import RequestOptions
from api.submit.submission import submit
from shared.errors import (
    BrokerUnavailable,
    BudgetExceeded,
    ClientGone,
    Draining,
    FleetError,
    IdempotencyConflict,
    InvalidRequest,
    JobNotFound,
    ModelFailed,
    NoWorker,
    OverQuota,
    QueueFull,
    StorageUnavailable,
    TooSlow,
)
from shared.messages import Cancelled
from shared.queue.batches import LineAnswer, LineTokens
from shared.queue.broker import UNAVAILABLE
from shared.queue.requests import Request
from shared.queue.submission import Key

LATER = (
    BrokerUnavailable,
    BudgetExceeded,
    Draining,
    ModelFailed,
    NoWorker,
    OverQuota,
    QueueFull,
    StorageUnavailable,
    TooSlow,
    *UNAVAILABLE,
)
"""Refusals that pass by themselves: the line is tried again."""
_REDIS_AWAY_S = 0.5
_MOST_RUNS = 3
"""The most runs of a line whose results expire before anybody has noted them."""


@dataclass(frozen=True)
class LineWork:
    """The shared parts of the work on a batch's lines.

    `caller` made the batch. `stopping` is set when no line is to be begun any more: lines that have
    been begun are ended. `begun` holds the requests of lines, with their keys, until they are noted.
    """

    front: Front
    caller: Caller
    post: Post
    batch_id: str
    seed: int | None
    stopping: asyncio.Event
    begun: dict[int, tuple[Key, Request]] = field(default_factory=dict)

    async def answer(self, line: BatchLine) -> LineAnswer | None:
        """Return the answer of a line, None for one that is not to be run.

        Raise one of LATER where the line has to be tried again.
        """
        errors = self.post.errors
        request_id = f"{self.batch_id}-{line.number}"
        # A line has a task, and so a context, of its own.
        fleets_seed.set(self.seed)
        try:
            self.front.prohibited.check(line.body)
            body = read_body(self.post, line.body)
            endpoint = self.post.endpoint_of(body)
            errors = endpoint.errors
            if endpoint.is_streamed(body):
                raise InvalidRequest(
                    "stream: expected false; a line of a batch is answered whole.", field="stream"
                )
            if isinstance(endpoint, ImmediateEndpoint):
                whole = endpoint.render(body, request_id)
                return self._completed(line, request_id, whole, LineTokens())
            follower = await self._begun(line, endpoint, body)
            if follower is None:
                return None
        except LATER:
            raise
        except InvalidBody as error:
            status = error.errors.invalid_body
            answer = self._refused(line, request_id, error.refusal, error.errors, status=status)
        except FleetError as error:
            answer = self._refused(line, request_id, error, errors)
        else:
            return await self._ended(line, endpoint, follower)
        if self.stopping.is_set():
            # Nobody has refused a line that was begun: this one was not.
            return None
        return answer

    async def _ended(
        self, line: BatchLine, endpoint: Endpoint, follower: RequestFollower
    ) -> LineAnswer | None:
        """Return the answer of a line that was begun, None if the stop has ended it."""
        errors = endpoint.errors
        try:
            return await self._followed(line, endpoint, follower)
        except ClientGone as error:
            # If nothing stops, the line's caller has ended it.
            if self.stopping.is_set():
                return None
            return self._refused(line, follower.work.id, error, errors)
        except (BrokerUnavailable, StorageUnavailable, *UNAVAILABLE):
            raise
        except FleetError as error:
            return self._refused(line, follower.work.id, error, errors)

    def broken(self, line: BatchLine) -> LineAnswer:
        """Return the answer of a line that has met a bug."""
        request_id = f"{self.batch_id}-{line.number}"
        error = FleetError(f"Internal error; request id {request_id}.")
        return self._refused(line, request_id, error, self.post.errors)

    async def _begun(
        self, line: BatchLine, endpoint: Endpoint, body: BaseModel
    ) -> RequestFollower | None:
        """Return a follower of the line's request, which is submitted unless it was before.

        Return None for a line that was not begun, and is not to be.
        """
        for run in range(_MOST_RUNS):
            context = self._context(line, run)
            try:
                if not self.stopping.is_set():
                    follower = await submit(context, endpoint, body, is_streamed=False)
                else:
                    async with redis_answers():
                        known = await self.front.submissions.known(self.caller.tenant, context.key)
                    if known is None:
                        return None
                    follower = await attached(self.front, known, self.caller, stays=False)
                assert context.key is not None
                self.begun[line.number] = (context.key, follower.work.request)
                return follower
            except (JobNotFound, IdempotencyConflict):
                # The request was queued and done, and its result has expired.
                continue
        raise JobNotFound("The result of this line has expired again and again.")

    def _context(self, line: BatchLine, run: int) -> RequestContext:
        key = f"{self.batch_id}/{line.number}"
        if run > 0:
            key = f"{key}/{run}"
        request_state = RequestState(
            f"{self.batch_id}-{line.number}",
            path=self.post.path,
            body=line.body,
            tenant=self.caller.tenant,
            key=self.caller.id,
        )
        options = RequestOptions(
            priority="bulk", key=key, wait_s=0.0, on_disconnect="continue", is_part=True
        )
        return RequestContext(self.front, self.caller, options, request_state, receive_nothing)

    async def _followed(
        self,
        line: BatchLine,
        endpoint: Endpoint,
        follower: RequestFollower,
    ) -> LineAnswer:
        """Return the answer of a line once its jobs have ended. Raise the FleetErrors of these."""
        work = follower.work
        async with AsyncExitStack() as stack:
            ending = asyncio.create_task(self._end_when_stopping(work.request.job_ids))
            stack.callback(ending.cancel)
            # Nobody's leaving ends the jobs of a line.
            unattended = replace(follower, caller=None)
            follow = self.front.dispatcher.follow(unattended, None)
            events = await stack.enter_async_context(follow)
            outcomes = await events.outcomes()

        usage = total_usage(outcomes)
        if endpoint.with_file_bytes:
            outcomes = await with_file_bytes(self.front, work, outcomes)
        if endpoint.is_timed:
            work = replace(work, timings=await timings_at_end(self.front, work, usage))
        whole = endpoint.render(work, outcomes)
        tokens = LineTokens(
            usage.prompt_tokens, usage.completion_tokens, usage.cached_prompt_tokens
        )
        return self._completed(line, work.id, whole, tokens)

    async def _end_when_stopping(self, job_ids: tuple[str, ...]) -> None:
        """End the jobs of a line as soon as no line is to be run any more."""
        await self.stopping.wait()
        while True:
            try:
                await self.front.submissions.end(job_ids, Cancelled("client"))
                return
            except UNAVAILABLE:
                await asyncio.sleep(_REDIS_AWAY_S)

    def _completed(
        self, line: BatchLine, request_id: str, whole: BaseModel, tokens: LineTokens
    ) -> LineAnswer:
        return completed_answer(
            self.batch_id,
            line.number,
            line.custom_id,
            request_id=request_id,
            body=whole.model_dump_json().encode(),
            tokens=tokens,
        )

    def _refused(
        self,
        line: BatchLine,
        request_id: str,
        error: FleetError,
        errors: ErrorFormat,
        *,
        status: int | None = None,
    ) -> LineAnswer:
        return refused_answer(
            self.batch_id, line, request_id=request_id, error=error, errors=errors, status=status
        )
