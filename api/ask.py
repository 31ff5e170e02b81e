"""A POST that creates work, from understood tasks to its answer: as many routes as there are, one way through."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

from fastapi import Depends, Request
from fastapi.responses import Response

from api.admission import Admission, TokenBudget
from api.answers import accepted, attached, stream, timings_at_end, whole
from api.cache import CACHE, AnswerCache, digest_of
from api.caller import Caller, CallerDep
from api.cursor import HEADER, Cursor
from api.deps import Front, FrontDep, TrailDep
from api.dispatch import Following, Receive, StillRunning
from api.framing import Framing
from api.kinds import Kind
from api.patience import redis_answers
from api.record import OnDisconnect, Record, Work, encode_record, work_of
from api.run import total_usage
from api.schemas.fields import SampledRequest
from api.stopwatch import Stopwatch
from api.timings import timing_headers
from api.trail import Trail
from api.wishes import Wishes, WishesDep
from shared.errors import DeviceUnavailable, Draining, InvalidRequest, ModelFailed, ModelNotFound, NoWorker
from shared.messages import ModelInfo, Task, Text
from shared.requests import new_follower
from shared.submission import Key, Order
from shared.tracing import Attributes


@dataclass(frozen=True)
class Plan:
    """What a request means to the model that was found for it: tasks of `n` choices each, and notes for its record."""

    tasks: Sequence[Task]
    budget: TokenBudget | None = None
    n: int = 1
    notes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def capped_at(self) -> int | None:
        return self.budget.max_tokens if self.budget is not None and self.budget.is_clamped else None


def text_plan(
    admission: Admission,
    body: SampledRequest,
    prompts: Sequence[Text],
    default_max_tokens: int,
    notes: Mapping[str, Any] | None = None,
) -> Callable[[ModelInfo], Plan]:
    """`body.n` completions of each prompt. Raises InvalidRequest for more of them than one request may ask for."""
    admission.check_count("n", len(prompts) * body.n, "completions")

    def plan(model: ModelInfo) -> Plan:
        budget = admission.budget(body.max_tokens, default_max_tokens, model)
        asked = body.suited(model.prompting)
        return Plan([asked.task(prompt, budget.max_tokens) for prompt in prompts], budget, body.n, notes or {})

    return plan


@dataclass(frozen=True)
class Ask:
    """Who asks which front, and what the headers say."""

    front: Front
    caller: Caller
    wishes: Wishes
    trail: Trail
    path: str
    receive: Receive

    async def answer(
        self,
        kind: Kind,
        model: str | None,
        plan: Callable[[ModelInfo], Plan],
        *,
        is_streamed: bool = False,
        framing: Framing | None = None,
    ) -> Response:
        """Have what `plan` makes of the model done, and answer as the caller wishes; a stream in `framing`, or else in
        its kind's. What the caller comes back to, by a key or a frame, needs no model. Raises the FleetErrors of
        admission and of the jobs."""
        metrics = self.front.metrics
        if is_streamed and self.wishes.last_event_id:
            resumed = await self._resume(kind, framing)
            metrics.replays.labels("resume").inc()
            return resumed
        following = await self._following(kind, model, plan, is_streamed=is_streamed)
        following.leave_in(self.trail)
        if not following.is_first:
            metrics.replays.labels("cache" if following.cache else "key").inc()
        answer = await self._answer(kind, following, framing, is_streamed=is_streamed)
        if following.cache:
            answer.headers[CACHE] = following.cache
        return answer

    async def _answer(
        self, kind: Kind, following: Following, framing: Framing | None, *, is_streamed: bool
    ) -> Response:
        if self.wishes.wait_s == 0:
            return await self._leave(following)
        if is_streamed:
            return self._stream(kind, following, framing=framing)
        try:
            outcomes = await self.front.dispatcher.gather(following, self.receive, self.wishes.wait_s)
        except StillRunning:
            return await self._leave(following)
        self.trail.usage = total_usage(outcomes)
        wants = kind.is_timed or self.wishes.with_timings
        timings = await timings_at_end(self.front, following.work, self.trail.usage) if wants else None
        answer = whole(kind, replace(following.work, timings=timings), outcomes)
        if self.wishes.preferences:
            answer.headers["Preference-Applied"] = self.wishes.preferences[-1]
        if self.wishes.with_timings and timings is not None:
            answer.headers.update(timing_headers(timings))
        return answer

    async def _following(
        self, kind: Kind, model: str | None, plan: Callable[[ModelInfo], Plan], *, is_streamed: bool
    ) -> Following:
        """Queued, or found by its key. The script that queues looks for the key; who finds no model looks before."""
        try:
            info = await self.front.admission.resolve(model, kind.task)
            planned = plan(info)
        except (DeviceUnavailable, Draining, InvalidRequest, ModelFailed, ModelNotFound, NoWorker):
            async with redis_answers():
                known = await self.front.submissions.known(self.caller.tenant, self._key)
            if known is None:
                raise
            return await attached(self.front, known, self.caller, stays=self._stays)
        return await self._submit(kind, info, planned, is_streamed=is_streamed)

    async def _submit(self, kind: Kind, model: ModelInfo, plan: Plan, *, is_streamed: bool) -> Following:
        self.caller.check_model(model.id)
        on_disconnect, times = self._on_disconnect(), self.front.admission.times(self.wishes.deadline_s)
        record = Record(kind.name, model.id, int(time.time()), plan.n, plan.capped_at, on_disconnect, dict(plan.notes))
        order = Order(
            model.id,
            tuple(plan.tasks),
            self.caller.tenant,
            self.caller.clamped(self.wishes.priority),
            times.queue_s,
            times.deadline_s,
            self.wishes.deadline_s is not None,
            request_id=self.trail.request_id,
            is_streamed=is_streamed,
            key=self._key,
            record=encode_record(record),
            follower=new_follower() if self._stays and on_disconnect != "continue" else "",
        )
        cache, digest = self.front.cache, self._digest(model, record, plan.tasks)
        if cache and digest and (before := await self._answered(cache, digest, model)):
            return before
        told: Attributes = {"aios.model": model.id, "aios.num_jobs": len(order.tasks), "aios.class": order.priority}
        with self.trail.span.child("submit", "producer", told) as span:
            order = replace(order, trace=span.trace)
            request, jobs = await self.front.admission.submit(order, self.caller.quota)
        if not jobs:
            return await attached(self.front, request, self.caller, stays=self._stays)
        if cache and digest:
            await cache.note(self.caller.tenant, digest, request)
        self.front.metrics.admissions.labels(model.id, order.priority).inc()
        outcome, watch = "miss" if digest else "", Stopwatch(self.front.metrics, model.id, len(jobs))
        return Following(
            Work(request, record),
            times.queue_s,
            times.deadline_s,
            order.follower,
            cache=outcome,
            watch=watch,
            caller=self.caller,
        )

    def _digest(self, model: ModelInfo, record: Record, tasks: Sequence[Task]) -> str | None:
        """What to look for among answers given before; a key says by itself which answer it wants."""
        is_wanted = self.front.cache and self.wishes.cache != "no-store" and not self.wishes.key
        return digest_of(record, tasks) if is_wanted and model.fingerprint else None

    async def _answered(self, cache: AnswerCache, digest: str, model: ModelInfo) -> Following | None:
        if self.wishes.cache == "no-cache":
            return None
        request = await cache.find(self.caller.tenant, digest, model.fingerprint)
        if request is None:
            return None
        return replace(await attached(self.front, request, self.caller, stays=False), cache="hit")

    @property
    def _key(self) -> Key | None:
        """What makes this request the same as another one: its key, its path and the bytes of its body."""
        return Key(self.wishes.key, self.path.encode() + b"\n" + self.trail.body) if self.wishes.key else None

    @property
    def _stays(self) -> bool:
        """Whether the caller waits at all."""
        return self.wishes.wait_s != 0

    @redis_answers()
    async def _resume(self, kind: Kind, framing: Framing | None) -> Response:
        """The stream that the caller has seen a part of; nothing is created."""
        seen = Cursor.parse(self.wishes.last_event_id)
        request = await self.front.requests.find(seen.request_id, self.caller.tenant)
        if work_of(request).record.kind != kind.name:
            raise InvalidRequest(f"{HEADER}: expected the id of a frame of this endpoint.", field=HEADER)
        following = await attached(self.front, request, self.caller, seen)
        return self._stream(kind, following, seen, framing)

    def _stream(
        self, kind: Kind, following: Following, seen: Cursor | None = None, framing: Framing | None = None
    ) -> Response:
        with_timings = self.wishes.with_timings
        return stream(self.front, kind, following, self.receive, self.trail, seen, framing, with_timings=with_timings)

    async def _leave(self, following: Following) -> Response:
        """The caller will ask again."""
        if following.is_first:
            self.front.dispatcher.mind(following)
        return await accepted(self.front, following.work, self.wishes.preferences)

    def _on_disconnect(self) -> OnDisconnect:
        """What was submitted to be asked for later goes on when nobody listens."""
        return self.wishes.on_disconnect or (self.front.on_disconnect if self.wishes.wait_s is None else "continue")


async def _ask(front: FrontDep, caller: CallerDep, wishes: WishesDep, trail: TrailDep, request: Request) -> Ask:
    """Raises OverQuota for a caller that comes too often, and ProhibitedContent."""
    async with redis_answers():
        await front.pace.keep(caller.id or caller.tenant, caller.rates_of(request.scope["route"].path))
    front.prohibited.check(trail.body)
    return Ask(front, caller, wishes, trail, trail.path, request.receive)


AskDep = Annotated[Ask, Depends(_ask)]
