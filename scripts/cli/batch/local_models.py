"""Models in this process that answer lines as a fleet would, without HTTP and without Redis.

A body is parsed, planned and rendered by the endpoint table, and its tasks go to the engines that
workers use.
"""

import asyncio
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial

from pydantic import BaseModel

from api.batches.batch_posts import BATCH_POSTS
from api.batches.line_answers import completed_answer, refused_answer
from api.batches.line_request import InvalidBody, read_body
from api.batches.lines import BatchLine
from api.deps import limits_of
from api.endpoints.endpoint import Endpoint, ImmediateEndpoint, TaskPlan
from api.schemas.fields import fleets_seed
from api.stream.request_events import Outcome, OutcomeBuilder, total_usage
from api.submit.admission import LOCAL_MODEL, check_serves, default_for, no_such_model
from api.submit.request_record import RequestRecord, SubmittedWork
from api.submit.stored_inputs import with_ids
from scripts.cli.batch.inputs_here import InputsHere
from scripts.cli.batch.new_files import NewFiles
from scripts.cli.fleet_tool import ToolError
from shared.errors import FleetError, InvalidRequest, WorkerFailed, from_event
from shared.messages import SKIPPED, Done, Event, Failed, ModelInfo, Started, Task
from shared.queue.batches import LineAnswer, LineTokens
from shared.queue.requests import Request
from shared.settings.settings import Settings
from worker.engine.engine_thread import EngineThread
from worker.engine.engines import AnyEngine, engine_for
from worker.engine.request import Emission
from worker.engine.take import Prepared, Take
from worker.engine.task_runner import NewFile
from worker.hardware.device import give_back_memory
from worker.host.loading import LoadedModel
from worker.host.outbox import add_emission

_LINES_PER_SLOT = 2
"""The lines under way for each place in a batch: the next ones are read while those run."""


@dataclass
class _Job:
    """A task under way: its news so far, and, once it has ended, its files or its error."""

    news: list[Event]
    files: tuple[NewFile, ...] = ()
    error: Exception | None = None
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def settles(self) -> bool:
        """Return whether the jobs behind this one, which has ended, are needless."""
        end = self.news[-1]
        return isinstance(end, Done) and end.settles


@dataclass(frozen=True)
class _Model:
    info: ModelInfo
    engine: AnyEngine


class LocalModels:
    """Models that are loaded into this process, and have their threads here.

    Files that answers tell of become `new_files`. It is made in the event loop.
    """

    def __init__(
        self, models: Sequence[LoadedModel], settings: Settings, run_id: str, new_files: NewFiles
    ) -> None:
        self._run_id = run_id
        self._new_files = new_files
        self._inputs = InputsHere(settings.max_inline_bytes)
        self._seed = settings.seed
        self._limits = limits_of(settings)
        self._jobs: dict[str, _Job] = {}
        self._loop = asyncio.get_running_loop()
        # One thread, because a tokenizer must not be used by two threads at once.
        self._reader = ThreadPoolExecutor(1, "read")
        self._threads: dict[str, EngineThread] = {}
        self._models: dict[str, _Model] = {}
        self.most_at_once = 0
        for model in models:
            spec = model.runner.spec
            thread = self._thread_of(spec.mechanism)
            engine = engine_for(
                model.runner,
                self._emit,
                thread.wake,
                batch_wait_s=settings.batch_wait_ms / 1000,
                files_of=lambda tenant: self._inputs.files,
            )
            thread.add(engine)
            self._models[model.info.id] = _Model(model.info, engine)
            self.most_at_once += _LINES_PER_SLOT * spec.max_batch
        for thread in self._threads.values():
            thread.start()

    async def answer(self, line: BatchLine) -> LineAnswer:
        """Return the answer of a line. Raise ToolError if an engine broke down."""
        post = BATCH_POSTS[line.url]
        request_id = f"{self._run_id}-{line.number}"
        fleets_seed.set(self._seed)
        errors = post.errors
        try:
            body = read_body(post, line.body)
            endpoint = post.endpoint_of(body)
            errors = endpoint.errors
            if endpoint.is_streamed(body):
                raise InvalidRequest(
                    "stream: expected false; a line of a batch is answered whole.", field="stream"
                )
            if isinstance(endpoint, ImmediateEndpoint):
                whole = endpoint.render(body, request_id)
                tokens = LineTokens()
            else:
                work, outcomes = await self._done(endpoint, body, request_id)
                whole = endpoint.render(work, outcomes)
                usage = total_usage(outcomes)
                tokens = LineTokens(
                    usage.prompt_tokens, usage.completion_tokens, usage.cached_prompt_tokens
                )
        except InvalidBody as error:
            return refused_answer(
                self._run_id,
                line,
                request_id=request_id,
                error=error.refusal,
                errors=error.errors,
                status=error.errors.invalid_body,
            )
        except FleetError as error:
            return refused_answer(
                self._run_id, line, request_id=request_id, error=error, errors=errors
            )
        return completed_answer(
            self._run_id,
            line.number,
            line.custom_id,
            request_id=request_id,
            body=whole.model_dump_json().encode(),
            tokens=tokens,
        )

    async def close(self) -> None:
        """End the engines after their current steps, and free the models."""
        for thread in self._threads.values():
            thread.stop()
        for thread in self._threads.values():
            await asyncio.to_thread(thread.join)
        self._reader.shutdown(cancel_futures=True)
        for model in self._models.values():
            model.engine.close()
        self._models.clear()
        give_back_memory()

    async def _done(
        self, endpoint: Endpoint, body: BaseModel, request_id: str
    ) -> tuple[SubmittedWork, list[Outcome]]:
        """Do what a body asks for. Raise the FleetError of the first task that fails."""
        model = self._model_of(endpoint, body)
        inputs: list[str] = []

        async def store(text: str, name: str) -> str:
            inputs.append(self._inputs.keep(text, name))
            return inputs[-1]

        try:
            body = await with_ids(body, store)
            plan = endpoint.plan(body, model.info, self._limits)
            record = RequestRecord(
                endpoint=endpoint.name,
                model=model.info.id,
                created=int(time.time()),
                n=plan.n,
                capped_at=plan.capped_at,
                notes=dict(plan.notes),
            )
            job_ids = tuple(f"{request_id}-{number}" for number in range(len(plan.tasks)))
            work = SubmittedWork(Request(request_id, "", job_ids), record)
            outcomes = []
            for job in await self._ended(model, job_ids, plan):
                outcomes.append(await self._outcome(job, endpoint, plan))
        finally:
            self._inputs.drop(inputs)
        return work, outcomes

    def _model_of(self, endpoint: Endpoint, body: BaseModel) -> _Model:
        name = endpoint.model_of(body)
        infos = {name: model.info for name, model in self._models.items()}
        if name is None or (name == LOCAL_MODEL and name not in infos):
            default = next((name for name, info in infos.items() if info.is_default), None)
            name = default_for(infos, default, endpoint.task, endpoint.problems)
        if name not in infos:
            raise no_such_model(str(name), f"expected {', '.join(infos)}")
        check_serves(infos[name], endpoint.task)
        return self._models[name]

    async def _ended(self, model: _Model, job_ids: Sequence[str], plan: TaskPlan) -> list[_Job]:
        """Do the tasks of a plan, and return their jobs.

        Raise the FleetError of the first that fails.
        """
        running: list[asyncio.Task[_Job]] = []

        async def run(index: int) -> _Job:
            leader = plan.leaders[index] if plan.leaders else None
            if leader is not None and (await running[leader]).settles:
                return _Job([SKIPPED])
            job = await self._begun(model, job_ids[index], plan.tasks[index])
            await job.ended.wait()
            if job.error is not None:
                raise job.error
            return job

        for index in range(len(plan.tasks)):
            running.append(asyncio.create_task(run(index)))
        try:
            return await asyncio.gather(*running)
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)
            for job_id in job_ids:
                if self._jobs.pop(job_id, None) is not None:
                    model.engine.abort(job_id)

    async def _outcome(self, job: _Job, endpoint: Endpoint, plan: TaskPlan) -> Outcome:
        """Return the outcome of a job that has ended, and write its files."""
        builder = OutcomeBuilder(plan.n)
        for event in job.news:
            builder.add(event)
        outcome = builder.outcome()
        if endpoint.with_file_bytes:
            return replace(outcome, file_bytes=tuple(file.data for file in job.files))
        refs = []
        for file in job.files:
            refs.append(await self._new_files.write(file.data, file.media_type, file.name))
        return replace(outcome, artifacts=tuple(refs))

    async def _begun(self, model: _Model, job_id: str, task: Task) -> _Job:
        """Return the job of a task, which the engine has now, or which has its answer already."""
        take = Take(job_id, task, priority="bulk")
        prepared = await self._loop.run_in_executor(self._reader, _prepare, model.engine, take)
        started = Started(
            1,
            "",
            num_prompt_tokens=prepared.num_prompt_tokens,
            num_truncated=prepared.num_truncated,
            max_tokens=prepared.max_tokens,
        )
        job = _Job([started])
        if prepared.answer is not None:
            job.news.append(prepared.answer)
            job.ended.set()
            return job
        self._jobs[job_id] = job
        model.engine.submit(prepared)
        return job

    def _emit(self, emissions: list[Emission]) -> None:
        """Take the news of one step, from the thread that computed it."""
        self._loop.call_soon_threadsafe(self._collect, emissions)

    def _collect(self, emissions: Sequence[Emission]) -> None:
        for emission in emissions:
            job = self._jobs.get(emission.key)
            if job is None:
                continue
            add_emission(job.news, emission)
            if emission.ended is None:
                continue
            if isinstance(emission.ended, Failed):
                job.error = from_event(emission.ended)
            job.files = emission.files
            self._end(emission.key)

    def _end(self, job_id: str) -> None:
        self._jobs.pop(job_id).ended.set()

    def _thread_of(self, mechanism: str) -> EngineThread:
        if mechanism not in self._threads:
            broke = partial(self._loop.call_soon_threadsafe, self._break)
            self._threads[mechanism] = EngineThread(on_death=broke)
        return self._threads[mechanism]

    def _break(self) -> None:
        """End all lines, because an engine broke down."""
        for job_id in list(self._jobs):
            self._jobs[job_id].error = ToolError("an engine broke down; its error is above")
            self._end(job_id)


def _prepare(engine: AnyEngine, take: Take) -> Prepared:
    try:
        return engine.prepare(take)
    except FleetError:
        raise
    except Exception as error:
        # A tokenizer is foreign code and may raise anything, as in worker/host/intake.py.
        raise WorkerFailed(f"The request could not be tokenized: {error}") from error
