"""The scenario of submits: many jobs are submitted without a front while workers are killed."""

import asyncio
import random
import time
from dataclasses import replace

from redis.asyncio import Redis

from scripts.chaos import faults
from scripts.chaos.criteria import ExperimentPlan, ScenarioResult
from scripts.chaos.faults import every
from scripts.chaos.invariants import Trace, all_ended, traces, violations
from scripts.chaos.scenarios import fleet_of
from shared.messages import Generate, Sampling, Score, Task
from shared.queue.broker import Broker
from shared.queue.submission import QueueLimits, Quota, Submissions, SubmitRequest

_EVERY_S = 1.0
_ENDED_BY_S = 300.0
_NUM_SUBMITTERS = 16


async def submits(plan: ExperimentPlan) -> ScenarioResult:
    """Check that each job ends with one terminal event and has the text of the echo model."""
    async with fleet_of(replace(plan, model="echo", step_s=0.0)) as fleet:
        started = time.monotonic()
        async with every(_EVERY_S, faults.kill_worker, fleet) as toll:
            await _submit_all(fleet.redis, plan.submits)
            submitted_s = time.monotonic() - started
            await all_ended(fleet.redis, _ENDED_BY_S)
            seconds = time.monotonic() - started

        job_traces = await traces(fleet.redis)
        wrong = await violations(fleet.redis)
        num_done = 0
        num_hit = 0
        for trace in job_traces:
            if trace.state == "done":
                num_done += 1
            if trace.was_hit:
                num_hit += 1
            if not _is_as_expected(trace):
                wrong.append(f"job {trace.job.id} is {trace.state}, its text {trace.text[:60]!r}")
        if len(job_traces) != plan.submits:
            wrong.append(f"{len(job_traces)} jobs of {plan.submits}")

        figures = {
            "submits": plan.submits,
            "done": num_done,
            "faults": toll.faults,
            "requests hit": num_hit,
            "submitted in s": round(submitted_s, 1),
            "seconds": round(seconds, 1),
        }
        return ScenarioResult("submits", figures, wrong)


async def _submit_all(redis: Redis, count: int) -> None:
    """Submit `count` jobs of one task each, several at the same time."""
    submissions = Submissions(Broker(redis))
    rng = random.Random(4)
    # All submitters share this iterator, so that each task is submitted once.
    tasks = iter([_task(rng) for _ in range(count)])

    async def submit_some() -> None:
        for task in tasks:
            request = SubmitRequest("echo", (task,), queue_timeout_s=600, deadline_s=600)
            request_id, jobs = submissions.jobs_of(request)
            await submissions.submit(
                request,
                request_id,
                jobs,
                quota=Quota(),
                queue_limits=QueueLimits(max_jobs=count),
            )

    async with asyncio.TaskGroup() as group:
        for _ in range(_NUM_SUBMITTERS):
            group.create_task(submit_some())


def _task(rng: random.Random) -> Task:
    """Draw a task: one in five scores continuations, the others generate."""
    text = "".join(rng.choices("abcdfghi ", k=rng.randint(1, 40)))
    if rng.random() < 0.2:
        return Score(text, (text[:5], "tail"))
    return Generate(text, Sampling(rng.randint(1, 200), seed=1))


def _is_as_expected(trace: Trace) -> bool:
    """Return whether a job is done and, if it generates, has the text of the echo model."""
    if trace.state != "done":
        return False
    task = trace.job.task
    return not isinstance(task, Generate) or trace.text == _echoed(task)


def _echoed(task: Generate) -> str:
    """Return the text of the echo model, which repeats the prompt. A token is a character."""
    max_tokens = task.sampling.max_tokens
    return (str(task.prompt) * max_tokens)[:max_tokens]
