"""Admission: the model of a request, and its way into the queue.

This module knows no HTTP and no dialect. It refuses by FleetErrors alone.
"""

import asyncio
from collections.abc import Mapping, Sequence

from api.fleet import FleetView
from api.redis_timeout import redis_answers_in_time
from api.stream.cancellation import CancellationQueue
from api.submit.experiments import arm_for
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
from shared.messages import Cancelled, Job, ModelInfo, ProblemKind, TaskName
from shared.queue.broker import UNAVAILABLE
from shared.queue.experiment_log import Assignment
from shared.queue.requests import Request
from shared.queue.submission import Quota, Submissions, SubmitRequest
from shared.settings.experiments import Experiment

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
        experiments: Mapping[str, Experiment],
    ) -> None:
        self._fleet = fleet
        self._submissions = submissions
        self._cancellations = cancellations
        self._draining = draining
        self.limits = limits
        self.experiments = experiments
        self._default_model = default_model

    def assign(self, name: str | None, tenant: str, key: str) -> Assignment | None:
        """Return the arm for a key of a tenant, None if `name` is not that of an experiment."""
        experiment = self.experiments.get(name or "")
        if experiment is None:
            return None
        return Assignment(experiment.name, arm_for(experiment, tenant, key))

    async def resolve(
        self, name: str | None, task: TaskName, problems: ProblemKind | None = None
    ) -> ModelInfo:
        """Return the model for new work, which may be problems of a kind.

        Raise Draining, ModelFailed, InvalidRequest for a task that the model does not serve, and
        what `find` raises.
        """
        if self._draining.is_set():
            raise Draining("This server is shutting down.", retry_after_s=1)
        model = await self.find(name, task, problems)
        failure = (await self._fleet.now()).failure(model.id)
        if failure is not None:
            problem = f"The model {model.id!r} cannot be loaded: {failure.reason}"
            raise ModelFailed(problem, retry_after_s=failure.retry_in_s)
        check_serves(model, task)
        return model

    async def find(
        self,
        name: str | None,
        task: TaskName | None = None,
        problems: ProblemKind | None = None,
    ) -> ModelInfo:
        """Return the model that `name` stands for, which is served or awaited.

        None and "local" stand for the default model or, where that does not serve the task or is
        not for such problems, for another (see `default_for`). An experiment stands for its first arm, where
        nothing but a description is asked for. Raise DeviceUnavailable, ModelNotFound,
        NoWorker and BrokerUnavailable.
        """
        fleet = await self._fleet.now()
        experiment = self.experiments.get(name or "")
        if experiment is not None:
            name = experiment.arms[0].model
        if name is None or (name == LOCAL_MODEL and name not in fleet.models):
            default = self._default_model or fleet.default_model
            name = default_for(fleet.models, default, task, problems)
        if name is None:
            raise _no_model_yet()
        obstacle = fleet.obstacle(name)
        if obstacle is not None:
            raise DeviceUnavailable(obstacle, field="model")
        if name not in fleet.models:
            if name in fleet.catalogued:
                return unseen(name, self.limits)
            if not fleet.models or name == self._default_model:
                raise _no_model_yet()
            raise no_such_model(name, "expected one of those that GET /v1/models lists")
        if not fleet.may_serve(name, self.limits.absent_grace_s):
            raise NoWorker(
                f"No worker that serves {name!r} is ready.", retry_after_s=_RETRY_AFTER_S
            )
        return fleet.models[name]

    async def submit(
        self, submit_request: SubmitRequest, quota: Quota
    ) -> tuple[Request, list[Job]]:
        """Queue the jobs of a request, all or none. Return the request and the queued jobs.

        None are queued for a request that came before with the same key. Raise what
        `Submissions.submit` raises, and BrokerUnavailable when Redis does not answer.
        """
        request_id, jobs = self._submissions.jobs_of(submit_request)
        submitting = asyncio.create_task(
            self._submissions.submit(
                submit_request, request_id, jobs, quota, self.limits.queue_limits
            )
        )
        try:
            # Redis may queue the jobs though nobody waits for its answer any more. So the task runs
            # to its end, and what it has queued is abandoned then.
            async with redis_answers_in_time():
                request = await asyncio.shield(submitting)
        except (TimeoutError, asyncio.CancelledError, *UNAVAILABLE) as error:
            submitting.add_done_callback(
                lambda task: self._abandon(task, submit_request, request_id, jobs)
            )
            if isinstance(error, asyncio.CancelledError):
                raise
            raise BrokerUnavailable("Redis did not take the request.", retry_after_s=1) from error
        if request.id != request_id:
            jobs = []  # the request came before, with the same key
        return request, jobs

    def _abandon(
        self,
        submitting: "asyncio.Task[Request]",
        submit_request: SubmitRequest,
        request_id: str,
        jobs: Sequence[Job],
    ) -> None:
        """End jobs that nobody will follow. They may be queued even if Redis's answer was lost.

        Jobs of a request with an idempotency key go on, because the key leads to them.
        """
        if not submitting.cancelled() and isinstance(submitting.exception(), FleetError):
            return  # Redis refused the request: nothing is queued
        if not submit_request.key:
            self._cancellations.cancel([job.id for job in jobs], Cancelled("abandoned"))
        elif submit_request.follower_id:
            self._cancellations.leave(request_id, submit_request.follower_id)


def _no_model_yet() -> NoWorker:
    return NoWorker("No worker has loaded a model yet.", retry_after_s=_RETRY_AFTER_S)


def no_such_model(name: str, expected: str) -> ModelNotFound:
    return ModelNotFound(f"model: {name!r} does not exist; {expected}.", field="model")


def check_serves(model: ModelInfo, task: TaskName) -> None:
    """Raise InvalidRequest for a task that the model does not serve."""
    if not _serves(model, task):
        known = ", ".join(map(repr, model.tasks))
        problem = f"model: {model.id!r} does not serve the task {task!r}; it serves {known}."
        raise InvalidRequest(problem, field="model")


def default_for(
    models: Mapping[str, ModelInfo],
    default: str | None,
    task: TaskName | None,
    problems: ProblemKind | None,
) -> str | None:
    """Return the id of the model for work that names none, which may be problems of a kind.

    It is the `default`. Where that does not serve the task, it is the first one (by its id) that
    does. Where that is not for such problems, it is the first one that declares a text for them.
    """
    if default is None or default not in models:
        return default
    model = models[default]
    if _serves(model, task) and (problems is None or model.prompting.is_for(problems)):
        return default
    for name in sorted(models):
        model = models[name]
        has_text = problems is None or model.prompting.template(problems) is not None
        if _serves(model, task) and has_text:
            return name
    return default


def _serves(model: ModelInfo, task: TaskName | None) -> bool:
    """Return whether a model serves the task. One whose tasks are not known yet may."""
    return task is None or not model.tasks or task in model.tasks


def unseen(model_id: str, limits: Limits) -> ModelInfo:
    """Return what is known of a model of the catalogue that no worker has seen yet.

    Its tasks are not known: only its worker can tell which it serves.
    """
    description = "in the catalogue; no worker has seen it yet"
    return ModelInfo(model_id, "", description, 0, limits.max_new_tokens, 1, tasks=())
