"""The scenario of many submits, which go straight into the queue, without a front, while workers are
killed."""

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
_AT_ONCE = 16


async def submits(plan: ExperimentPlan) -> ScenarioResult:
    """Check that each submitted job ends in exactly one terminal event, with the text of the echo
    model."""
    async with fleet_of(replace(plan, model="echo", step_s=0.0)) as fleet:
        begun = time.monotonic()
        async with every(_EVERY_S, faults.kill_worker, fleet) as toll:
            await _submit_all(fleet.redis, plan.submits)
            submitted_s = time.monotonic() - begun
            await all_ended(fleet.redis, _ENDED_BY_S)
            seconds = time.monotonic() - begun

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
                wrong.append(f"job {trace.job.id} is {trace.state} and said {trace.text[:60]!r}")
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
    submissions = Submissions(Broker(redis))
    rng = random.Random(4)
    # One iterator that all submitters take from: each task is submitted once.
    tasks = iter([_task(rng) for _ in range(count)])

    async def submit_some() -> None:
        for task in tasks:
            order = SubmitRequest("echo", (task,), queue_timeout_s=600, deadline_s=600)
            request_id, jobs = submissions.jobs_of(order)
            await submissions.submit(
                order,
                request_id,
                jobs,
                quota=Quota(),
                queue_limits=QueueLimits(max_jobs=count),
            )

    async with asyncio.TaskGroup() as group:
        for _ in range(_AT_ONCE):
            group.create_task(submit_some())


def _task(rng: random.Random) -> Task:
    """Draw a task: one in five is scored, the others are generated."""
    text = "".join(rng.choices("abcdfghi ", k=rng.randint(1, 40)))
    if rng.random() < 0.2:
        return Score(text, (text[:5], "tail"))
    return Generate(text, Sampling(rng.randint(1, 200), seed=1))


def _is_as_expected(trace: Trace) -> bool:
    """Return whether a job is done and, where it generates, has the text of the echo model."""
    if trace.state != "done":
        return False
    task = trace.job.task
    return not isinstance(task, Generate) or trace.text == _echoed(task)


def _echoed(task: Generate) -> str:
    """The text of the echo model: the prompt again and again, one token a character."""
    max_tokens = task.sampling.max_tokens
    return (str(task.prompt) * max_tokens)[:max_tokens]
