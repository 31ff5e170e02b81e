"""Admission: the model of a request, and its way into the queue.

Knows no HTTP and no dialect; everything it refuses is a FleetError.
"""

import asyncio
from collections.abc import Sequence

from api.fleet import FleetView
from api.redis_timeout import redis_answers_in_time
from api.stream.cancellation import CancellationQueue
from api.submit.limits import Limits
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
from shared.queue.broker import UNAVAILABLE
from shared.queue.requests import Request
from shared.queue.submission import Quota, Submissions, SubmitRequest

LOCAL_MODEL = "local"
_RETRY_AFTER_S = 2


class Admission:
    """Finds the model of a request, and queues its jobs within the fleet's limits."""

    def __init__(
        self,
        fleet: FleetView,
        submissions: Submissions,
        cancellations: CancellationQueue,
        *,
        draining: asyncio.Event,
        limits: Limits,
        default_model: str | None,
    ) -> None:
        self._fleet = fleet
        self._submissions = submissions
        self._cancellations = cancellations
        self._draining = draining
        self.limits = limits
        self._default_model = default_model

    async def resolve(self, name: str | None, task: TaskName) -> ModelInfo:
        """The model for new work. Raises Draining, InvalidRequest (wrong task), ModelFailed and
        what `find` does."""
        if self._draining.is_set():
            raise Draining("This server is shutting down.", retry_after_s=1)
        model = await self.find(name)
        failure = (await self._fleet.now()).failure(model.id)
        if failure is not None:
            problem = f"The model {model.id!r} cannot be loaded: {failure.reason}"
            raise ModelFailed(problem, retry_after_s=failure.retry_in_s)
        if model.tasks and task not in model.tasks:
            known = ", ".join(map(repr, model.tasks))
            problem = f"model: {model.id!r} does not serve the task {task!r}; it serves {known}."
            raise InvalidRequest(problem, field="model")
        return model

    async def find(self, name: str | None) -> ModelInfo:
        """The model that `name` stands for, served or awaited; None and "local" stand for the
        default one.

        Raises DeviceUnavailable, ModelNotFound, NoWorker.
        """
        fleet = await self._fleet.now()
        if name is None or (name == LOCAL_MODEL and name not in fleet.models):
            name = self._default_model or fleet.default_model
        if name is not None and (obstacle := fleet.obstacle(name)) is not None:
            raise DeviceUnavailable(obstacle, field="model")
        if name in fleet.catalogued and name not in fleet.models:
            return unseen(name, self.limits)
        if (
            name is not None
            and fleet.models
            and name not in fleet.models
            and name != self._default_model
        ):
            expected = "expected one of those that GET /v1/models lists"
            raise ModelNotFound(f"model: {name!r} does not exist; {expected}.", field="model")
        if name is None or name not in fleet.models:
            raise NoWorker("No worker has loaded a model yet.", retry_after_s=_RETRY_AFTER_S)
        if not fleet.may_serve(name, self.limits.absent_grace_s):
            raise NoWorker(
                f"No worker that serves {name!r} is ready.", retry_after_s=_RETRY_AFTER_S
            )
        return fleet.models[name]

    async def submit(
        self, submit_request: SubmitRequest, quota: Quota
    ) -> tuple[Request, list[Job]]:
        """The request with its queued jobs, all or none; no jobs for one that came before with the
        same key.

        Raises what `Submissions.submit` does, and BrokerUnavailable when Redis does not answer.
        """
        name, jobs = self._submissions.jobs_of(submit_request)
        submitting = asyncio.create_task(
            self._submissions.submit(submit_request, name, jobs, quota, self.limits.queue_limits)
        )
        try:
            async with redis_answers_in_time():
                request = await asyncio.shield(submitting)
        except (TimeoutError, asyncio.CancelledError, *UNAVAILABLE) as error:
            submitting.add_done_callback(
                lambda task: self._abandon(task, submit_request, name, jobs)
            )
            if isinstance(error, asyncio.CancelledError):
                raise
            raise BrokerUnavailable("Redis did not take the request.", retry_after_s=1) from error
        if request.id != name:
            jobs = []  # the request came before, with the same key
        return request, jobs

    def _abandon(
        self,
        submitting: "asyncio.Task[Request]",
        submit_request: SubmitRequest,
        name: str,
        jobs: Sequence[Job],
    ) -> None:
        """Nobody will follow these jobs, which may be queued all the same, even if the answer was
        lost. They go on where a key leads to them."""
        if not submitting.cancelled() and isinstance(submitting.exception(), FleetError):
            return
        if not submit_request.key:
            self._cancellations.cancel([job.id for job in jobs], Cancelled("abandoned"))
        elif submit_request.follower_id:
            self._cancellations.leave(name, submit_request.follower_id)


def unseen(model_id: str, limits: Limits) -> ModelInfo:
    """Return what is known of a model of the catalogue that no worker has seen yet: that it may
    come.

    Its tasks are not known, and which it serves is for its worker to say.
    """
    found = "in the catalogue; no worker has seen it yet"
    return ModelInfo(model_id, "", found, 0, limits.max_new_tokens, 1, tasks=())
