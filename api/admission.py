"""Whether a request may become work, and in which form: its model, its token budget, its place in the queue.

Knows no HTTP and no dialect; everything it refuses is a FleetError.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from api.endings import Endings
from api.fleet import FleetView
from shared.broker import UNAVAILABLE
from shared.errors import (
    BrokerUnavailable,
    DeviceUnavailable,
    Draining,
    FleetError,
    InvalidRequest,
    ModelFailed,
    ModelNotFound,
    NoWorker,
)
from shared.messages import Cancelled, Job, ModelInfo, TaskName
from shared.requests import Request
from shared.submission import Order, Quota, Room, Submissions

LOCAL_MODEL = "local"
_RETRY_AFTER_S = 2
_SUBMIT_TIMEOUT_S = 2.0


@dataclass(frozen=True)
class Limits:
    """What one request may ask for, and how much may wait at once."""

    max_new_tokens: int
    cap_policy: Literal["clamp", "reject"]
    max_prompts: int
    room: Room
    queue_timeout_s: float
    request_timeout_s: float


@dataclass(frozen=True)
class Times:
    """Seconds from now: until a worker must have taken a request, and until its answer must be there."""

    queue_s: float
    deadline_s: float


@dataclass(frozen=True)
class TokenBudget:
    """The number of tokens a completion may have; `is_clamped` when the caller would have got more without the cap."""

    max_tokens: int
    is_clamped: bool


class Admission:
    def __init__(
        self,
        fleet: FleetView,
        submissions: Submissions,
        endings: Endings,
        draining: asyncio.Event,
        limits: Limits,
        default_model: str | None,
    ) -> None:
        self._fleet = fleet
        self._submissions = submissions
        self._endings = endings
        self._draining = draining
        self._limits = limits
        self._default_model = default_model

    async def resolve(self, name: str | None, task: TaskName) -> ModelInfo:
        """The model for new work. Raises Draining, InvalidRequest (wrong task), ModelFailed and what `find` does."""
        if self._draining.is_set():
            raise Draining("This server is shutting down.", retry_after_s=1)
        model = await self.find(name)
        failure = (await self._fleet.now()).failure(model.id)
        if failure is not None:
            problem = f"The model {model.id!r} cannot be loaded: {failure.reason}"
            raise ModelFailed(problem, retry_after_s=failure.retry_in_s)
        if task not in model.tasks:
            known = ", ".join(map(repr, model.tasks))
            problem = f"model: {model.id!r} does not serve the task {task!r}; it serves {known}."
            raise InvalidRequest(problem, field="model")
        return model

    async def find(self, name: str | None) -> ModelInfo:
        """The served model that `name` stands for; None and "local" stand for the default one.

        Raises DeviceUnavailable, ModelNotFound, NoWorker.
        """
        fleet = await self._fleet.now()
        if name is None or (name == LOCAL_MODEL and name not in fleet.models):
            name = self._default_model or fleet.default_model
        if name is not None and (obstacle := fleet.obstacle(name)) is not None:
            raise DeviceUnavailable(obstacle, field="model")
        if name is not None and fleet.models and name not in fleet.models and name != self._default_model:
            expected = "expected one of those that GET /v1/models lists"
            raise ModelNotFound(f"model: {name!r} does not exist; {expected}.", field="model")
        if name is None or name not in fleet.models:
            raise NoWorker("No worker has loaded a model yet.", retry_after_s=_RETRY_AFTER_S)
        if not fleet.serves(name):
            raise NoWorker(f"No worker that serves {name!r} is ready.", retry_after_s=_RETRY_AFTER_S)
        return fleet.models[name]

    def budget(self, asked: int | None, default: int, model: ModelInfo) -> TokenBudget:
        """`asked` or else the dialect's default, within the cap. Raises InvalidRequest where the policy says so."""
        cap = min(self._limits.max_new_tokens, model.max_new_tokens)
        if asked is not None and asked > cap and self._limits.cap_policy == "reject":
            raise InvalidRequest(f"max_tokens: expected at most {cap}, got {asked}.", field="max_tokens")
        wanted = default if asked is None else asked
        return TokenBudget(min(wanted, cap), wanted > cap)

    def check_count(self, field: str, count: int, what: str = "items") -> None:
        """Refuse more prompts or grids, or more completions of them, than one request may bring."""
        most = self._limits.max_prompts
        if count > most:
            raise InvalidRequest(f"{field}: expected at most {most} {what} in one request, got {count}.", field=field)

    def times(self, deadline_s: float | None) -> Times:
        """How long a request may wait and live: as long as the caller says, and the server's maximum at most."""
        most_s = self._limits.request_timeout_s
        return Times(self._limits.queue_timeout_s, most_s if deadline_s is None else min(deadline_s, most_s))

    async def submit(self, order: Order, quota: Quota) -> tuple[Request, list[Job]]:
        """The request with its queued jobs, all or none; no jobs for one that came before with the same key.

        Raises what `Submissions.submit` does, and BrokerUnavailable when Redis does not answer.
        """
        name, jobs = self._submissions.jobs_of(order)
        submitting = asyncio.create_task(self._submissions.submit(order, name, jobs, quota, self._limits.room))
        try:
            async with asyncio.timeout(_SUBMIT_TIMEOUT_S):
                request = await asyncio.shield(submitting)
        except (TimeoutError, asyncio.CancelledError, *UNAVAILABLE) as error:
            submitting.add_done_callback(lambda task: self._abandon(task, order, name, jobs))
            if isinstance(error, asyncio.CancelledError):
                raise
            raise BrokerUnavailable("Redis did not take the request.", retry_after_s=1) from error
        return request, jobs if request.id == name else []

    def _abandon(self, submitting: "asyncio.Task[Request]", order: Order, name: str, jobs: Sequence[Job]) -> None:
        """Nobody will follow these jobs, which may be queued all the same, even if the answer was lost. They go on
        where a key leads to them."""
        if not submitting.cancelled() and isinstance(submitting.exception(), FleetError):
            return
        if not order.key:
            self._endings.call_off([job.id for job in jobs], Cancelled("abandoned"))
        elif order.follower:
            self._endings.leave(name, order.follower)
