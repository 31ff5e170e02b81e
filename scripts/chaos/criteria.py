"""How an experiment is planned, and what its outcome is worth: the figures of a row, and what is
wrong with them."""

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
    """How large an experiment is. `model` is `echo` (rigged: `step_s` for each step) or `sample`
    (HRM-Text)."""

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


@dataclass
class Row:
    """One line of the table. It passes when `wrong` is empty."""

    name: str
    figures: dict[str, Any]
    wrong: list[str] = field(default_factory=list)


def bars(name: str, plan: ExperimentPlan, figures: dict[str, Any]) -> list[str]:
    """What more is asked of rows in which workers are lost."""
    wrong, gap_s = [], figures["gap p99 s"] or 0.0
    if name != "redis" and figures["requests hit"] == 0:
        wrong.append("no request was hit, so this proved nothing")
    if name != "redis" and gap_s > plan.lease_s + 1:
        wrong.append(f"the recovery gap is {gap_s} s, and the lease {plan.lease_s} s")
    if name == "stop" and figures["late appends refused"] == 0:
        wrong.append("no late append was refused")
    return wrong


async def row_of(
    name: str, made: Fleet, answers: Sequence[Answer], toll: Toll, seconds: float
) -> Row:
    """The figures that all rows share, and what is wrong with them."""
    await all_ended(made.redis, _DRAIN_S)
    failed = [answer for answer in answers if answer.error]
    changed = [answer for answer in answers if not answer.error and not answer.is_right]
    hit = {trace.job.request_id for trace in await traces(made.redis) if trace.was_hit}
    gaps = sorted(
        answer.gap_s
        for answer in answers
        if answer.request.name in hit and answer.request.mode == "sse"
    )
    wrong = await violations(made.redis)
    wrong += [
        f"{answer.request.name} ({answer.request.mode}) failed: {answer.error[:200]}"
        for answer in failed
    ]
    wrong += [
        f"{answer.request.name} ({answer.request.mode}) said {answer.text[:80]!r}"
        for answer in changed
    ]
    figures = {
        "requests": len(answers),
        "failed": len(failed),
        "asked again": sum(answer.tries > 1 for answer in answers),
        "changed": len(changed),
        "faults": toll.faults,
        "spared": toll.spared,
        "requests hit": len(hit),
        "gap p50 s": at(gaps, 0.5),
        "gap p99 s": at(gaps, 0.99),
        "late appends refused": made.log_lines(_REFUSED),
        "seconds": round(seconds, 1),
    }
    return Row(name, figures, wrong)


async def run_twice(made: Fleet, asks: Sequence[ClientRequest]) -> int:
    """Jobs beyond one for each ask."""
    names = {ask.name for ask in asks}
    return sum(trace.job.request_id in names for trace in await traces(made.redis)) - len(names)


def at(values: Sequence[float], share: float) -> float | None:
    """The value that `share` of them (sorted) do not exceed, rounded; None of none."""
    return round(values[min(len(values) - 1, int(len(values) * share))], 2) if values else None
