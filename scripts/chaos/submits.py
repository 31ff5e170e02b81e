"""The row of many submits: straight into the queue, without a front, while workers are killed."""

import asyncio
import random
import time
from dataclasses import replace

from redis.asyncio import Redis

from scripts.chaos import faults
from scripts.chaos.criteria import ExperimentPlan, Row
from scripts.chaos.faults import every
from scripts.chaos.invariants import all_ended, traces, violations
from scripts.chaos.scenarios import fleet_of
from shared.broker import Broker
from shared.messages import Generate, Sampling, Score, Task
from shared.submission import QueueLimits, Quota, Submissions, SubmitRequest

_EVERY_S = 1.0
_ENDED_BY_S = 300.0
_AT_ONCE = 16


async def submits(plan: ExperimentPlan) -> Row:
    """Each of them ends in exactly one terminal event, and says what echo says."""
    async with fleet_of(replace(plan, model="echo", step_s=0.0)) as made:
        begun = time.monotonic()
        async with every(_EVERY_S, faults.kill_worker, made) as toll:
            await _submit_all(made.redis, plan.submits)
            submitted_s = time.monotonic() - begun
            await all_ended(made.redis, _ENDED_BY_S)
            seconds = time.monotonic() - begun
        found = await traces(made.redis)
        wrong = await violations(made.redis)
        for trace in found:
            task = trace.job.task
            if trace.state != "done" or (
                isinstance(task, Generate) and trace.text != _echoed(task)
            ):
                wrong.append(f"job {trace.job.id} is {trace.state} and said {trace.text[:60]!r}")
        if len(found) != plan.submits:
            wrong.append(f"{len(found)} jobs of {plan.submits}")
        figures = {
            "submits": plan.submits,
            "done": sum(trace.state == "done" for trace in found),
            "faults": toll.faults,
            "requests hit": sum(trace.was_hit for trace in found),
            "submitted in s": round(submitted_s, 1),
            "seconds": round(seconds, 1),
        }
        return Row("submits", figures, wrong)


async def _submit_all(redis: Redis, count: int) -> None:
    submissions, rng = Submissions(Broker(redis)), random.Random(4)
    left = iter([_task(rng) for _ in range(count)])

    async def some() -> None:
        for task in left:
            order = SubmitRequest("echo", (task,), queue_timeout_s=600, deadline_s=600)
            request_id, jobs = submissions.jobs_of(order)
            await submissions.submit(order, request_id, jobs, Quota(), QueueLimits(max_jobs=count))

    async with asyncio.TaskGroup() as group:
        for _ in range(_AT_ONCE):
            group.create_task(some())


def _task(rng: random.Random) -> Task:
    text = "".join(rng.choices("abcdfghi ", k=rng.randint(1, 40)))
    if rng.random() < 0.2:
        return Score(text, (text[:5], "tail"))
    return Generate(text, Sampling(rng.randint(1, 200), seed=1))


def _echoed(task: Generate) -> str:
    return (str(task.prompt) * task.sampling.max_tokens)[: task.sampling.max_tokens]
