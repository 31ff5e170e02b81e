"""The plan of an experiment, the figures of its outcome, and the criteria for them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from scripts.chaos.faults import Toll
from scripts.chaos.invariants import all_ended, traces, violations
from scripts.chaos.processes import Fleet
from scripts.chaos.requests import Answer, ClientRequest

_DRAIN_S = 60.0
_REFUSED = "job dropped"


@dataclass(frozen=True)
class ExperimentPlan:
    """The size of an experiment.

    `model` is `echo`, rigged so that each step takes `step_s` seconds, or `sample`, an HRM-Text.
    `every_s` is the interval of faults. `media` is a folder with models, for the scenario of that name.
    """

    model: str = "echo"
    requests: int = 800
    clients: int = 8
    workers: int = 4
    every_s: float = 5.0
    lease_s: float = 3.0
    step_s: float = 0.02
    max_tokens: int = 64
    ageing_s: float = 10.0
    submits: int = 10_000
    tries: int = 50
    media: str = ""


@dataclass
class ScenarioResult:
    """The outcome of a scenario: a row of the table, and the criteria that it does not meet.

    The scenario holds if `wrong` is empty.
    """

    name: str
    figures: dict[str, Any]
    wrong: list[str] = field(default_factory=list)


def unmet_criteria(name: str, plan: ExperimentPlan, figures: dict[str, Any]) -> list[str]:
    """Return the unmet criteria of scenarios in which workers or Redis are lost."""
    wrong = []
    gap_s = figures["gap p99 s"] or 0.0
    if name != "redis" and figures["requests hit"] == 0:
        wrong.append("no request was hit, so this proved nothing")
    # The loss of a worker shows when its leases end. Within a second more its jobs are taken over.
    if name != "redis" and gap_s > plan.lease_s + 1:
        wrong.append(f"the recovery gap is {gap_s} s, and the lease {plan.lease_s} s")
    if name == "stop" and figures["late appends refused"] == 0:
        wrong.append("no late append was refused")
    return wrong


async def result_of(
    name: str, fleet: Fleet, answers: Sequence[Answer], *, toll: Toll, seconds: float
) -> ScenarioResult:
    """Wait until all jobs have ended, and return the figures and the criteria of all scenarios."""
    await all_ended(fleet.redis, _DRAIN_S)

    hit = set()
    for trace in await traces(fleet.redis):
        if trace.was_hit:
            hit.add(trace.job.request_id)

    failures = []
    changes = []
    gaps = []
    num_asked_again = 0
    for answer in answers:
        request = answer.request
        label = f"{request.name} ({request.mode})"
        if answer.error:
            failures.append(f"{label} failed: {answer.error[:200]}")
        elif not answer.is_right:
            changes.append(f"{label} has the text {answer.text[:80]!r}")
        # Only a stream shows the gap in its frames.
        if request.name in hit and request.mode == "sse":
            gaps.append(answer.gap_s)
        if answer.tries > 1:
            num_asked_again += 1
    gaps.sort()
    wrong = await violations(fleet.redis)

    figures = {
        "requests": len(answers),
        "failed": len(failures),
        "asked again": num_asked_again,
        "changed": len(changes),
        "faults": toll.faults,
        "spared": toll.spared,
        "requests hit": len(hit),
        "gap p50 s": at(gaps, 0.5),
        "gap p99 s": at(gaps, 0.99),
        "late appends refused": fleet.log_lines(_REFUSED),
        "seconds": round(seconds, 1),
    }
    return ScenarioResult(name, figures, wrong + failures + changes)


async def run_twice(fleet: Fleet, requests: Sequence[ClientRequest]) -> int:
    """Return the number of jobs beyond one for each request."""
    names = {request.name for request in requests}
    num_jobs = 0
    for trace in await traces(fleet.redis):
        if trace.job.request_id in names:
            num_jobs += 1
    return num_jobs - len(names)


def at(values: Sequence[float], share: float) -> float | None:
    """Return a quantile of sorted values, rounded to two decimals, or None if there are none.

    `share` is the part of the values that do not exceed it.
    """
    if not values:
        return None
    index = min(len(values) - 1, int(len(values) * share))
    return round(values[index], 2)
