"""Run evaluations in the background role, a short turn at a time.

Whoever has a turn holds a claim on the run. The plan and the result of each request lie in Redis,
so that the next process goes on behind the last result, whatever has become of the one before. The
items are asked one after the other, which is how their times can be compared.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

import msgspec

from api.access.caller import Caller
from api.batches.hold import ClaimLost, Hold
from api.batches.line_work import LATER
from api.deps import Front, build_front
from api.endpoints.dialects import POSTS
from api.endpoints.endpoint import Endpoints
from api.evaluation.item_work import ItemWork
from api.evaluation.regressions import compared
from api.evaluation.report import (
    Answer,
    Assignment,
    ItemResult,
    Report,
    Skipped,
    assignments_of,
    facts_of,
    now,
    result_of,
    task_report,
)
from api.evaluation.sets import EvalSet, Item, chosen_sets, read_sets
from api.schemas.fields import fleets_seed
from shared.errors import BrokerUnavailable, EvaluationNotFound, InvalidRequest, Unauthorized
from shared.queue.batches import BatchClaim
from shared.queue.broker import UNAVAILABLE, Broker
from shared.queue.evaluation_runs import EvaluationRun, EvaluationRuns
from shared.queue.submission import Quota
from shared.settings.settings import Settings
from shared.telemetry.logging_setup import fields
from shared.telemetry.metrics import EvaluationMetrics

WINDOW_S = 3600.0
"""The time in which a run must end."""
HISTORY = 20
"""The number of earlier runs among which a baseline is looked for."""
_RETRY_S = 0.5

log = logging.getLogger("aios.evaluation")


@dataclass(frozen=True)
class Plan:
    """The sets that a run asks, of which models, and those that it leaves out."""

    assignments: tuple[Assignment, ...]
    skipped: tuple[Skipped, ...]


@dataclass(frozen=True)
class _Trial:
    """A request of a run. Of each assignment the first one, a warm-up, counts for nothing."""

    number: int
    assignment: Assignment
    item: Item
    is_warm_up: bool


class _Late(Exception):
    """The time in which a run must end is over."""


class Evaluator:
    """Takes turns at the runs of a fleet."""

    def __init__(
        self,
        front: Front,
        runs: EvaluationRuns,
        sets: Mapping[str, EvalSet],
        metrics: EvaluationMetrics,
        *,
        seed: int | None,
    ) -> None:
        self._front = front
        self._runs = runs
        self._sets = dict(sets)
        self._metrics = metrics
        self._seed = seed
        self._shown: str | None = None

    async def advance_one(self, for_s: float) -> bool:
        """Advance the run that has waited longest, for about `for_s`. Return whether one waited.

        Nothing is done while Redis is away.
        """
        try:
            await self._show_latest()
            claim = await self._runs.claim()
        except UNAVAILABLE as error:
            log.warning("evaluations not advanced", extra=fields(error=str(error)))
            return False
        if claim is None:
            return False
        try:
            async with Hold(self._runs, claim) as hold:
                await self._advance(hold, claim, for_s)
        except (ClaimLost, EvaluationNotFound):
            log.info("evaluation claim lost", extra=fields(evaluation=claim.batch_id))
        except (BrokerUnavailable, *UNAVAILABLE) as error:
            log.warning(
                "evaluation not advanced",
                extra=fields(evaluation=claim.batch_id, error=str(error)),
            )
        return True

    async def _advance(self, hold: Hold, claim: BatchClaim, for_s: float) -> None:
        """Take a run as far as it gets in this time."""
        run = await self._runs.find(claim.batch_id)
        try:
            plan = await self._plan(claim, run)
            caller = await self._caller(run)
            results = await self._ask(hold, plan, ItemWork(self._front, caller, run.id), for_s)
        except (InvalidRequest, Unauthorized) as error:
            await self._end(claim, error=error.message)
            return
        except _Late:
            await self._end(
                claim, error="The time of the run was over before all items were asked."
            )
            return
        if results is not None:
            await self._finish(claim, run, plan, results)

    async def _plan(self, claim: BatchClaim, run: EvaluationRun) -> Plan:
        """Return what a run asks, which is decided once. Raise InvalidRequest and ClaimLost."""
        if run.plan:
            return msgspec.json.decode(run.plan, type=Plan)
        sets = chosen_sets(self._sets, run.spec.tasks)
        fleet = await self._front.fleet.now()
        models = []
        for model_id in sorted(fleet.models):
            if fleet.serves(model_id) and fleet.failure(model_id) is None:
                models.append(facts_of(fleet, fleet.models[model_id]))
        assignments, skipped = assignments_of(sets, models, run.spec.model)
        plan = Plan(tuple(assignments), tuple(skipped))
        total = len(self._trials(plan))
        if not await self._runs.begin(claim, total=total, plan=msgspec.json.encode(plan)):
            raise ClaimLost
        return plan

    def _trials(self, plan: Plan) -> list[_Trial]:
        """Return the requests of a plan, numbered from 1."""
        trials: list[_Trial] = []
        for assignment in plan.assignments:
            one = self._set_of(assignment)
            trials.append(_Trial(len(trials) + 1, assignment, one.items[0], is_warm_up=True))
            for item in one.items:
                trials.append(_Trial(len(trials) + 1, assignment, item, is_warm_up=False))
        return trials

    def _set_of(self, assignment: Assignment) -> EvalSet:
        if assignment.task not in self._sets:
            raise InvalidRequest(f"tasks: this version has no set {assignment.task!r}.")
        return self._sets[assignment.task]

    async def _caller(self, run: EvaluationRun) -> Caller:
        """Return the caller who asked for a run, with its present rights. Raise Unauthorized."""
        made_by = run.spec.caller
        caller = Caller(
            tenant=run.spec.tenant,
            best_priority=made_by.best_priority,
            id=made_by.id,
            models=frozenset(made_by.models),
            digest=made_by.digest,
        )
        caller = await self._front.auth.refresh(caller)
        # One request at a time hardly fills a quota, and is not to be held up by others.
        return replace(caller, quota=Quota())

    async def _ask(
        self, hold: Hold, plan: Plan, work: ItemWork, for_s: float
    ) -> dict[int, ItemResult] | None:
        """Ask what has no result yet, for this time. Return all results once they are there.

        Raise ClaimLost and _Late.
        """
        loop = asyncio.get_running_loop()
        until_s = loop.time() + for_s
        results = {}
        for number, noted in (await self._runs.results(hold.claim)).items():
            results[number] = msgspec.json.decode(noted, type=ItemResult)
        refused: set[Assignment] = set()
        for trial in self._trials(plan):
            if trial.assignment in refused:
                continue
            if trial.number not in results:
                if loop.time() > until_s:
                    return None
                result = await self._result(hold, work, trial)
                if not await self._runs.note(hold.claim, trial.number, msgspec.json.encode(result)):
                    hold.lose()
                hold.check()
                results[trial.number] = result
            if trial.is_warm_up and results[trial.number].is_refused:
                refused.add(trial.assignment)
        return results

    async def _result(self, hold: Hold, work: ItemWork, trial: _Trial) -> ItemResult:
        """Return the result of a request, which is tried again while it is refused for a time.

        Raise ClaimLost and _Late.
        """
        one = self._set_of(trial.assignment)
        # Requests without a seed have that of the fleet, as a front's do.
        fleets_seed.set(self._seed)
        while True:
            try:
                return result_of(one, trial.item, await _asked(hold, work, one, trial))
            except (ClaimLost, _Late):
                raise
            except LATER as error:
                log.debug(
                    "evaluation item waits",
                    extra=fields(evaluation=hold.claim.batch_id, error=str(error)),
                )
            except Exception:
                # A bug, which would hold up the run for ever.
                log.exception("evaluation item broke", extra=fields(evaluation=hold.claim.batch_id))
                return result_of(one, trial.item, Answer(error="500: internal error"))
            await asyncio.sleep(_RETRY_S)

    async def _finish(
        self, claim: BatchClaim, run: EvaluationRun, plan: Plan, results: Mapping[int, ItemResult]
    ) -> None:
        """End a run with the report of its results."""
        report = await self._report(run, plan, results)
        history = []
        for earlier in await self._runs.done(HISTORY):
            history.append(msgspec.json.decode(earlier.report, type=Report))
        report = compared(report, history)
        if not await self._runs.end(claim, report=msgspec.json.encode(report)):
            return
        for result, regression in report.regressions:
            self._metrics.regressions.labels(result.task, result.model.id, regression.kind).inc()
            log.warning(
                "evaluation regressed",
                extra=fields(
                    evaluation=run.id,
                    task=result.task,
                    model=result.model.id,
                    kind=regression.kind,
                    before=regression.before,
                    now=regression.now,
                ),
            )
        for skipped in report.refused:
            self._metrics.regressions.labels(skipped.task, skipped.model, "refused").inc()
        log.info("evaluation ended", extra=fields(evaluation=run.id))
        self._show(report)

    async def _report(
        self, run: EvaluationRun, plan: Plan, results: Mapping[int, ItemResult]
    ) -> Report:
        fleet = await self._front.fleet.now()
        items: dict[Assignment, list[ItemResult]] = {}
        skipped = list(plan.skipped)
        for trial in self._trials(plan):
            result = results.get(trial.number)
            if result is None:
                continue
            if not trial.is_warm_up:
                items.setdefault(trial.assignment, []).append(result)
            elif result.is_refused:
                reason = f"refused: {result.error}"
                skipped.append(Skipped(trial.assignment.task, trial.assignment.model.id, reason))
        reports = []
        for assignment, answered in items.items():
            model = assignment.model
            if fleet.serves(model.id):
                # By now the model was loaded.
                model = facts_of(fleet, fleet.models[model.id])
            reports.append(task_report(self._set_of(assignment), model, answered))
        return Report(
            id=run.id,
            made_at=now(),
            way="fleet",
            results=tuple(reports),
            skipped=tuple(skipped),
            is_accepted=run.spec.is_accepted,
        )

    async def _end(self, claim: BatchClaim, *, error: str) -> None:
        if await self._runs.end(claim, error=error):
            log.warning("evaluation failed", extra=fields(evaluation=claim.batch_id, error=error))

    async def _show_latest(self) -> None:
        """Show the figures of the last report in the metrics, whichever process has made it."""
        latest_id = await self._runs.latest_id()
        if latest_id is None or latest_id == self._shown:
            return
        run = await self._runs.find(latest_id)
        self._show(msgspec.json.decode(run.report, type=Report))

    def _show(self, report: Report) -> None:
        self._shown = report.id
        for result in report.results:
            labels = (result.task, result.model.id)
            self._metrics.accuracy.labels(*labels).set(result.accuracy.value)
            if result.latency_ms is not None:
                self._metrics.latency.labels(*labels).set(result.latency_ms.p95 / 1000)


async def _asked(hold: Hold, work: ItemWork, one: EvalSet, trial: _Trial) -> Answer:
    """Return the answer to a request. Raise ClaimLost and _Late if the run is to stop before."""
    model = trial.assignment.model.id
    asking = asyncio.create_task(work.ask(trial.number, one, trial.item, model))
    stopping = asyncio.create_task(hold.stopped.wait())
    try:
        if not hold.stopped.is_set():
            await asyncio.wait({asking, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if asking.done():
            return asking.result()
        hold.check()
        raise _Late
    finally:
        stopping.cancel()
        asking.cancel()
        await asyncio.gather(asking, stopping, return_exceptions=True)


@asynccontextmanager
async def open_evaluator(
    settings: Settings, broker: Broker, metrics: EvaluationMetrics
) -> AsyncIterator[Evaluator]:
    """Return what runs evaluations under these settings. Raise SettingsError."""
    # A request waits in the queue for as long as its run may take.
    patient = settings.model_copy(
        update={
            "queue_timeout_s": max(WINDOW_S, settings.queue_timeout_s),
            "request_timeout_s": max(WINDOW_S, settings.request_timeout_s),
            "idempotency_ttl_s": max(2 * WINDOW_S, settings.idempotency_ttl_s),
        }
    )
    front = build_front(patient, broker, Endpoints(POSTS))
    runs = EvaluationRuns(broker)
    yield Evaluator(front, runs, read_sets(), metrics, seed=settings.seed)
    await front.close()
