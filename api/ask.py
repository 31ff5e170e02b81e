"""A POST that creates work, from understood tasks to its answer: as many routes as there are, one way through."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Depends, Request
from fastapi.responses import Response

from api.admission import TokenBudget
from api.answers import accepted, attached, stream, whole
from api.caller import Caller, CallerDep
from api.cursor import HEADER, Cursor
from api.deps import Front, FrontDep, TrailDep
from api.dispatch import Following, Receive, StillRunning
from api.kinds import Kind
from api.record import OnDisconnect, Record, Work, encode_record, work_of
from api.run import total_usage
from api.trail import Trail
from api.wishes import Wishes, WishesDep
from shared.errors import InvalidRequest
from shared.messages import ModelInfo, Task
from shared.requests import new_follower
from shared.submission import Order


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
        model: ModelInfo,
        tasks: Sequence[Task],
        *,
        budget: TokenBudget | None = None,
        n: int = 1,
        notes: Mapping[str, Any] | None = None,
        is_streamed: bool = False,
    ) -> Response:
        """Have `tasks` done, and answer as the caller wishes. Raises the FleetErrors of admission and of the jobs."""
        if is_streamed and self.wishes.last_event_id:
            return await self._resume(kind)
        capped_at = budget.max_tokens if budget is not None and budget.is_clamped else None
        notes = dict(notes or {})
        record = Record(kind.name, model.id, int(time.time()), n, capped_at, self._on_disconnect(), notes)
        following = await self._submit(record, tasks, is_streamed=is_streamed)
        if self.wishes.wait_s == 0:
            return await self._leave(following)
        if is_streamed:
            return stream(self.front, kind, following, self.receive, self.trail)
        try:
            outcomes = await self.front.dispatcher.gather(following, self.receive, self.wishes.wait_s)
        except StillRunning:
            return await self._leave(following)
        self.trail.usage = total_usage(outcomes)
        return whole(kind, following.work, outcomes)

    async def _submit(self, record: Record, tasks: Sequence[Task], *, is_streamed: bool) -> Following:
        """Queued, or found by its key."""
        times, stays = self.front.admission.times(self.wishes.deadline_s), self.wishes.wait_s != 0
        order = Order(
            record.model,
            tuple(tasks),
            self.caller.tenant,
            self.caller.clamped(self.wishes.priority),
            times.queue_s,
            times.deadline_s,
            self.wishes.deadline_s is not None,
            request_id=self.trail.request_id,
            is_streamed=is_streamed,
            key=self.wishes.key,
            body=self.path.encode() + b"\n" + self.trail.body,
            record=encode_record(record),
            follower=new_follower() if stays and record.on_disconnect != "continue" else "",
        )
        request, jobs = await self.front.admission.submit(order, self.caller.quota)
        if not jobs:
            return await attached(self.front, request, stays=stays)
        return Following(Work(request, record), times.queue_s, times.deadline_s, order.follower)

    async def _resume(self, kind: Kind) -> Response:
        """The stream that the caller has seen a part of; nothing is created."""
        seen = Cursor.parse(self.wishes.last_event_id)
        request = await self.front.requests.find(seen.request_id, self.caller.tenant)
        if work_of(request).record.kind != kind.name:
            raise InvalidRequest(f"{HEADER}: expected the id of a frame of this endpoint.", field=HEADER)
        following = await attached(self.front, request, seen)
        return stream(self.front, kind, following, self.receive, self.trail, seen)

    async def _leave(self, following: Following) -> Response:
        """The caller will ask again."""
        if following.is_first:
            self.front.dispatcher.mind(following)
        return await accepted(self.front, following.work)

    def _on_disconnect(self) -> OnDisconnect:
        """What was submitted to be asked for later goes on when nobody listens."""
        return self.wishes.on_disconnect or (self.front.on_disconnect if self.wishes.wait_s is None else "continue")


async def _ask(front: FrontDep, caller: CallerDep, wishes: WishesDep, trail: TrailDep, request: Request) -> Ask:
    return Ask(front, caller, wishes, trail, request.url.path, request.receive)


AskDep = Annotated[Ask, Depends(_ask)]
